"""Decides how long and how often things are measured; every figure is taken in the same way, only shorter or longer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """Sizes of a run. Times in seconds."""

    seconds: float = 1.0
    """Of each load that is timed."""
    loads: int = 5
    """Models of a kind that are loaded one after another for the time of a cold load."""
    further: int = 10
    """Models of a kind that are loaded beside the first for the memory of one more."""
    unloads: int = 50
    """Models that are loaded and unloaded to see what memory comes back."""
    models: int = 1000
    """The most models of the curves over the number of models."""

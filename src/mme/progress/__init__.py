"""Decides what someone who waits is told meanwhile, and where: in a terminal, below a notebook's cell, or nowhere."""

from mme.progress.steps import Step, waiting

__all__ = ["Step", "waiting"]

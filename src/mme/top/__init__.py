"""Decides what a person in front of a terminal sees of the platform, live: what the page shows, from its own events."""

from mme.top.feed import Feed, State, TopError
from mme.top.screen import draw
from mme.top.terminal import show

__all__ = ["Feed", "State", "TopError", "draw", "show"]

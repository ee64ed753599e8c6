"""Decides how this room fails."""

from __future__ import annotations


class NewError(Exception):
    """A package can't be started as asked; the message says what was wrong, and the way out."""

"""Decides how long the live state stays in a terminal, and that the terminal is as before afterwards."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.live import Live

from mme.top.feed import Feed, State
from mme.top.screen import draw

_FRAME_S = 0.25  # as often as the platform tells of changes
_WIDE = 132  # columns of what no terminal is too narrow for
_FIRST_S = 30.0  # that a platform on a busy machine has for its first word
_LOOK_S = 2.0  # that one picture is made of: what the containers say of their workers, and calls a second


def show(console: Console, home: Path, *, once: bool = False) -> None:
    """Show the platform of a home until q or Ctrl-C; print it whole, once, if asked to or where no terminal is.

    Raises TopError when too many look at the platform already.
    """
    with Feed(home) as feed:
        if once or not console.is_terminal:
            _print(console, home, feed)
        else:
            _live(console, home, feed)


def _print(console: Console, home: Path, feed: Feed) -> None:
    state = State()
    feed.into(state, _FIRST_S)
    deadline = time.monotonic() + _LOOK_S
    while (left_s := deadline - time.monotonic()) > 0:
        feed.into(state, left_s)
    console.print(draw(state, _short(home), console.width if console.is_terminal else _WIDE), soft_wrap=True)


def _live(console: Console, home: Path, feed: Feed) -> None:
    state, screen = State(), Live(console=console, screen=True, auto_refresh=False)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # being killed restores the terminal too
    try:
        with contextlib.suppress(KeyboardInterrupt), _keys() as pressed, screen:
            feed.into(state, _LOOK_S)
            while "q" not in pressed():
                screen.update(draw(state, _short(home), console.width, console.height), refresh=True)
                feed.into(state)
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[], str]]:
    """A function that waits for keys as long as a frame lasts; they aren't echoed, and Ctrl-C stays Ctrl-C."""
    keyboard = sys.stdin.fileno()
    if not os.isatty(keyboard):
        yield lambda: _pressed([])
        return
    before = termios.tcgetattr(keyboard)
    tty.setcbreak(keyboard)
    try:
        yield lambda: _pressed([keyboard])
    finally:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)


def _pressed(keyboards: list[int]) -> str:
    ready, _, _ = select.select(keyboards, [], [], _FRAME_S)
    return "".join(os.read(keyboard, 64).decode("ascii", "replace") for keyboard in ready)


def _short(home: Path) -> str:
    return f"~/{home.relative_to(Path.home())}" if home.is_relative_to(Path.home()) else str(home)

"""Decides how a terminal shows what is waited for: one line on stderr, which is gone when the wait is over."""

from __future__ import annotations

import threading
import time

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from mme.progress.steps import current, watch

_SOON_S = 0.4  # what takes less isn't worth a line
_BAR_COLUMNS = 24


def follow() -> None:
    """Show on stderr what this process waits for, if that is a terminal."""
    console = Console(stderr=True, highlight=False)
    if console.is_terminal:
        watch(_Line(console))


class _Line:
    """Begun by a timer, so that a short wait costs next to nothing and draws nothing."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._spinner = Spinner("dots")
        self._began = 0.0
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._live: Live | None = None

    def begin(self) -> None:
        self._began = time.monotonic()
        with self._lock:
            self._timer = threading.Timer(_SOON_S, self._show)
            self._timer.daemon = True
            self._timer.start()

    def end(self) -> None:
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            if self._live is not None:
                self._live.stop()
            self._timer = self._live = None

    def _show(self) -> None:
        with self._lock:
            if self._timer is threading.current_thread():
                # What is printed goes where it went: stdout may be a file.
                self._live = Live(
                    self, console=self._console, transient=True, redirect_stdout=False, refresh_per_second=8
                )
                self._live.start()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        seconds, step = time.monotonic() - self._began, current()
        if step is None:
            return
        line = Table.grid(padding=(0, 1))
        line.add_column(width=1)
        line.add_column(no_wrap=True, overflow="ellipsis")
        bar = ProgressBar(total=step.total, completed=step.done, width=_BAR_COLUMNS) if step.total else Text()
        line.add_row(self._spinner, Text(step.text), bar, Text(step.count()), Text(f"{seconds:.0f} s", "dim"))
        yield line

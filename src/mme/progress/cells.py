"""Decides how a notebook shows that a cell still runs: in a line below it, which is gone when the cell says something.

The line stands only where a person may look: the request to run the cell says whether its sender could answer a
question (`allow_stdin` of Jupyter's messaging protocol), which JupyterLab can and nbclient, nbconvert and nbval can't.
"""

from __future__ import annotations

import sys
import threading
import time
import uuid
from typing import Any

from mme.progress.steps import current

_AFTER_S = 2.0  # what takes less is no wait
_EVERY_S = 1.0
# Messages by which a cell shows something of its own.
_OUTPUTS = {"stream", "display_data", "update_display_data", "execute_result", "error", "clear_output"}


def follow() -> None:
    """In a Jupyter kernel, show what each cell waits for from the next one on; elsewhere do nothing."""
    global _cells
    shell: Any = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if _cells is None and hasattr(shell, "kernel"):
        _cells = _Cells(shell.kernel, shell)


class _Cells:
    """The cells of one kernel. Everything that a cell shows passes `send`, since errors pass nowhere else."""

    def __init__(self, kernel: Any, shell: Any) -> None:
        self._kernel = kernel
        self._send = kernel.session.send
        self._line: _Line | None = None
        kernel.session.send = self.send
        shell.events.register("pre_run_cell", self.begin)
        shell.events.register("post_run_cell", self.end)

    def begin(self, _: Any) -> None:
        request = self._kernel.get_parent("shell")
        if request.get("content", {}).get("allow_stdin"):
            self._line = _Line(self._publish, request)

    def end(self, _: Any) -> None:
        if self._line is not None:
            self._line.remove()
            self._line = None

    def send(self, stream: Any, message: Any, *arguments: Any, **options: Any) -> Any:
        """The session's own `send`, before which the line makes room for what the cell shows."""
        kind = message if isinstance(message, str) else message["header"]["msg_type"]
        if kind in _OUTPUTS and self._line is not None:
            self._line.remove()
        return self._send(stream, message, *arguments, **options)

    def _publish(self, kind: str, content: dict[str, Any], parent: Any) -> None:
        self._send(self._kernel.iopub_socket, kind, content, parent=parent)


class _Line:
    """The line below one cell. As long as it stands, it is the cell's only output: so clearing that leaves no trace."""

    def __init__(self, publish: Any, request: Any) -> None:
        self._publish = publish
        self._request = request
        self._lock = threading.Lock()  # messages are queued in the order in which they are sent under it
        self._is_over = threading.Event()
        self._is_shown = False
        threading.Thread(target=self._tick, name="progress", daemon=True).start()

    def _tick(self) -> None:
        began, transient = time.monotonic(), {"display_id": uuid.uuid4().hex}
        pause_s = _AFTER_S
        while not self._is_over.wait(pause_s):
            text = f"⏳ {current() or 'running'} · {time.monotonic() - began:.0f} s"
            content = {"data": {"text/plain": text}, "metadata": {}, "transient": transient}
            with self._lock:
                if not self._is_over.is_set():
                    self._publish("update_display_data" if self._is_shown else "display_data", content, self._request)
                    self._is_shown = True
            pause_s = _EVERY_S

    def remove(self) -> None:
        """Take the line away, for good."""
        with self._lock:
            if self._is_shown and not self._is_over.is_set():
                self._publish("clear_output", {"wait": False}, self._request)
            self._is_over.set()


_cells: _Cells | None = None

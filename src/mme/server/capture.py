"""Decides how what a process prints becomes records: a line each, a traceback with its lines as one."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

_READ_BYTES = 1 << 16
_MAX_RECORD_CHARS = 1 << 16  # what is longer is cut, so that a process that never ends a line costs no memory
_TRACEBACK = "Traceback (most recent call last):"
_LINKS = ("During handling of the above exception", "The above exception was the direct cause")


class Capture:
    """Reads a pipe's end as long as something writes to the other, and gives each record to `on_record`."""

    def __init__(self, fd: int, on_record: Callable[[str], None]) -> None:
        """Takes over the descriptor; to be called in the event loop's thread."""
        os.set_blocking(fd, False)
        self._fd = fd
        self._on_record = on_record
        self._rest = b""
        self._records = Records()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(fd, self._read)

    def close(self) -> None:
        """Give on what there is, and let the descriptor go; may be called twice."""
        if self._fd < 0:
            return
        try:
            while data := os.read(self._fd, _READ_BYTES):
                self._take(data)
        except BlockingIOError:
            pass  # no more for now, and now is all there is
        self._end()

    def _read(self) -> None:
        data = os.read(self._fd, _READ_BYTES)
        if data:
            self._take(data)
        else:
            self._end()

    def _take(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _MAX_RECORD_CHARS:
            lines.append(self._rest)
            self._rest = b""
        for record in self._records.take([line.decode("utf-8", "replace") for line in lines]):
            self._on_record(record)

    def _end(self) -> None:
        self._loop.remove_reader(self._fd)
        os.close(self._fd)
        self._fd = -1
        last = [self._rest.decode("utf-8", "replace")] if self._rest else []
        self._rest = b""
        for record in [*self._records.take(last), *self._records.end()]:
            self._on_record(record)


class Records:
    """Joins lines to records: a traceback is one with its lines and the log line that announces it."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._chars = 0  # in them
        self._is_open = False  # a traceback has begun, and its last line, the error's, hasn't come

    def take(self, lines: list[str]) -> list[str]:
        """The records that these lines complete; those of a traceback wait for its end, if it isn't too long."""
        found: list[str] = []
        for line in lines:
            is_link = not line or line.startswith(_LINKS)
            if self._is_open:
                self._is_open = is_link or line[0].isspace() or line == _TRACEBACK
            elif line == _TRACEBACK:
                if self._lines and not self._lines[-1].startswith("ERROR::"):
                    found += self.end()
                self._is_open = True
            elif len(self._lines) > 1 and is_link:
                self._is_open = True  # one error led to another
            else:
                found += self.end()
            self._lines.append(line)
            self._chars += len(line) + 1
            if self._chars > _MAX_RECORD_CHARS:
                found += self.end()
        return found if self._is_open else found + self.end()

    def end(self) -> list[str]:
        """What is left as a record."""
        record = "\n".join(self._lines)
        self._lines, self._chars, self._is_open = [], 0, False
        return [record.rstrip("\r\n")[:_MAX_RECORD_CHARS]] if record else []

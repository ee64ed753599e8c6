"""Decides where a record of a container's log begins and ends: at a line that isn't indented."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

_LONGEST_RECORD = 256 * 1024  # bytes; CloudWatch Logs takes no longer event
_CONTINUATION_S = 0.2  # a record waits so long for lines that continue it


class Output:
    """What a process writes. Not asyncio's own pipe: with that one a process has not exited while another, that it
    started and left behind, holds the pipe open."""

    def __init__(self, lines: asyncio.StreamReader, transport: asyncio.ReadTransport) -> None:
        self.lines = lines
        self.close = transport.close

    @classmethod
    async def open(cls) -> tuple[Output, int]:
        """The output, and the descriptor to be given to the process and then closed."""
        lines = asyncio.StreamReader()
        read_end, write_end = os.pipe()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(lines), open(read_end, "rb", buffering=0)
        )
        return cls(lines, transport), write_end


class Records:
    """Cuts a stream into records and hands each to `on_record`; each line goes to `on_line` first."""

    def __init__(self, on_record: Callable[[str], None], on_line: Callable[[bytes], None]) -> None:
        self._on_record = on_record
        self._on_line = on_line
        self._record = bytearray()  # lines of one that may go on

    async def read(self, stream: asyncio.StreamReader) -> None:
        """Returns at the stream's end."""
        rest = b""
        while True:
            try:
                async with asyncio.timeout(_CONTINUATION_S if self._record else None):
                    chunk = await stream.read(64 * 1024)
            except TimeoutError:
                self._end_record()
                continue
            if not chunk:
                break
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > _LONGEST_RECORD:
                lines, rest = [*lines, rest], b""
            for line in lines:
                self._take_line(line)
        if rest:
            self._take_line(rest)
        self._end_record()

    def _take_line(self, line: bytes) -> None:
        self._on_line(line)
        if not line.startswith((b" ", b"\t")) or len(self._record) + len(line) > _LONGEST_RECORD:
            self._end_record()
        self._record += line.rstrip(b"\r") + b"\n"

    def _end_record(self) -> None:
        """Hand over the record that no further line continues."""
        if self._record:
            self._on_record(bytes(self._record[:-1]).decode(errors="replace"))
            self._record.clear()

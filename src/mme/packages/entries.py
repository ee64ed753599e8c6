"""Decides what may be in an archive: reads it entry by entry in bounded memory and refuses the rest by name."""

from __future__ import annotations

import os
import tarfile
import unicodedata
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from mme.packages.errors import PackageNotFound, PackageRefused

_BLOCK = tarfile.BLOCKSIZE
_READ_BYTES = 128 * 1024  # compressed bytes held at once
_PIECE_BYTES = 512 * 1024  # inflated bytes held at once
_EXTENSION_BYTES = 64 * 1024  # a pax header or GNU long name; Linux allows paths of 4 kB
_PADDING_BYTES = 2**20  # empty blocks at the end; tar's own default is 10 kB
_NAME_BYTES, _PART_BYTES, _DEPTH = 1024, 255, 32  # what every file system we know takes

_REFUSED_TYPES = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a character device",
    tarfile.BLKTYPE: "a block device",
    tarfile.FIFOTYPE: "a FIFO",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}
_FILE_TYPES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)


@dataclass(frozen=True)
class Limits:
    """What an archive may grow to: the bytes of its files when unpacked, and how many files and folders they are."""

    size_bytes: int = 8 * 2**30
    count: int = 10_000


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True)
class Entry:
    """A file or folder of an archive. Its name is relative, normalised and safe to join to a folder."""

    name: str
    is_folder: bool
    size_bytes: int
    is_executable: bool


def check_name(name: str) -> str:
    """The normalised form of an entry's name, or ValueError saying why no package may use it."""
    try:
        size_bytes = len(name.encode())
    except UnicodeEncodeError:
        raise ValueError("is not UTF-8") from None
    if any(unicodedata.category(character) == "Cc" for character in name):
        raise ValueError("holds a control character")
    if "\\" in name:
        raise ValueError("holds a backslash")
    if name.startswith("/"):
        raise ValueError("is an absolute path")
    if size_bytes > _NAME_BYTES:
        raise ValueError(f"is {size_bytes} bytes long, more than {_NAME_BYTES}")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise ValueError("leaves its folder")
    if len(parts) > _DEPTH:
        raise ValueError(f"is {len(parts)} folders deep, more than {_DEPTH}")
    if any(len(part.encode()) > _PART_BYTES for part in parts):
        raise ValueError(f"has a part longer than {_PART_BYTES} bytes")
    return "/".join(parts)


class Names:
    """Refuses a name that would overwrite another one, also on a file system that ignores case or Unicode forms."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[str, bool]] = {}

    def add(self, name: str, is_folder: bool) -> None:
        """Take the name and the folders above it; ValueError says what it collides with."""
        parts = name.split("/")
        for depth in range(1, len(parts)):
            above = "/".join(parts[:depth])
            if self._same(above) is False:
                raise ValueError(f'lies in "{above}", which is a file')
            self._known[_folded(above)] = (above, True)
        known_as_folder = self._same(name)
        if known_as_folder is False and not is_folder:
            raise ValueError("is there twice")
        if known_as_folder is not None and known_as_folder != is_folder:
            raise ValueError("is both a file and a folder")
        self._known[_folded(name)] = (name, is_folder)

    def _same(self, path: str) -> bool | None:
        """Whether the path is known as a folder, or None when it is new."""
        known, is_folder = self._known.get(_folded(path), (path, None))
        if known != path:
            raise ValueError(f'differs from "{known}" in letter case or Unicode form only')
        return is_folder


def _folded(path: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


def _state(file: BinaryIO) -> tuple[int, int, int]:
    """What changes when a file is written to; the last of it can't be set back."""
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


class Archive:
    """A `.tar.gz` open for one pass. Reads each byte once and holds less than a megabyte of it.

    Iterating gives the entries in order; `pieces()` gives the bytes of the file that was given last.
    Raises PackageRefused for what a package may not hold or exceed, and when the file turns out to be
    truncated, damaged, followed by something, not a gzipped tar at all, or changed while it was read.
    """

    def __init__(self, path: Path, limits: Limits = DEFAULT_LIMITS) -> None:
        self._path, self._limits = path, limits
        try:
            self._file: BinaryIO = path.open("rb")
        except (FileNotFoundError, IsADirectoryError):
            raise PackageNotFound(f"no model package at {path.name}; build one with packages.build") from None
        self._before = _state(self._file)
        self._gzip = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        self._inflated = b""
        self._offset = 0
        self._inflated_bytes = 0
        # Headers, padding and names come on top of what the files themselves may hold.
        self._inflated_limit = limits.size_bytes + limits.count * 8 * _BLOCK + 2**20
        self._left_of_file = self._padding = 0

    def __enter__(self) -> Archive:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[Entry]:
        names, size_bytes, count = Names(), 0, 0
        while (entry := self._next_entry()) is not None:
            count += 1
            size_bytes += entry.size_bytes
            if count > self._limits.count:
                raise self._refused(f"it holds more than {self._limits.count} entries")
            if size_bytes > self._limits.size_bytes:
                raise self._refused(f"its files are larger than {self._limits.size_bytes} bytes when unpacked")
            if not entry.name:
                if entry.is_folder:
                    continue  # "./", as `tar -C folder .` writes it
                raise self._refused("an entry has no name")
            try:
                names.add(entry.name, entry.is_folder)
            except ValueError as error:
                raise self._refused_entry(entry.name, str(error)) from None
            self._left_of_file, self._padding = entry.size_bytes, -entry.size_bytes % _BLOCK
            yield entry
            for _ in self.pieces():
                pass
        self._finish()

    def pieces(self) -> Iterator[bytes]:
        """The bytes of the entry that iteration gave last, piece by piece."""
        while self._left_of_file:
            piece = self._some(min(self._left_of_file, _PIECE_BYTES))
            self._left_of_file -= len(piece)
            yield piece
        padding, self._padding = self._padding, 0
        self._exactly(padding)

    def _next_entry(self) -> Entry | None:
        name: str | None = None
        size_bytes: int | None = None
        while True:
            block = self._exactly(_BLOCK)
            if not any(block):
                return None
            try:
                header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            except tarfile.HeaderError as error:
                raise self._refused(f"it is not a tar inside the gzip, or damaged ({error})") from None
            if header.type == tarfile.GNUTYPE_LONGNAME:
                name = self._extension(header).rstrip(b"\0").decode("utf-8", "surrogateescape")
            elif header.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE):
                fields = self._pax_fields(header)
                if header.type == tarfile.XGLTYPE and fields.keys() & {"path", "size", "linkpath"}:
                    raise self._refused("a global header gives every entry the same name or size")
                name = fields.get("path", name)
                if "size" in fields:
                    size_bytes = self._pax_size(fields["size"])
                if any(key.startswith("GNU.sparse") for key in fields):
                    raise self._refused_entry(name or "?", "is a sparse file; pack it without --sparse")
            else:
                return self._entry(header, name or header.name, header.size if size_bytes is None else size_bytes)

    def _entry(self, header: tarfile.TarInfo, raw_name: str, size_bytes: int) -> Entry:
        try:
            name = check_name(raw_name)
        except ValueError as error:
            raise self._refused_entry(raw_name, str(error)) from None
        is_folder = header.type == tarfile.DIRTYPE or (header.type == tarfile.AREGTYPE and raw_name.endswith("/"))
        if not is_folder and header.type not in _FILE_TYPES:
            kind = _REFUSED_TYPES.get(header.type, f"of the unknown type {header.type!r}")
            raise self._refused_entry(name, f"is {kind}; a package holds plain files and folders only")
        if header.mode & 0o7000:
            raise self._refused_entry(name, f"has the mode {header.mode & 0o7777:o} (setuid, setgid or sticky)")
        if size_bytes < 0:
            raise self._refused_entry(name, f"claims a size of {size_bytes} bytes")
        return Entry(name, is_folder, 0 if is_folder else size_bytes, bool(header.mode & 0o100))

    def _extension(self, header: tarfile.TarInfo) -> bytes:
        if not 0 <= header.size <= _EXTENSION_BYTES:
            raise self._refused(f"a header of {header.size} bytes is more than {_EXTENSION_BYTES}")
        return self._exactly(header.size + -header.size % _BLOCK)[: header.size]

    def _pax_fields(self, header: tarfile.TarInfo) -> dict[str, str]:
        """Records of "<length> <key>=<value>\\n", see POSIX's pax."""
        data, fields = self._extension(header), {}
        while data:
            digits, _, _ = data.partition(b" ")
            length = int(digits) if digits.isdigit() and len(digits) < 7 else 0
            record = data[len(digits) + 1 : length]
            key, equals, value = record.partition(b"=")
            if length > len(data) or not equals or not value.endswith(b"\n"):
                raise self._refused("a pax header is malformed")
            fields[key.decode("utf-8", "surrogateescape")] = value[:-1].decode("utf-8", "surrogateescape")
            data = data[length:]
        return fields

    def _pax_size(self, text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) < 20):
            raise self._refused(f"a pax header gives the size {text[:30]!r}")
        return int(text)

    def _finish(self) -> None:
        """After the first empty block: the second one, padding, the gzip's end, and then nothing."""
        self._inflated_limit = min(self._inflated_limit, self._inflated_bytes + _PADDING_BYTES)
        rest = self._exactly(_BLOCK)
        while not rest.strip(b"\0"):
            if self._offset == len(self._inflated):
                if self._gzip.eof:
                    break
                self._inflate()
            rest = self._take(_PIECE_BYTES)
        if rest.strip(b"\0") or self._gzip.unused_data or self._file.read(1):
            raise self._refused("there is more after its end; it was concatenated or tampered with")
        if _state(self._file) != self._before:
            raise self._refused("it changed while it was read; try again when its writer is done")

    def _exactly(self, size_bytes: int) -> bytes:
        """Only for what is small: a header and its padding."""
        pieces = b""
        while len(pieces) < size_bytes:
            pieces += self._some(size_bytes - len(pieces))
        return pieces

    def _some(self, size_bytes: int) -> bytes:
        """At least one and at most `size_bytes` bytes; refuses where the archive ends."""
        while self._offset == len(self._inflated):
            if self._gzip.eof:
                raise self._refused("it ends in the middle; it is truncated")
            self._inflate()
        return self._take(size_bytes)

    def _take(self, size_bytes: int) -> bytes:
        piece = self._inflated[self._offset : self._offset + size_bytes]
        self._offset += len(piece)
        return piece

    def _inflate(self) -> None:
        compressed = self._gzip.unconsumed_tail or self._file.read(_READ_BYTES)
        if not compressed:
            raise self._refused("it ends in the middle; it is truncated, or empty")
        try:
            self._inflated, self._offset = self._gzip.decompress(compressed, _PIECE_BYTES), 0
        except zlib.error as error:
            raise self._refused(f"it is not a gzip file, or damaged ({error}); pack it as .tar.gz") from None
        self._inflated_bytes += len(self._inflated)
        if self._inflated_bytes > self._inflated_limit:
            raise self._refused(f"it inflates to more than {self._inflated_limit} bytes")

    def _refused(self, why: str) -> PackageRefused:
        return PackageRefused(f'model package "{self._path.name}" is refused: {why}')

    def _refused_entry(self, name: str, why: str) -> PackageRefused:
        shown = ascii(name if len(name) <= 80 else name[:77] + "...")[1:-1]
        return self._refused(f'the entry "{shown}" {why}')

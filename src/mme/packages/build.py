"""Decides the bytes of an archive: the same files give the same bytes, whoever builds it, when and where."""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import tarfile
import tempfile
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from mme.packages.errors import CannotBuild
from mme.packages.layout import MANIFEST, Manifest, files
from mme.packages.libraries import add_libraries
from mme.packages.models import Format, convert_model
from mme.progress import Step, waiting
from mme.scratch import scratch

_MTIME = 315_532_800  # 1 January 1980: the earliest that every tool can show
_PIECE_BYTES = 2**20
_SAMPLE_BYTES = 2**18
_RECORD_BYTES = tarfile.RECORDSIZE  # tar fills its last record


def build(
    folder: Path,
    archive: Path,
    libraries: Iterable[str] = (),
    *,
    fork_server: bool = False,
    preload: Sequence[str] = (),
) -> Manifest:
    """Pack a folder as a model package and return its manifest, which the archive holds as manifest.json.

    Names are sorted, times fixed, owners and groups 0, modes 0644 (0755 for what its owner may execute; this
    also opens the 0600 that safetensors writes), the gzip header empty. Files that hardly compress, such as
    weights, are stored. `libraries` adds distributions to those that the handler imports or requires.
    With `fork_server` DJL Serving's own workers of this package are forked from an interpreter that has imported the
    modules named by `preload` (docs/fork-served-packages.md); a server that forks already takes no notice.
    The archive appears whole or not at all. Raises CannotBuild for links, special files, odd names, an archive that
    is a folder or would lie in its own, and when a file changes meanwhile; ValueError for a `preload` without fork
    server or that doesn't name modules.
    """
    traveller = _fork_server(preload) if fork_server else {}
    if preload and not fork_server:
        raise ValueError(f"preload={list(preload)} is for the fork server; give fork_server=True with it")
    _check_place(folder, archive)
    manifest = Manifest.of(folder, libraries)
    if taken := sorted(traveller.keys() & manifest.files.keys()):
        raise CannotBuild(f'the folder has a file "{taken[0]}", which the fork server needs for itself; rename it')
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in traveller.items()}
    manifest = replace(manifest, files={**manifest.files, **hashes})
    archive.parent.mkdir(parents=True, exist_ok=True)
    handle, partial_name = tempfile.mkstemp(prefix=f".{archive.name}.", dir=archive.parent)
    partial = Path(partial_name)
    try:
        members = {**files(folder), **traveller, MANIFEST: manifest.to_json()}
        with os.fdopen(handle, "wb") as file, waiting(f"packing {archive.name}", _size(members), is_bytes=True) as step:
            _write(_Gzip(file, step), members, manifest)
        partial.chmod(0o644)
        partial.replace(archive)
    except BaseException:
        partial.unlink()
        raise
    return manifest


def pack(
    folder: Path,
    archive: Path,
    *,
    format: Format | None = None,
    trusted: Collection[str] = (),
    lib: Iterable[str] = (),
) -> Manifest:
    """Build an archive from a copy of the folder, its model.joblib written in another format or with a lib/.

    `format` and `trusted` are those of `save_model`, `lib` the pinned requirements of `add_libraries`. The
    folder stays as it is. Raises as these and `build` do.
    """
    _check_place(folder, archive)
    with scratch() as place:
        copy = place / folder.resolve().name
        for name, path in files(folder).items():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy / name)
        if format is not None:
            convert_model(copy, format, trusted)
        if wanted := list(lib):
            add_libraries(copy, wanted)
        return build(copy, archive)


def _check_place(folder: Path, archive: Path) -> None:
    name = f"{folder.resolve().name}.tar.gz"
    if archive.is_dir():
        raise CannotBuild(f"{archive} is a folder; name the archive in it: {archive / name}")
    if archive.resolve().is_relative_to(folder.resolve()):
        raise CannotBuild(f"{archive.name} lies in the folder it is built from; write it beside the folder")


def _fork_server(preload: Sequence[str]) -> dict[str, bytes]:
    """The files that turn a package's workers on DJL Serving into forks of a warm interpreter."""
    odd = [name for name in preload if not all(part.isidentifier() for part in name.split("."))]
    if isinstance(preload, str) or not preload or odd:
        raise ValueError(
            f"preload={preload!r} doesn't list modules to import before the fork, "
            'such as ["numpy", "sklearn.linear_model", "joblib"]'
        )
    # Read, not imported: it is as much a file of the package's as any other.
    return {
        "sitecustomize.py": (Path(__file__).parents[1] / "forkserver.py").read_bytes(),
        "preload.txt": "".join(f"{name}\n" for name in preload).encode(),
    }


def _size(members: Mapping[str, Path | bytes]) -> int:
    return sum(len(each) if isinstance(each, bytes) else each.stat().st_size for each in members.values())


def _write(output: _Gzip, members: Mapping[str, Path | bytes], manifest: Manifest) -> None:
    for name, source in sorted(members.items()):
        if isinstance(source, bytes):
            output.write(_header(name, len(source), 0o644))
            _fill(output, source)
        else:
            _write_file(output, name, source, manifest.files.get(name))
    output.write(bytes(2 * tarfile.BLOCKSIZE))
    output.write(bytes(-output.size_bytes % _RECORD_BYTES))
    output.close()


def _write_file(output: _Gzip, name: str, path: Path, sha256: str | None) -> None:
    status = path.stat()
    output.write(_header(name, status.st_size, 0o755 if status.st_mode & 0o100 else 0o644))
    digest, left = hashlib.sha256(), status.st_size
    output.compress(_compresses(path, status.st_size))
    with path.open("rb") as file:
        while piece := file.read(min(_PIECE_BYTES, left)):
            digest.update(piece)
            output.write(piece)
            left -= len(piece)
    output.compress(True)
    if digest.hexdigest() != sha256:
        raise CannotBuild(f'"{name}" changed while it was packed; build again when its writer is done')
    output.write(bytes(-status.st_size % tarfile.BLOCKSIZE))


def _fill(output: _Gzip, data: bytes) -> None:
    output.write(data)
    output.write(bytes(-len(data) % tarfile.BLOCKSIZE))


def _header(name: str, size_bytes: int, mode: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size_bytes, mode, _MTIME
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


def _compresses(path: Path, size_bytes: int) -> bool:
    """Whether a sample from the middle shrinks by a tenth and more; weights of neural networks don't."""
    with path.open("rb") as file:
        file.seek(max(0, size_bytes // 2 - _SAMPLE_BYTES // 2))
        sample = file.read(_SAMPLE_BYTES)
    return len(zlib.compress(sample, 1)) < 0.9 * len(sample)


class _Gzip:
    """A gzip file without name and time (RFC 1952) in which some stretches are stored and others compressed.

    A full flush ends a deflate stream on a byte with nothing to refer back to, so that another can follow in the same
    member.
    """

    def __init__(self, file: BinaryIO, step: Step) -> None:
        self._file, self._crc, self.size_bytes = file, 0, 0
        self._step = step
        self._is_compressing = True
        self._deflate = self._new_deflate()
        file.write(b"\x1f\x8b\x08\0\0\0\0\0\0\xff")

    def compress(self, is_compressing: bool) -> None:
        if is_compressing != self._is_compressing:
            self._file.write(self._deflate.flush(zlib.Z_FULL_FLUSH))
            self._is_compressing = is_compressing
            self._deflate = self._new_deflate()

    def write(self, data: bytes) -> None:
        self._crc = zlib.crc32(data, self._crc)
        self.size_bytes += len(data)
        self._step.advance(len(data))
        self._file.write(self._deflate.compress(data))

    def close(self) -> None:
        self._file.write(self._deflate.flush(zlib.Z_FINISH))
        self._file.write(struct.pack("<II", self._crc, self.size_bytes & 0xFFFFFFFF))

    def _new_deflate(self) -> zlib._Compress:
        return zlib.compressobj(6 if self._is_compressing else 0, zlib.DEFLATED, -zlib.MAX_WBITS)

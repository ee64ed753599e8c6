"""Decides how an archive lands on a disk: beside its place first, and in it only when all of it is sound."""

from __future__ import annotations

import hashlib
import shutil
import stat
import tempfile
from collections.abc import Collection
from functools import lru_cache
from pathlib import Path

from mme.packages.entries import DEFAULT_LIMITS, Archive, Limits, check_name
from mme.packages.errors import PackageError, PackageNotFound, PackageRefused
from mme.packages.layout import EXAMPLES, MANIFEST, PROPERTIES, REQUIREMENTS, Manifest, sha256

# Changes when the same archive would unpack to something else; part of the key of whoever keeps unpacked packages.
UNPACKER_VERSION = 1

# A process that dies while it unpacks leaves a folder of this suffix beside the one it was to become.
PARTIAL_SUFFIX = ".unpacking"


def unpack(archive: Path, folder: Path, limits: Limits = DEFAULT_LIMITS) -> list[str]:
    """Unpack a model package into a new folder and return the names of its files.

    Nothing is written outside a temporary folder beside `folder`; that becomes `folder` when every entry was
    allowed and every file is what the package's manifest says, and is removed otherwise. Holds less than
    a megabyte of the package, and lets other threads run, so an event loop can call it by asyncio.to_thread.
    Raises PackageRefused for what could do harm, is damaged or exceeds the limits, PackageError
    when `folder` already holds something.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(suffix=PARTIAL_SUFFIX, prefix=f".{folder.name[:100]}.", dir=folder.parent))
    try:
        hashes = _write(archive, partial, limits)
        _verify(archive, partial, hashes)
        partial.chmod(0o755)
        try:
            partial.rename(folder)
        except OSError as error:
            raise PackageError(f"{folder.name} can't become a package's folder: {error.strerror}; remove it") from None
    except BaseException:
        shutil.rmtree(partial)
        raise
    return sorted(hashes)


def names(archive: Path, limits: Limits = DEFAULT_LIMITS) -> list[str]:
    """The names of the files in a model package, sorted; raises PackageRefused as `unpack` does."""
    with Archive(archive, limits) as opened:
        return sorted(entry.name for entry in opened if not entry.is_folder)


def read(package: Path, wanted: Collection[str], limits: Limits = DEFAULT_LIMITS) -> dict[str, bytes]:
    """Those of the wanted small files that a package, an archive or a folder, has at its top level.

    Of an archive it reads as far as it must: what is behind the last wanted file isn't looked at.
    """
    if package.is_dir():
        paths = {name: package / name for name in wanted if (package / name).is_file()}
        for name, path in paths.items():
            _check_small(package, name, path.stat().st_size)
        return {name: path.read_bytes() for name, path in paths.items()}
    found: dict[str, bytes] = {}
    with Archive(package, limits) as opened:
        for entry in opened:
            if entry.name in wanted and not entry.is_folder:
                _check_small(package, entry.name, entry.size_bytes)
                found[entry.name] = b"".join(opened.pieces())
                if len(found) == len(wanted):
                    break
    return found


def describe(package: Path) -> Manifest:
    """A package's manifest: of an archive what was written at its build, of a folder what its build would write."""
    if package.is_dir():
        return Manifest.of(package)
    text = read(package, [MANIFEST]).get(MANIFEST)
    if text is None:
        raise PackageNotFound(f"{package.name} holds no {MANIFEST}; build it with packages.build")
    return Manifest.from_json(text)


def verify(folder: Path) -> None:
    """Compare an unpacked package's files with its manifest; what was compared before isn't read again while its
    name, size, inode and time of change are the same.

    Raises PackageRefused naming files that are missing or other than the manifest says. Further files are allowed:
    Python and handlers write into their folder. A package without a manifest has nothing to be compared with.
    """
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return
    expected = Manifest.from_json(manifest.read_bytes()).files
    wrong = [name for name, digest in sorted(expected.items()) if not _is(folder, name, digest)]
    if wrong:
        raise PackageRefused(
            f"{', '.join(wrong[:5])} {'is' if len(wrong) == 1 else 'are'} not what {MANIFEST} says; "
            "unpack the package again"
        )


def _is(folder: Path, name: str, digest: str) -> bool:
    """Whether the folder has a plain file of this name with this SHA-256."""
    try:
        path = folder / check_name(name)
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            return False
        return _digest(path, (status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns)) == digest
    except (OSError, ValueError):
        return False


@lru_cache(maxsize=20_000)
def _digest(path: Path, unchanged: tuple[int, ...]) -> str:
    return sha256(path)


_READ_WHOLE = {EXAMPLES, MANIFEST, PROPERTIES, REQUIREMENTS}  # by the server or a check, which hold them in memory
_SMALL_BYTES = 16 * 2**20  # settings, manifests and golden calls are a few kB


def _check_small(package: Path, name: str, size_bytes: int) -> None:
    if size_bytes > _SMALL_BYTES:
        raise PackageRefused(f'"{name}" in {package.name} is larger than {_SMALL_BYTES} bytes; make it smaller')


def _write(archive: Path, folder: Path, limits: Limits) -> dict[str, str]:
    hashes: dict[str, str] = {}
    with Archive(archive, limits) as opened:
        for entry in opened:
            path = folder / entry.name
            if entry.is_folder:
                path.mkdir(parents=True, exist_ok=True)
                continue
            if entry.name in _READ_WHOLE:
                _check_small(archive, entry.name, entry.size_bytes)
            path.parent.mkdir(parents=True, exist_ok=True)
            digest = hashlib.sha256()
            with path.open("xb") as file:
                for piece in opened.pieces():
                    digest.update(piece)
                    file.write(piece)
            path.chmod(0o755 if entry.is_executable else 0o644)
            hashes[entry.name] = digest.hexdigest()
    return hashes


def _verify(archive: Path, folder: Path, hashes: dict[str, str]) -> None:
    if MANIFEST not in hashes:
        return  # packed by other means; allowed, as DJL Serving allows it
    expected = Manifest.from_json((folder / MANIFEST).read_bytes()).files
    actual = {name: digest for name, digest in hashes.items() if name != MANIFEST}
    wrong = sorted(name for name in expected.keys() | actual.keys() if expected.get(name) != actual.get(name))
    if wrong:
        raise PackageRefused(
            f'model package "{archive.name}" is refused: {", ".join(wrong[:5])} '
            f"is not what {MANIFEST} says; build the package again"
        )

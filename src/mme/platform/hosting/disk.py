"""Decides how packages lie on an instance's disk: fetched beside, verified, unpacked, then renamed into place.

models/<id>/model/      what the container is given
models/<id>/key.json    which package that is: S3's ETag and size, the unpacker's version, the target model
models/.new-*           one that is arriving; models/.old-* one that is leaving
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

from mme.packages import UNPACKER_VERSION, Limits, PackageError, unpack
from mme.platform.hosting.plans import DiskFull, PackageUnusable, StoreUnavailable
from mme.platform.hosting.store import PackageStore, PackageVersion, S3Url

_DOWNLOAD_ATTEMPTS = 3  # a broken connection is no reason to fail a call

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class DiskKey:
    """Which package an unpacked folder came from. A cached folder is used only while this is unchanged."""

    etag: str
    size_bytes: int
    unpacker: int
    url: str
    target: str
    unpacked_bytes: int

    def is_of(self, version: PackageVersion) -> bool:
        return (self.etag, self.size_bytes, self.unpacker) == (version.etag, version.size_bytes, UNPACKER_VERSION)


class Disk:
    """The packages of one instance. Only one call at a time may be made for one id."""

    def __init__(self, folder: Path, store: PackageStore) -> None:
        self._folder = folder
        self._store = store

    def model_folder(self, model_id: str) -> Path:
        return self._folder / model_id / "model"

    def scan(self) -> dict[str, DiskKey]:
        """What an earlier run left whole, by id; everything else is removed. Blocks: not for the event loop."""
        self._folder.mkdir(parents=True, exist_ok=True)
        found: dict[str, DiskKey] = {}
        for folder in self._folder.iterdir():
            try:
                key = DiskKey(**json.loads((folder / "key.json").read_text()))
            except (OSError, ValueError, TypeError):
                shutil.rmtree(folder, ignore_errors=True)
                continue
            if folder.name.startswith(".") or key.unpacker != UNPACKER_VERSION:
                shutil.rmtree(folder, ignore_errors=True)
            else:
                found[folder.name] = key
        return found

    async def fetch(
        self,
        model_id: str,
        target: str,
        at: S3Url,
        *,
        reserve: Callable[[int], Awaitable[None]],
        on_downloaded: Callable[[], None] = lambda: None,
    ) -> DiskKey:
        """Bring the package from S3 into place, in the stead of what was there.

        Awaits `reserve` with the bytes it is about to take up, first for the archive, then for its files too, and
        takes no more. Raises PackageMissing, StoreUnavailable, PackageUnusable, DiskFull, and what `reserve` raises.
        """
        new = Path(await _to_its_end(tempfile.mkdtemp, prefix=".new-", dir=self._folder))
        archive = new / "package.tar.gz"
        try:
            expected = await self._store.version(at)
            await reserve(expected.size_bytes)
            version = await self._download(at, archive, expected.size_bytes)
            on_downloaded()
            files_bytes = await asyncio.to_thread(_unpacked_bytes, archive)
            await reserve(version.size_bytes + files_bytes)
            return await _to_its_end(self._install, new, model_id, target, at, version, files_bytes)
        except PackageError as error:
            raise PackageUnusable(str(at), str(error)) from error
        except OSError as error:
            raise DiskFull(f"the instance's disk does not take {at}: {error.strerror or error}") from error
        finally:
            await _to_its_end(shutil.rmtree, new, ignore_errors=True)

    async def _download(self, at: S3Url, to: Path, limit_bytes: int) -> PackageVersion:
        for attempt in range(1, _DOWNLOAD_ATTEMPTS + 1):
            try:
                return await self._store.download(at, to, limit_bytes=limit_bytes)
            except StoreUnavailable:
                to.unlink(missing_ok=True)
                if attempt == _DOWNLOAD_ATTEMPTS:
                    raise
                await asyncio.sleep(0.1 * attempt)
        raise AssertionError("the last attempt returns or raises")

    def _install(
        self, new: Path, model_id: str, target: str, at: S3Url, version: PackageVersion, files_bytes: int
    ) -> DiskKey:
        archive, model = new / "package.tar.gz", new / "model"
        unpack(archive, model, limits=Limits(size_bytes=files_bytes))
        archive.unlink()
        unpacked_bytes = sum(file.stat().st_size for file in model.rglob("*") if file.is_file())
        key = DiskKey(version.etag, version.size_bytes, UNPACKER_VERSION, str(at), target, unpacked_bytes)
        (new / "key.json").write_text(json.dumps(asdict(key)))
        self._remove(model_id)
        os.rename(new, self._folder / model_id)
        return key

    async def remove(self, model_id: str) -> None:
        """Delete a package from the disk."""
        await _to_its_end(self._remove, model_id)

    def _remove(self, model_id: str) -> None:
        old = self._folder / f".old-{model_id}"
        try:
            os.rename(self._folder / model_id, old)
        except FileNotFoundError:
            return
        shutil.rmtree(old, ignore_errors=True)


async def _to_its_end(work: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
    """Do blocking work in a thread. It goes on when the caller is cancelled, so the caller waits for it even then."""
    thread = asyncio.ensure_future(asyncio.to_thread(work, *arguments, **options))
    try:
        return await asyncio.shield(thread)
    except asyncio.CancelledError:
        await asyncio.gather(thread, return_exceptions=True)
        raise


def _unpacked_bytes(archive: Path) -> int:
    """What an honest archive of less than 4 GiB unpacks to at most: the last four bytes of a gzip file (RFC 1952).

    One that says less than it holds is refused by the unpacker at that limit.
    """
    with archive.open("rb") as file:
        file.seek(max(0, archive.stat().st_size - 4))
        return int.from_bytes(file.read(4), "little")

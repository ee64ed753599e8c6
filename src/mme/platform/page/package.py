"""Decides what a viewer may read of one model: its package, its requirements, its examples, what it said last."""

from __future__ import annotations

import asyncio
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mme import packages
from mme.platform.hosting import Hosting, Instance, Variant
from mme.platform.hosting.disk import Disk
from mme.platform.hosting.logs import LOG_FILE
from mme.platform.hosting.models import Where, describe
from mme.platform.hosting.store import PackageVersion, S3Url
from mme.scratch import scratch

_SHOWN = ("serving.properties", "requirements.txt", "model.py")
_LIMIT_BYTES = 2 << 30  # of a package that is fetched to be looked into
_LOG_BYTES = 1 << 20  # of an instance's log that are looked through
_LOG_RECORDS = 40


async def look_into(hosting: Hosting, variant: Variant, instance: Instance, target: str) -> dict[str, Any]:
    """The package of a model, from an instance's disk where it is there, else from S3; what this instance says of it.

    Raises PackageMissing, StoreUnavailable, PackageError; ValueError for a package too large to be fetched for that.
    """
    folder = _on_disk(hosting, variant, target)
    prefix = S3Url.parse(variant.plan.model_data_url)
    at = prefix.join(target) if variant.plan.is_multi_model else prefix
    if folder is not None:
        found = await asyncio.to_thread(_read, folder)
    else:
        with scratch() as place:
            archive = place / "package.tar.gz"
            await hosting.packages.download(at, archive, limit_bytes=_LIMIT_BYTES)
            found = await asyncio.to_thread(_read, archive)
    version: PackageVersion = await hosting.packages.version(at)
    await instance.refresh()
    model = next((model for model in instance.cache.models if model.target == target), None)
    return {
        "url": str(at),
        "etag": version.etag,
        "size_bytes": version.size_bytes,
        "log": await asyncio.to_thread(_log_of, instance.folder / LOG_FILE, target),
        "workers": describe(model)["workers"] if model else [],
        **found,
    }


def _on_disk(hosting: Hosting, variant: Variant, target: str) -> Path | None:
    for instance in variant.instances:
        if not variant.plan.is_multi_model:
            return instance.folder / "single" / "0" / "model"
        for model in instance.cache.models:
            if model.target == target and model.key and model.where is not Where.DOWNLOADING:
                return Disk(instance.folder / "models", hosting.packages).model_folder(model.id)
    return None


def _log_of(file: Path, target: str) -> list[str]:
    """The newest records of an instance's log that name a model; all of them, where it has one model only."""
    with file.open("rb") as log:
        log.seek(max(0, file.stat().st_size - _LOG_BYTES))
        text = log.read().decode("utf-8", "replace")
    named = re.compile(rf"(?<![\w.-]){re.escape(target)}(?![\w.-])")
    records = re.split(r"\n(?!\s|$)", text.rstrip("\n"))
    return [record for record in records if not target or named.search(record)][-_LOG_RECORDS:]


def _read(package: Path) -> dict[str, Any]:
    if package.is_dir():
        names = sorted(str(file.relative_to(package)) for file in package.rglob("*") if file.is_file())
    else:
        names = packages.names(package)
    texts = packages.read(package, _SHOWN)
    return {
        "files": names,
        "texts": {name: texts[name].decode("utf-8", "replace") for name in _SHOWN if name in texts},
        "examples": [asdict(example) for example in packages.examples(package)],
    }

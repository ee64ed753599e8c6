"""Decides what a viewer may read of one model: its package, its requirements, its examples, what it said last."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mme import packages
from mme.platform.hosting import Hosting, Variant
from mme.platform.hosting.disk import Disk
from mme.platform.hosting.models import Where, describe
from mme.platform.hosting.store import PackageVersion, S3Url
from mme.scratch import scratch

_SHOWN = ("serving.properties", "requirements.txt", "model.py")
_LIMIT_BYTES = 2 << 30  # of a package that is fetched to be looked into


async def look_into(hosting: Hosting, variant: Variant, target: str) -> dict[str, Any]:
    """The package of a model, from an instance's disk where it is there, else from S3, and the instances' word of it.

    Raises PackageMissing, StoreUnavailable, PackageError; ValueError for a package too large to be fetched for that.
    """
    here = [model for one in variant.instances for model in one.cache.models if model.target == target]
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
    shown = [describe(model) for model in here]
    return {
        "url": str(at),
        "etag": version.etag,
        "size_bytes": version.size_bytes,
        "log": [line for model in shown for line in model["log"]],
        "workers": [worker for model in shown for worker in model["workers"]],
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

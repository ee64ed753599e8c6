"""Decides what a viewer is told: everything at first, then only what changed since."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

from mme.platform.hosting import Hosting, Instance, Variant
from mme.platform.hosting.models import Where
from mme.platform.hosting.plans import StoreUnavailable
from mme.platform.hosting.store import S3Url
from mme.platform.page.events import Recorder

_LOOK_S = 3.0  # between two questions to the containers and to S3, while anybody watches

Tile = list[Any]
"""Of a model on an instance: state, calls waiting or under way, workers, MB in memory, calls, hits, evictions,
milliseconds of a cold and of a warm call, and why it could not be loaded."""


Tiles = dict[str, dict[str, Tile]]
"""By the instance's id, and by target."""


class Sight:
    """What is asked of containers and S3 for the viewers, and the tiles made of it, once for all of them, and only
    while there are any."""

    def __init__(self, hosting: Hosting, recorder: Recorder) -> None:
        self._hosting = hosting
        self._recorder = recorder
        self._packages: dict[str, dict[str, int]] = {}
        self._tiles: Tiles | None = None
        self._viewers = 0
        self._looking: asyncio.Task[None] | None = None

    def __enter__(self) -> None:
        self._viewers += 1
        if self._looking is None:
            self._looking = asyncio.create_task(self._look())

    def __exit__(self, *_: object) -> None:
        self._viewers -= 1
        if self._viewers == 0 and self._looking is not None:
            self._looking.cancel()
            self._looking = self._tiles = None

    @property
    def viewers(self) -> int:
        return self._viewers

    def tiles(self, seen: Tiles | None) -> Tiles:
        """The newest tiles; made anew for a viewer that has seen those, and so by one viewer for all."""
        if self._tiles is None or self._tiles is seen:
            before = seen or {}
            self._tiles = {
                instance.id: self._tiles_of(endpoint.name, variant, instance, before.get(instance.id, {}))
                for endpoint in self._hosting.endpoints
                for variant in endpoint.variants.values()
                for instance in variant.instances
            }
        return self._tiles

    async def _look(self) -> None:
        while True:
            variants = [variant for endpoint in self._hosting.endpoints for variant in endpoint.variants.values()]
            prefixes = {variant.plan.model_data_url for variant in variants if variant.plan.is_multi_model}
            for prefix in prefixes:
                with contextlib.suppress(StoreUnavailable):  # what was listed before stays
                    self._packages[prefix] = await self._hosting.packages.targets(S3Url.parse(prefix))
            self._packages = {prefix: self._packages.get(prefix, {}) for prefix in prefixes}
            await self._hosting.refresh()
            await asyncio.sleep(_LOOK_S)

    def _tiles_of(
        self, endpoint_name: str, variant: Variant, instance: Instance, before: dict[str, Tile]
    ) -> dict[str, Tile]:
        def tile(target: str, state: str, in_use: int, figures: dict[str, Any], memory_mb: float | None) -> Tile:
            record = self._recorder.peek(endpoint_name, variant.plan.name, target)
            was = before.get(target)
            workers, waiting = len(figures.get("workers", ())), max(in_use, figures.get("queue", 0))
            latencies = record.latencies_ms() if was is None or record.calls != was[4] else was[7:9]
            return [
                "answering" if state == "memory" and in_use else state,
                *(waiting, workers, memory_mb, record.calls, record.hits, record.evictions),
                *latencies,
                record.trouble,
            ]

        if not variant.plan.is_multi_model:
            state = "loading" if instance.container is None else "memory"
            return {"": tile("", state, instance.in_flight, {}, None)}
        packages = self._packages.get(variant.plan.model_data_url, ())
        tiles = {target: tile(target, "s3", 0, {}, None) for target in packages}
        for model in instance.cache.models:
            if model.where is not Where.S3 or model.in_use:
                tiles[model.target] = tile(model.target, model.where, model.in_use, model.figures, model.memory_mb)
        return tiles


class Viewer:
    """What one browser knows, and so what it has to be told. A slow one is told less often, and misses nothing."""

    def __init__(self, hosting: Hosting, recorder: Recorder, sight: Sight) -> None:
        self._hosting = hosting
        self._recorder = recorder
        self._sight = sight
        self._fleet: list[dict[str, Any]] | None = None
        self._seen: Tiles | None = None
        self._told: Tiles = {}
        self._totals: dict[str, Any] = {}
        self._log_version = 0
        self._second = 0
        self._told_at = 0

    def changes(self) -> dict[str, Any]:
        """What this viewer has not been told yet; empty if that is nothing. A tile that is gone is null."""
        told: dict[str, Any] = {}
        fleet = [
            {"name": endpoint.name, "variants": [_variant(one) for one in endpoint.variants.values()]}
            for endpoint in self._hosting.endpoints
        ]
        if fleet != self._fleet:
            told["fleet"] = self._fleet = fleet
        self._seen = self._sight.tiles(self._seen)
        self._told = {key: self._told.get(key, {}) for key in self._seen}
        changed = {key: changes for key, now in self._seen.items() if (changes := _bring_up(self._told[key], now))}
        if changed:
            told["tiles"] = changed
        if totals := self._changed_totals():
            told["totals"] = totals
        if self._recorder.version != self._log_version:
            told["log"] = self._recorder.log_since(self._log_version)
            self._log_version = self._recorder.version
        now = int(time.time())
        if now != self._told_at:
            told["now"] = self._told_at = now
            seconds = self._recorder.seconds_since(self._second)
            if seconds:
                told["seconds"] = seconds
                self._second = seconds[-1][0]
        return told

    def _changed_totals(self) -> dict[str, Any]:
        figures = self._recorder.all
        cold_ms, warm_ms = figures.latencies_ms()
        totals = {
            "calls": figures.calls,
            "hits": figures.hits,
            "failed": figures.failed,
            "evictions": figures.evictions,
            "cold_ms": cold_ms,
            "warm_ms": warm_ms,
        }
        if totals == self._totals:
            return {}
        self._totals = totals
        return totals


def _variant(variant: Variant) -> dict[str, Any]:
    return {
        "name": variant.plan.name,
        "model": variant.plan.model_name,
        "is_multi_model": variant.plan.is_multi_model,
        "instance_type": variant.plan.instance_type,
        "weight": variant.weight,
        "url": variant.plan.model_data_url,
        "instances": [
            {
                "id": instance.id,
                "number": instance.number,
                "is_up": instance.container is not None,
                "budget_mb": instance.memory_mb,
                "used_mb": None if instance.memory_used_mb is None else round(instance.memory_used_mb),
                "disk_mb": round(instance.cache.disk_bytes / 2**20, 3),
            }
            for instance in variant.instances
        ],
    }


def _bring_up(told: dict[str, Tile], now: dict[str, Tile]) -> dict[str, Tile | None]:
    """Bring what was told of an instance up to now; returns what that changed. A model that was called meanwhile is
    told as answering once, however short its call was."""
    changed: dict[str, Tile | None] = {key: None for key in told if key not in now}
    for key in changed:
        del told[key]
    for key, tile in now.items():
        was = told.get(key)
        if was == tile:
            continue
        if was is not None and tile[0] == "memory" and tile[4] != was[4]:
            tile = ["answering", *tile[1:]]
        changed[key] = told[key] = tile
    return changed

"""Decides what is kept of what happens, and in which words: a log, figures for each model, and calls by the second."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import asdict, dataclass, field
from typing import Any

from mme.platform.hosting.happenings import Happening, Place

_LOG_ENTRIES = 200
_SECONDS = 120  # that calls are counted for
_LATENCIES = 64  # the newest ones, that a median is of
_MODELS = 10_000  # whose figures are kept, so that calls of names that don't exist fill no memory


@dataclass
class Entry:
    """A line of the log. The same line again, right behind it, is counted and not repeated."""

    number: int
    at: float
    kind: str
    text: str
    times: int = 1
    version: int = 0


@dataclass
class Figures:
    """What became of the calls of a model, or of all, since the platform started."""

    calls: int = 0
    hits: int = 0
    failed: int = 0
    evictions: int = 0
    trouble: str = ""
    """Why it could not be loaded when that was last tried."""
    cold_s: deque[float] = field(default_factory=lambda: deque(maxlen=_LATENCIES))
    warm_s: deque[float] = field(default_factory=lambda: deque(maxlen=_LATENCIES))

    def count(self, happening: Happening) -> None:
        self.calls += 1
        if happening.detail == "failed":
            self.failed += 1
        elif happening.detail == "hit":
            self.hits += 1
            self.warm_s.append(happening.seconds)
        else:
            self.cold_s.append(happening.seconds)

    def latencies_ms(self) -> tuple[float | None, float | None]:
        """The medians of the newest cold and warm calls."""
        return _median_ms(self.cold_s), _median_ms(self.warm_s)


_NOTHING_YET = Figures()


class Recorder:
    """Takes what happens as it does. Belongs to the platform's event loop."""

    def __init__(self) -> None:
        self.all = Figures()
        self.version = 0
        """Grows with each change of the log."""
        self._models: dict[tuple[str, str, str], Figures] = {}
        self._log: deque[Entry] = deque(maxlen=_LOG_ENTRIES)
        self._seconds: deque[list[int]] = deque(maxlen=_SECONDS)

    def __call__(self, place: Place, happening: Happening) -> None:
        """A Watch of hosting."""
        figures = self.of(place.endpoint, place.variant, happening.target)
        if happening.kind == "called":
            figures.count(happening)
            self.all.count(happening)
            self._second()[1 + ("hit", "miss", "failed").index(happening.detail)] += 1
        elif happening.kind == "evicted":
            figures.evictions += 1
            self.all.evictions += 1
        elif happening.kind == "loaded":
            figures.trouble = ""
        elif happening.kind == "failed":
            figures.trouble = happening.detail
        text = words(place, happening)
        if text:
            self._note(happening.kind, text)

    def of(self, endpoint: str, variant: str, target: str) -> Figures:
        key = (endpoint, variant, target)
        found = self._models.get(key)
        if found is None:
            if len(self._models) >= _MODELS:
                del self._models[next(iter(self._models))]
            found = self._models[key] = Figures()
        return found

    def peek(self, endpoint: str, variant: str, target: str) -> Figures:
        """Those of a model, to read and not to count in: nothing is kept of one that nothing has happened to."""
        return self._models.get((endpoint, variant, target), _NOTHING_YET)

    def log_since(self, version: int) -> list[dict[str, Any]]:
        """The entries that are new or counted again since then, the oldest first."""
        return [asdict(entry) for entry in self._log if entry.version > version]

    def seconds_since(self, second: int) -> list[list[int]]:
        """Those after `second` that are over and had calls: `[second, warm, cold, failed]`."""
        now = int(time.time())
        return [counts for counts in self._seconds if second < counts[0] < now]

    def _second(self) -> list[int]:
        now = int(time.time())
        if not self._seconds or self._seconds[-1][0] != now:
            self._seconds.append([now, 0, 0, 0])
        return self._seconds[-1]

    def _note(self, kind: str, text: str) -> None:
        self.version += 1
        last = self._log[-1] if self._log else None
        if last is not None and last.text == text:
            last.times += 1
        else:
            last = Entry(last.number + 1 if last else 1, time.time(), kind, text)
            self._log.append(last)
        last.at, last.version = time.time(), self.version


def words(place: Place, happening: Happening) -> str:
    """What happened, for people; nothing of a call that was answered."""
    kind, target, seconds, size_mb, detail = happening
    model = short(target) or "the model"
    match kind:
        case "called":
            return f"{model} answered a call with an error" if detail == "failed" else ""
        case "fetched":
            return f"fetched {model} from S3: {megabytes(size_mb)} in {duration(seconds)}"
        case "loaded":
            return f"loaded {model} in {duration(seconds)}"
        case "evicted":
            back = f", {megabytes(size_mb)} back" if size_mb else ""
            return f"evicted {model} for {short(detail)}: least recently used, {duration(seconds)} ago{back}"
        case "unloaded":
            return f"unloaded {model}: {detail}"
        case "removed":
            return f"removed {model} from the disk: least recently used, {duration(seconds)} ago"
        case "failed":
            return f"could not bring {model}: {detail}"
        case "replaced":
            return f"{place.endpoint}: the container of instance {place.instance} is replaced: {detail}"
        case "deployed":
            variant = f", variant {place.variant}," if place.variant else ""
            return f"endpoint {place.endpoint}{variant} is up: {detail}"
        case "deleted":
            return f"endpoint {place.endpoint} is gone"


def short(target: str) -> str:
    return target.removesuffix(".tar.gz")


def megabytes(size_mb: float | None) -> str:
    if size_mb is None:
        return "of unknown size"
    if size_mb < 0.1:
        return f"{1024 * size_mb:.0f} KB"
    return f"{size_mb:.1f} MB" if size_mb < 10 else f"{size_mb:.0f} MB"


def duration(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 60 else f"{seconds / 60:.0f} min"


def _median_ms(latencies_s: deque[float]) -> float | None:
    if not latencies_s:
        return None
    return round(1000 * sorted(latencies_s)[len(latencies_s) // 2], 1)

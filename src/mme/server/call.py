"""Decides what a handler sees of an HTTP request, and how its answer goes back, as DJL Serving's RequestParser does.

Headers become properties, in the order of their names; `X-Amzn-SageMaker-Custom-Attributes: k=v;k2=v2` becomes the
properties k and k2. The body is the content `data`; fields of a form and query parameters are contents too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import parse_qsl

from mme.server.errors import BadRequest, JavaFailure, ServerError
from mme.server.exchange import Exchange

_ATTRIBUTES = "x-amzn-sagemaker-custom-attributes"
_BOUNDARY = "boundary="


@dataclass
class Counters:
    """What a model's calls came to since it was loaded."""

    answers: dict[int, int] = field(default_factory=dict)
    latency_s: float = 0.0
    queued_s: float = 0.0
    crashes: int = 0

    def count(self, code: int, latency_s: float) -> None:
        self.answers[code] = self.answers.get(code, 0) + 1
        self.latency_s += latency_s


class Call:
    """One request on its way to a worker and back."""

    __slots__ = ("properties", "contents", "queued_at", "counters", "on_gone", "_exchange", "_is_streaming")

    def __init__(self, exchange: Exchange, query: Sequence[tuple[str, str]] = (), may_choose_handler: bool = False):
        """Raises BadRequest for a form that can't be read, and where the caller tries to choose the handler."""
        headers = [*exchange.headers, ("requestId", exchange.request_id)]
        names, values = zip(*headers, strict=True)
        layout = _layout(names)
        content_type = "" if layout.content_type is None else values[layout.content_type]
        if layout.has_attributes:
            names, values = zip(*_with_attributes(headers), strict=True)
            layout = _layout(names)
        if layout.has_handler and not may_choose_handler:
            raise BadRequest("The handler can't be overridden in a request")
        self.properties = {name: values[at] for name, at in layout.order}
        self.contents: list[tuple[str, bytes]] = [(key, value.encode()) for key, value in query]
        self.contents += _contents(content_type, exchange.body)
        self.queued_at = 0.0
        self.counters: Counters | None = None
        self.on_gone: Callable[[Call], None] | None = None
        self._is_streaming = False
        self._exchange = exchange
        exchange.on_gone = self._gone

    def wait(self, on_gone: Callable[[Call], None]) -> None:
        """The call is queued: `on_gone` takes it out if its client leaves."""
        self.on_gone = on_gone
        self._exchange.is_waiting = True

    def taken(self) -> None:
        """A worker has the call."""
        self.on_gone = None
        self._exchange.is_waiting = False

    @property
    def size_bytes(self) -> int:
        return sum(len(value) for _, value in self.contents)

    def answered(self, code: int, message: str, properties: Iterable[Sequence[str]], body: bytes | bytearray) -> None:
        """The handler's whole answer; code 200 always says OK, as DJL's does."""
        if not 200 <= code <= 999:
            self.failed(JavaFailure("IllegalArgumentException", f"code: {code} (expected: 200 to 999)"))
            return
        self._count(code)
        headers = [(name, value) for name, value in properties]
        self._exchange.answer(code, body, headers, None if code == 200 else message)

    def begin(
        self, code: int, message: str, properties: Iterable[Sequence[str]], on_flow: Callable[[bool], None]
    ) -> None:
        """The handler streams its answer; `on_flow` is told when the client can't keep up, and when it can again."""
        self._count(code)
        self._is_streaming = True
        self._exchange.on_flow = on_flow
        headers = [(name, value) for name, value in properties]
        self._exchange.begin(code, headers, None if code == 200 else message)

    def piece(self, body: bytes | bytearray) -> None:
        self._exchange.piece(body)

    def end(self, complete: bool = True) -> None:
        self._exchange.end(complete)

    def failed(self, error: ServerError) -> None:
        """There is no answer from a handler; one that has begun is cut off."""
        if self._is_streaming:
            self.end(complete=False)
        else:
            self._count(error.code)
            self._exchange.fail(error)

    def _count(self, code: int) -> None:
        if self.counters is not None:
            self.counters.count(code, time.monotonic() - self.queued_at)

    def _gone(self) -> None:
        if self.on_gone is not None:
            self.on_gone(self)


class _Layout(NamedTuple):
    """Where a request's properties stand among its headers, in the order of their names."""

    order: tuple[tuple[str, int], ...]
    content_type: int | None
    has_attributes: bool
    has_handler: bool


@lru_cache(maxsize=256)
def _layout(names: tuple[str, ...]) -> _Layout:
    """For headers of these names: clients send the same ones again and again. Of equal names the last counts."""
    found = {name.lower(): (name, at) for at, name in enumerate(names)}
    content_type = found["content-type"][1] if "content-type" in found else None
    order = tuple(found[lower] for lower in sorted(found))
    return _Layout(order, content_type, _ATTRIBUTES in found, "handler" in found)


def _with_attributes(headers: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """The headers, with what a header of custom attributes holds in its place."""
    for name, value in headers:
        if name.lower() != _ATTRIBUTES:
            yield name, value
            continue
        for part in value.split(";"):
            key, equals, text = part.partition("=")
            if equals:
                yield key.strip(), text.strip()


def _contents(content_type: str, body: bytes) -> list[tuple[str, bytes]]:
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "application/x-www-form-urlencoded":
        fields = parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True)
        return [(key, value.encode()) for key, value in fields]
    at = content_type.lower().find(_BOUNDARY)
    if kind == "multipart/form-data" and at >= 0:
        return _form_data(content_type[at + len(_BOUNDARY) :].partition(";")[0].strip().strip('"'), body)
    return [("data", body)]


def _form_data(boundary: str, body: bytes) -> list[tuple[str, bytes]]:
    """The fields of multipart/form-data (RFC 7578): name and bytes, in order."""
    delimiter = b"\r\n--" + boundary.encode("latin-1")
    parts = (b"\r\n" + body).split(delimiter)
    fields: list[tuple[str, bytes]] = []
    for part in parts[1:]:
        if part.startswith(b"--"):
            return fields
        head, blank, content = part.partition(b"\r\n\r\n")
        name = _field_name(head.decode("utf-8", "replace"))
        if not blank or name is None:
            break
        fields.append((name, content))
    raise BadRequest("The multipart form can't be read: a part has no name, or the last boundary is missing.")


def _field_name(head: str) -> str | None:
    for line in head.split("\r\n"):
        key, _, value = line.partition(":")
        if key.strip().lower() == "content-disposition":
            for parameter in value.split(";")[1:]:
                name, _, text = parameter.strip().partition("=")
                if name.lower() == "name":
                    return text.strip('"')
    return None

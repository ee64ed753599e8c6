"""Decides what the live page's own port answers: to a browser on this machine that has the page's key, and to no other.

The key is in the address that `mme up` prints; it becomes a cookie at the first visit. Beside it, Host must name this
machine, and what has an effect must come from the page itself, by its Origin.

Each start has a key of its own, made from the home's secret key, the port and a nonce that everybody may know. An open
page is told what the secret gives, and so finds the next start's key alone. A program that takes the port meanwhile is
sent an old cookie, and nothing that opens the next start: the nonce or the port is another one then.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import secrets
import socket
import time
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from mme import packages
from mme.platform.errors import AwsError
from mme.platform.front import Front
from mme.platform.hosting import Hosting, HostingFault, Instance, Variant
from mme.platform.hosting.models import Where
from mme.platform.messages import BodyTooLarge, Reply, Request
from mme.platform.page.events import Recorder
from mme.platform.page.package import look_into
from mme.platform.page.view import Sight, Viewer
from mme.platform.runtime import Runtime
from mme.platform.state import State

log = logging.getLogger(__name__)

STATIC = Path(__file__).with_name("static")
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
}
_GUARDS = [
    (
        "content-security-policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; font-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'",
    ),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-resource-policy", "same-origin"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cache-control", "no-store"),
]
_TICK_S = 0.25  # between two events of a stream
# At once. Each costs the platform some thousandths of a processor, and the first one some hundredths where there are
# 10,000 packages.
_VIEWERS = 16
_REQUEST_BYTES = 8 << 20  # the largest body of a call, 6 MB, as a JSON string
_SHOWN_CHARACTERS = 100_000  # of an answer


class PageError(Exception):
    """A request that the page's port does not answer as asked, with the status that it gets instead."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Page:
    """The live page of one platform. Belongs to its event loop."""

    def __init__(self, hosting: Hosting, runtime: Runtime, recorder: Recorder, state: State, secret_key: str) -> None:
        """`state` keeps the port, so that a page which is open finds the next start; `secret_key` is the home's."""
        self._hosting = hosting
        self._runtime = runtime
        self._recorder = recorder
        self._sight = Sight(hosting, recorder)
        self._state = state
        self._secret = _digest(secret_key, "live page")
        self._nonce = secrets.token_hex(16)
        self._key = ""
        self._port = 0
        self._front = Front(self.answer)
        self._is_closing = False

    @property
    def url(self) -> str:
        """The page's address, with this start's key. Whoever opens it may look and send requests, also to the next
        starts while that page stays open."""
        return f"http://127.0.0.1:{self._port}/?key={self._key}"

    async def start(self) -> None:
        kept = self._state.get("page", "port") or {"port": 0}
        try:
            listener = socket.create_server(("127.0.0.1", kept["port"]))
        except OSError:  # another program has it now
            listener = socket.create_server(("127.0.0.1", 0))
        self._port = listener.getsockname()[1]
        self._state.put("page", "port", {"port": self._port})
        self._key = _digest(self._secret, f"{self._port} {self._nonce}")
        await self._front.listen(listener)

    async def close(self) -> None:
        self._is_closing = True
        await self._front.close(2 * _TICK_S)

    async def answer(self, request: Request, reply: Reply) -> None:
        """Answer one request. Whatever goes wrong becomes a status and a sentence here, and nowhere else."""
        try:
            self._admit(request)
            await self._route(request, reply)
            return
        except PageError as error:
            failed = error
        except (HostingFault, packages.PackageError, ValueError) as error:
            failed = PageError(422, str(error))
        if not reply.has_begun:
            _whole(reply, {"message": str(failed)}, failed.status)

    def _admit(self, request: Request) -> None:
        host = request.headers.get("host", "")
        if host not in (f"127.0.0.1:{self._port}", f"localhost:{self._port}"):
            raise PageError(403, f"this page is not the host {host!r}; open it as 127.0.0.1")
        if request.method not in ("GET", "POST"):
            raise PageError(405, f"{request.method} means nothing here; use GET, or POST to /invoke")
        if request.method == "POST" and request.headers.get("origin") != f"http://{host}":
            raise PageError(403, "only this page itself may send requests from here")
        is_entering = request.path == "/start" or (request.path == "/" and "key=" in request.query)
        if not is_entering and not self._has_key(request):
            raise PageError(403, "this address lacks the page's key; `mme open` opens it with the key")

    def _has_key(self, request: Request) -> bool:
        cookies = (cookie.strip() for cookie in request.headers.get("cookie", "").split(";"))
        wanted = f"mme-{self._port}={self._key}"
        return any(secrets.compare_digest(cookie.encode(), wanted.encode()) for cookie in cookies)

    async def _route(self, request: Request, reply: Reply) -> None:
        query = {name: values[-1] for name, values in parse_qs(request.query).items()}
        match request.method, request.path:
            case "GET", "/" if "key" in query:
                self._enter(query["key"], reply)
            case "GET", "/":
                _file(reply, STATIC / "index.html")
            case "GET", path if path.startswith("/static/"):
                _file(reply, STATIC / path.removeprefix("/static/"))
            case "GET", "/start":
                _whole(reply, {"nonce": self._nonce})
            case "GET", "/events":
                await self._events(reply)
            case "GET", "/model":
                variant = self._variant(query)
                instance = _instance(variant, query.get("instance", ""))
                _whole(reply, await look_into(self._hosting, variant, instance, query.get("target", "")))
            case "POST", "/invoke":
                _whole(reply, await self._invoke(request))
            case _:
                raise PageError(404, f"there is nothing at {request.method} {request.path}")

    def _enter(self, key: str, reply: Reply) -> None:
        if not secrets.compare_digest(key.encode(), self._key.encode()):
            raise PageError(403, "this key is another start's; `mme open` opens the page with the right one")
        cookie = f"mme-{self._port}={self._key}; Path=/; HttpOnly; SameSite=Strict"
        reply.whole(303, [*_GUARDS, ("location", "/"), ("set-cookie", cookie), ("content-length", "0")], b"")

    async def _events(self, reply: Reply) -> None:
        if self._sight.viewers >= _VIEWERS:
            raise PageError(503, f"{_VIEWERS} pages are open already; close one")
        viewer = Viewer(self._hosting, self._recorder, self._sight)
        with self._sight:
            await reply.begin(200, [*_GUARDS, ("content-type", "text/event-stream")])
            told: dict[str, Any] = {"secret": self._secret}
            while not self._is_closing:
                if told := told | viewer.changes():
                    await reply.piece(f"data: {json.dumps(told, separators=(',', ':'))}\n\n".encode())
                told = {}
                await asyncio.sleep(_TICK_S)
            reply.end()

    async def _invoke(self, request: Request) -> dict[str, Any]:
        """Make the call that the page's form describes, as InvokeEndpoint, with no policy asked."""
        if request.headers.get("content-type") != "application/json":
            raise PageError(415, "a request is described in JSON; send it as application/json")
        try:
            asked = json.loads(await request.body.whole(_REQUEST_BYTES))
            names = ("endpoint", "variant", "target", "content_type", "accept", "body")
            fields = {name: str(asked[name]) for name in names}
        except BodyTooLarge:
            raise PageError(413, f"the request has more than {_REQUEST_BYTES} bytes") from None
        except (ValueError, LookupError, TypeError) as error:
            raise PageError(400, f"the request is not described as the page does it: {error}") from None
        variant, target = self._variant(fields), fields["target"]
        headers = {
            "content-type": fields["content_type"],
            "accept": fields["accept"],
            "x-amzn-sagemaker-target-variant": fields["variant"],
        }
        if target:
            headers["x-amzn-sagemaker-target-model"] = target
        is_warm = not target or any(
            model.where is Where.MEMORY
            for instance in variant.instances
            for model in [instance.cache.holds(target)]
            if model
        )
        began = time.perf_counter()
        try:
            answer = await self._runtime.invoke_endpoint(fields["endpoint"], headers, fields["body"].encode())
            told = {"status": answer.status, "content_type": answer.headers.get("Content-Type", "")}
            told["body"] = answer.body.decode("utf-8", "replace")[:_SHOWN_CHARACTERS]
        except AwsError as error:
            told = {"status": error.status, "error": error.code, "body": error.message}
        return {**told, "ms": round(1000 * (time.perf_counter() - began), 1), "is_warm": is_warm}

    def _variant(self, query: dict[str, str]) -> Variant:
        endpoint_name, name = query.get("endpoint", ""), query.get("variant", "")
        endpoint = self._hosting.endpoint(endpoint_name)
        variant = endpoint.variants.get(name) if endpoint else None
        if variant is None:
            raise PageError(404, f"there is no variant {name!r} of an endpoint {endpoint_name!r} here any more")
        return variant


def _instance(variant: Variant, number: str) -> Instance:
    for instance in variant.instances:
        if str(instance.number) == number:
            return instance
    raise PageError(404, f"there is no instance {number!r} of this variant any more")


def _digest(key: str, text: str) -> str:
    return hmac.new(key.encode(), text.encode(), "sha256").hexdigest()[:32]


def _whole(reply: Reply, answer: dict[str, Any], status: int = 200) -> None:
    body = json.dumps(answer).encode()
    head = [*_GUARDS, ("content-type", "application/json"), ("content-length", str(len(body)))]
    reply.whole(status, head, body)


def _file(reply: Reply, path: Path) -> None:
    if path not in _FILES:
        raise PageError(404, f"there is no file {path.name}")
    body = path.read_bytes()
    head = [*_GUARDS, ("content-type", _TYPES[path.suffix]), ("content-length", str(len(body)))]
    reply.whole(200, head, body)


_FILES = frozenset(path for path in STATIC.rglob("*") if path.suffix in _TYPES)

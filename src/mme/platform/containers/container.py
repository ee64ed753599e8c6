"""Decides how a container is watched and stopped, and asks it by SageMaker's multi-model contract."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp

from mme.platform.containers.kinds import ContainerKind, ContainerSpec, Launch
from mme.platform.containers.records import Output, Records
from mme.platform.wire import Broken, Connections
from mme.processes import sweep
from mme.tether import tethered

_LISTENING = re.compile(rb"listening on (http://127\.0\.0\.1:\d+)")
CONTAINER_MARK = "MME_CONTAINER_ID"  # an environment variable of a container's processes
# What a container inherits from the platform; all else, credentials above all, stays outside.
_INHERITED = re.compile(
    r"PATH|HOME|USER|LANG|LC_\w+|TZ|TMPDIR|PYTHONPATH|PYTHONDONTWRITEBYTECODE|LD_LIBRARY_PATH|VIRTUAL_ENV|MME_FORK"
    r"|PIP_\w+|UV_\w+|SSL_CERT_\w+|REQUESTS_CA_BUNDLE|(?:https?|no)_proxy|(?:HTTPS?|NO)_PROXY"
)


class ContainerError(Exception):
    """A container could not be started, or has gone."""


class ContainerStartFailed(ContainerError):
    """It did not answer /ping with 200 in time, or ended before that."""


class ContainerGone(ContainerError):
    """The connection broke. `is_sent` is False where the request has surely not reached the model."""

    def __init__(self, message: str, *, is_sent: bool) -> None:
        super().__init__(message)
        self.is_sent = is_sent


@dataclass(frozen=True, slots=True)
class Reply:
    """What a container answered. The names of its headers are lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def message(self) -> str:
        """The text of an error body: DJL's `message`, else the body itself."""
        text = self.body.decode(errors="replace")
        try:
            parsed = json.loads(text)
        except ValueError:
            return text
        message = parsed.get("message") if isinstance(parsed, dict) else None
        return message if isinstance(message, str) else text


class Pieces:
    """The body of a container's reply as it arrives. To be closed, whether it was read or not."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for piece, _ in self._response.content.iter_chunks():
                if piece:
                    yield piece
        except (aiohttp.ClientError, OSError) as error:
            raise ContainerGone(f"the container closed the connection: {error}", is_sent=True) from error

    def close(self) -> None:
        """Let go of the connection."""
        self._response.close()


class Container:
    """A running container. `exited` is done when its process has ended, with the exit code as result."""

    def __init__(
        self,
        kind: ContainerKind,
        spec: ContainerSpec,
        process: asyncio.subprocess.Process,
        launch: Launch,
        output: Output,
        on_record: Callable[[str], None],
    ) -> None:
        self.id = spec.container_id
        self.pid = process.pid
        self.memory_lag_s = kind.memory_lag_s
        self._kind = kind
        self._spec = spec
        self._process = process
        self._address: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._headers = launch.headers
        if launch.address is not None:
            self._address.set_result(launch.address)
        self._output = output
        self._reading = asyncio.create_task(Records(on_record, self._look_for_address).read(output.lines))
        self.exited = asyncio.create_task(process.wait())
        self._session: aiohttp.ClientSession | None = None
        self._connections: Connections | None = None

    @classmethod
    async def start(cls, kind: ContainerKind, spec: ContainerSpec, *, on_record: Callable[[str], None]) -> Container:
        """Start a container and wait until it answers /ping with 200.

        Must be called in the main thread's event loop, since the tether follows the thread that starts the process.
        `on_record` gets each record of its stdout and stderr: a line with the indented lines after it.
        Raises ContainerStartFailed and leaves nothing running.
        """
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("a container must be started from the main thread, or it ends with the thread")
        launch = kind.launch(spec)
        environment = {name: value for name, value in os.environ.items() if _INHERITED.fullmatch(name)}
        environment |= {**launch.environment, CONTAINER_MARK: spec.container_id, "PYTHONUNBUFFERED": "1"}
        output, write_end = await Output.open()
        try:
            process = await asyncio.create_subprocess_exec(
                *tethered(launch.argv),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=write_end,
                stderr=asyncio.subprocess.STDOUT,
                cwd=spec.folder,
                env=environment,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            output.close()
            raise ContainerStartFailed(f"the container's process cannot be started: {error}") from error
        finally:
            os.close(write_end)
        container = cls(kind, spec, process, launch, output, on_record)
        try:
            async with asyncio.timeout(kind.start_timeout_s):
                await container._answers()
        except TimeoutError:
            await container.stop(grace_s=0)
            raise ContainerStartFailed(f"no healthy answer to GET /ping within {kind.start_timeout_s:g} s") from None
        except BaseException:
            await container.stop(grace_s=0)
            raise
        return container

    async def _answers(self) -> None:
        waited: set[asyncio.Future[Any]] = {self._address, self.exited}
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        if not self._address.done():
            raise ContainerStartFailed(f"the container ended with exit code {self.exited.result()} before it served")
        self._connections = Connections(self._address.result(), self._headers)
        self._session = aiohttp.ClientSession(
            self._address.result(),
            headers=self._headers,
            # Each on a connection of its own: one to a container that has just died is refused, and so surely not sent.
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            timeout=aiohttp.ClientTimeout(total=None),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Accept-Encoding"),
        )
        while not await self.ping():
            if self.exited.done():
                raise ContainerStartFailed(f"the container ended with exit code {self.exited.result()}")
            await asyncio.sleep(0.05)

    def _look_for_address(self, line: bytes) -> None:
        if not self._address.done() and (match := _LISTENING.search(line)):
            self._address.set_result(match[1].decode())

    async def stop(self, grace_s: float = 5) -> None:
        """End the container and whatever its workers started: SIGTERM, SIGKILL after `grace_s`, then by its mark."""
        if self._session is not None:
            await self._session.close()
        if self._connections is not None:
            self._connections.close()
        if not self.exited.done() and grace_s > 0:
            self._process.terminate()
            await asyncio.wait({self.exited}, timeout=grace_s)
        if not self.exited.done():
            try:
                os.killpg(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # it ended this very moment, which is what is wanted
        if self._kind.remove is not None:
            await asyncio.to_thread(self._kind.remove, self.id)
        await self.exited  # before the sweep, which would take the exit code of a child that is not yet reaped
        await asyncio.to_thread(sweep, CONTAINER_MARK, self.id)
        await asyncio.wait({self._reading}, timeout=1)
        self._reading.cancel()  # a process that shed its mark may hold the pipe open
        self._output.close()
        if not self._address.done():
            self._address.cancel()

    async def _ask(self, method: str, path: str, *, timeout_s: float | None = None, **options: Any) -> Reply:
        assert self._session is not None
        limit = aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with self._session.request(method, path, timeout=limit, **options) as response:
                return Reply(response.status, _lower(response), await response.read())
        except aiohttp.ClientConnectorError as error:
            raise ContainerGone(f"the container refuses connections: {error}", is_sent=False) from error
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            if isinstance(error, TimeoutError) or (isinstance(error, RuntimeError) and not self._session.closed):
                raise
            raise ContainerGone(f"the container closed the connection: {error}", is_sent=True) from error

    async def ping(self, timeout_s: float = 2) -> bool:
        """Whether GET /ping answers 200 in time."""
        try:
            return (await self._ask("GET", "/ping", timeout_s=timeout_s)).status == 200
        except (ContainerGone, TimeoutError):
            return False

    async def models(self, timeout_s: float = 2) -> dict[str, str] | None:
        """GET /models, all pages of it: the status by model id, or None if there is no such answer."""
        found: dict[str, str] = {}
        path = "/models"
        try:
            while True:
                reply = await self._ask("GET", path, timeout_s=timeout_s)
                if reply.status != 200:
                    return None
                page = json.loads(reply.body)
                found |= {model["modelName"]: model.get("status", "READY") for model in page["models"]}
                if not page.get("nextPageToken") or not page["models"]:
                    return found
                path = f"/models?next_page_token={page['nextPageToken']}"
        except (ContainerGone, TimeoutError, ValueError, KeyError, TypeError):
            return None

    async def figures(self, timeout_s: float = 2) -> dict[str, Any] | None:
        """Workers by model, with their memory from the embedded server (GET /_mme/models); None without an answer."""
        try:
            reply = await self._ask("GET", "/_mme/models", timeout_s=timeout_s)
            if reply.status == 200:
                return dict(json.loads(reply.body))
            return {"models": [await self._described(name, timeout_s) for name in await self.models(timeout_s) or ()]}
        except (ContainerGone, TimeoutError, ValueError, LookupError, TypeError):
            return None

    async def _described(self, model_id: str, timeout_s: float) -> dict[str, Any]:
        """What DJL's GET /models/{id} says of a model's workers. It lists those that have ended as UNLOADING."""
        described = json.loads((await self._ask("GET", f"/models/{model_id}", timeout_s=timeout_s)).body)
        groups = described[0]["models"][0]["workerGroups"]
        workers = [worker for group in groups for worker in group["workers"] if worker["status"] != "UNLOADING"]
        return {"name": model_id, "workers": [{"id": worker["id"], "origin": "DJL Serving"} for worker in workers]}

    async def load(self, model_id: str, folder: Path, target: str) -> Reply:
        """POST /models: 200 loaded, 409 already there, 507 no memory, else the reason why it cannot be loaded.

        The header that calls have too tells the container the target's name, which its log then shows.
        """
        headers = {"X-Amzn-SageMaker-Target-Model": quote(target, safe="/ ~!$&'()*+,;=:@%")}
        request = {"model_name": model_id, "url": str(self._kind.sees(self._spec, folder))}
        return await self._ask("POST", "/models", json=request, headers=headers)

    async def unload(self, model_id: str, timeout_s: float = 60) -> Reply:
        """DELETE /models/{id}: 200, or 404 where it was not there."""
        return await self._ask("DELETE", f"/models/{model_id}", timeout_s=timeout_s)

    async def invoke(self, path: str, headers: Mapping[str, str], body: bytes) -> Reply:
        """POST a call to `/models/{id}/invoke`, or `/invocations` of a single model. Has no time limit of its own."""
        assert self._connections is not None
        try:
            return Reply(*await self._connections.post(path, headers, body))
        except Broken as error:
            raise ContainerGone(f"the container broke the connection: {error}", is_sent=error.is_sent) from error

    async def invoke_stream(
        self, path: str, headers: Mapping[str, str], body: bytes
    ) -> tuple[int, Mapping[str, str], Pieces]:
        """As `invoke`, with the body as it arrives, which the caller must close."""
        assert self._session is not None
        try:
            response = await self._session.post(path, headers=headers, data=body)
        except aiohttp.ClientConnectorError as error:
            raise ContainerGone(f"the container refuses connections: {error}", is_sent=False) from error
        except (aiohttp.ClientError, OSError) as error:
            raise ContainerGone(f"the container closed the connection: {error}", is_sent=True) from error
        return response.status, _lower(response), Pieces(response)


def _lower(response: aiohttp.ClientResponse) -> dict[str, str]:
    return {name.lower(): value for name, value in response.headers.items()}

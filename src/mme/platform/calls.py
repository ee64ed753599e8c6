"""Decides how a call gets to its model and back: loaded first, asked again where it was not run, and counted."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import TypeVar

from mme.platform import eventstream
from mme.platform.containers import Container, ContainerGone, Pieces, Reply
from mme.platform.errors import AwsError, ModelError, ServiceUnavailable
from mme.platform.faults import EXITED, TIMED_OUT, Faults
from mme.platform.hosting import Endpoint, Hosting, Instance, Variant
from mme.platform.hosting.happenings import Happening, Place
from mme.platform.hosting.models import Model

# The headers of InvokeEndpoint that reach the container; SageMaker keeps all others to itself.
_FORWARDED = {
    "accept": "Accept",
    "x-amzn-sagemaker-custom-attributes": "X-Amzn-SageMaker-Custom-Attributes",
    "x-amzn-sagemaker-inference-id": "X-Amzn-SageMaker-Inference-Id",
    "x-amzn-sagemaker-target-model": "X-Amzn-SageMaker-Target-Model",
}
_CUSTOM_ATTRIBUTES = "X-Amzn-SageMaker-Custom-Attributes"
_INFERENCE_ID = "x-Amzn-SageMaker-Inference-Id"
_VARIANT = "x-Amzn-Invoked-Production-Variant"
# What DJL Serving answers when a model can serve no more, without having run the call.
_NOT_RUN = ("Backend Python process is stopped.", "Model is not ready: ")
_ATTEMPTS = 3  # a call that has not been run may be made again, after its model was reloaded or its container replaced

Streamed = tuple[Mapping[str, str], Pieces]
"""The headers of a container's reply and its body, as it comes."""

_Answered = TypeVar("_Answered", Reply, Reply | Streamed)


class Call:
    """One call on its way: where it is, since when, and what it leaves in the metrics."""

    __slots__ = (
        "config", "faults", "watch", "place", "variant", "target", "headers", "body",
        "started", "deadline", "waited_us", "asked", "model_us", "is_hit", "instance", "model",
    )  # fmt: skip

    def __init__(
        self,
        hosting: Hosting,
        endpoint: Endpoint,
        variant: Variant,
        target: str | None,
        headers: Mapping[str, str],
        body: bytes,
    ) -> None:
        self.config = hosting.config
        self.faults = Faults(hosting.config, endpoint.name)
        self.watch = hosting.watch
        self.place = Place(endpoint.name, variant.plan.name)
        self.variant = variant
        self.target = target
        self.body = body
        forwarded = {"Content-Type": headers.get("content-type") or "application/json"}
        for name, spelled in _FORWARDED.items():
            if (value := headers.get(name)) is not None:
                forwarded[spelled] = value
        self.headers = forwarded
        self.started = time.perf_counter()
        self.deadline = asyncio.get_running_loop().time() + self.config.invoke_timeout_s
        self.waited_us = 0.0
        self.asked: float | None = None
        self.model_us = 0.0
        self.is_hit = True
        self.instance: Instance | None = None
        self.model: Model | None = None

    async def _take(self) -> tuple[Instance, Container, str]:
        """Find an instance, have the model loaded there, and return where to post to."""
        instance = self.variant.instance_for(self.target)
        if instance.waiting(self.target) >= self.config.waiting_limit:
            raise ServiceUnavailable("The service is unavailable. Try your call again.")
        self.instance = instance
        instance.in_flight += 1
        if self.target is None:
            return instance, await instance.ready(), "/invocations"
        model = instance.cache.hit(self.target)
        if model is None or instance.container is None:
            if model is not None:
                instance.cache.release(model)
            self.is_hit = False
            began = time.perf_counter()
            try:
                model = await instance.cache.acquire(self.target)
            finally:
                self.waited_us += (time.perf_counter() - began) * 1e6
        self.model = model
        return instance, await instance.ready(), model.path

    def release(self) -> None:
        """Let go of the model and the instance. Does nothing the second time."""
        instance, self.instance = self.instance, None
        model, self.model = self.model, None
        if instance is not None:
            instance.in_flight -= 1
            if model is not None:
                instance.cache.release(model)

    async def reply(self) -> Reply:
        """The container's reply, whatever its status."""

        async def ask(container: Container, path: str) -> Reply:
            return await container.invoke(path, self.headers, self.body)

        return await self._asked_until_run(ask)

    async def stream(self) -> Streamed:
        """The container's reply piece by piece; `frames` must be entered with the pieces. Raises ModelError."""

        async def ask(container: Container, path: str) -> Reply | Streamed:
            status, headers, pieces = await container.invoke_stream(path, self.headers, self.body)
            if status < 400:
                return headers, pieces
            with contextlib.closing(pieces):
                return Reply(status, headers, b"".join([piece async for piece in pieces]))

        answered = await self._asked_until_run(ask)
        if isinstance(answered, Reply):
            raise self.faults.of_model(answered)
        return answered

    async def _asked_until_run(self, ask: Callable[[Container, str], Awaitable[_Answered]]) -> _Answered:
        """Ask the model; again where it surely was not run: model reloaded, container replaced.

        A reply in pieces leaves the model in use, for `frames` to let go.
        """
        for attempt in itertools.count(1):
            is_whole = True
            try:
                instance, container, path = await self._take()
                self.asked = time.perf_counter()
                try:
                    answered = await ask(container, path)
                except ContainerGone as error:
                    await instance.settle(container)
                    if error.is_sent or attempt == _ATTEMPTS:
                        raise
                    continue
                is_whole = isinstance(answered, Reply)
                if not isinstance(answered, Reply) or not self._was_not_run(answered) or attempt == _ATTEMPTS:
                    return answered
            finally:
                if is_whole:
                    self._answered()
                    self.release()
        raise AssertionError("the last attempt returns or raises")

    @contextlib.contextmanager
    def frames(self, pieces: Pieces) -> Iterator[AsyncIterator[bytes]]:
        """The pieces as event stream messages. Who leaves lets go of the model, whether anything was read or not."""
        errors: list[str] = []
        try:
            with contextlib.closing(pieces):
                yield self._messages(pieces, errors)
        finally:
            self._answered()
            self.release()
            self.count(*errors)

    async def _messages(self, pieces: Pieces, errors: list[str]) -> AsyncIterator[bytes]:
        """Within the time a call may take. `errors` gets what the last message tells of."""
        arriving = aiter(pieces)
        try:
            while True:
                left_s = self.deadline - asyncio.get_running_loop().time()
                yield eventstream.payload_part(await asyncio.wait_for(anext(arriving), left_s))
        except StopAsyncIteration:
            return
        except (TimeoutError, ContainerGone) as error:
            errors += "Invocation5XXErrors", "InvocationModelErrors"
            code = "ModelInvocationTimeExceeded" if isinstance(error, TimeoutError) else "StreamBroken"
            text = TIMED_OUT if isinstance(error, TimeoutError) else EXITED
            yield eventstream.exception("ModelStreamError", text, {"ErrorCode": code})

    def _answered(self) -> None:
        if self.asked is not None:
            self.model_us += (time.perf_counter() - self.asked) * 1e6
            self.asked = None

    def _was_not_run(self, reply: Reply) -> bool:
        """Whether the reply says that the model is not there or serves no more: then it has to be loaded again."""
        if reply.status < 400 or self.model is None or self.instance is None:
            return False
        text = reply.message()
        is_absent = reply.status == 404 and self.model.id in text
        if not is_absent and not (reply.status in (400, 503) and text.startswith(_NOT_RUN)):
            return False
        self.instance.cache.distrust(self.model, text)
        return True

    def answer_headers(self, answered: Mapping[str, str]) -> dict[str, str]:
        headers = {_VARIANT: self.variant.plan.name}
        if (content_type := answered.get("content-type")) is not None:
            headers["Content-Type"] = content_type
        if (attributes := answered.get(_CUSTOM_ATTRIBUTES.lower())) is not None:
            headers[_CUSTOM_ATTRIBUTES] = attributes
        if (inference_id := self.headers.get("X-Amzn-SageMaker-Inference-Id")) is not None:
            headers[_INFERENCE_ID] = inference_id
        return headers

    def failed(self, error: Exception) -> AwsError:
        """Count a call that failed, and say what AWS says."""
        is_asked = self.asked is not None or self.model_us > 0
        told = self.faults.told(error, self.target or self.variant.plan.model_name, is_asked=is_asked)
        if isinstance(told, ModelError):
            status = told.members["OriginalStatusCode"]
            is_client = isinstance(status, int) and 400 <= status < 500
            self.count("Invocation4XXErrors" if is_client else "Invocation5XXErrors", "InvocationModelErrors")
        else:
            self.count("Invocation4XXErrors" if told.status < 500 else "Invocation5XXErrors")
        return told

    def count(self, *errors: str) -> None:
        """Leave the call in the metrics, with the error counts that it adds to."""
        meter, count = self.variant.meter, len(self.variant.instances)
        total_us = (time.perf_counter() - self.started) * 1e6
        meter.add("Invocations", 1)
        meter.add("InvocationsPerInstance", 1 / count)
        for name in ("Invocation4XXErrors", "Invocation5XXErrors", "InvocationModelErrors"):
            meter.add(name, 1 if name in errors else 0)
        if self.model_us:
            meter.add("ModelLatency", self.model_us)
        meter.add("OverheadLatency", max(0.0, total_us - self.model_us))
        if self.target is not None:
            meter.add("ModelCacheHit", 1 if self.is_hit else 0)
            if not self.is_hit:
                meter.add("ModelLoadingWaitTime", self.waited_us)
        outcome = "failed" if errors else "hit" if self.is_hit else "miss"
        self.watch(self.place, Happening("called", self.target or "", total_us / 1e6, detail=outcome))

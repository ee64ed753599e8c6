"""Decides what InvokeEndpoint answers: from a call to a container's reply, or to the error AWS gives for it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
import uuid
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass

from mme.platform import eventstream
from mme.platform.containers import Container, ContainerGone, Reply
from mme.platform.errors import (
    AwsError,
    InternalDependencyException,
    ModelError,
    ModelNotReadyException,
    ServiceUnavailable,
    ValidationError,
)
from mme.platform.hosting import Endpoint, Hosting, HostingFault, Instance, Variant
from mme.platform.hosting.cache import Model
from mme.platform.hosting.logs import log_group
from mme.platform.hosting.plans import (
    ContainerLost,
    DiskFull,
    LoadRefused,
    LoadTimedOut,
    PackageMissing,
    PackageUnusable,
)

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
_STREAM = "application/vnd.amazon.eventstream"
_MESSAGE_BYTES = 64 * 1024  # of a model's error that are passed on
# Seen in aws/amazon-sagemaker-examples#799 and #1407.
_TIMED_OUT = (
    "Your invocation timed out while waiting for a response from container model. Review the latency metrics for each "
    "container in Amazon CloudWatch, resolve the issue, and try again."
)
_EXITED = "The container closed the connection before it answered."
# What DJL Serving answers when a model can serve no more, without having run the call.
_NOT_RUN = ("Backend Python process is stopped.", "Model is not ready: ")
_ATTEMPTS = 3  # a call that has not been run may be made again, after its model was reloaded or its container replaced

_FAILURES = (AwsError, HostingFault, ContainerGone, TimeoutError)


@dataclass(frozen=True, slots=True)
class InvokeAnswer:
    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class StreamAnswer:
    """`frames` are event stream messages, one for each piece of the model's answer. To be read to the end or closed."""

    status: int
    headers: dict[str, str]
    frames: AsyncGenerator[bytes, None]


class Runtime:
    """InvokeEndpoint over the endpoints of one Hosting. Knows no wire format but that of its answers' headers."""

    def __init__(self, hosting: Hosting) -> None:
        self._hosting = hosting
        self._config = hosting.config

    async def invoke_endpoint(
        self, endpoint_name: str, headers: Mapping[str, str], body: bytes, request_id: str = ""
    ) -> InvokeAnswer:
        """Answer a call. `headers` have lower-case names.

        Raises ValidationError, ModelError, ModelNotReadyException, ServiceUnavailable, InternalDependencyException.
        """
        call = self._call(endpoint_name, headers, body, request_id)
        try:
            async with asyncio.timeout_at(call.deadline):
                reply = await call.reply()
            if reply.status >= 400:
                raise call.model_error(reply)
        except _FAILURES as error:
            raise call.failed(error) from error
        call.count()
        return InvokeAnswer(200, call.answer_headers(reply.headers), reply.body)

    async def invoke_endpoint_with_response_stream(
        self, endpoint_name: str, headers: Mapping[str, str], body: bytes, request_id: str = ""
    ) -> StreamAnswer:
        """As `invoke_endpoint`, with the model's answer piece by piece.

        What fails after the first piece ends the stream with the exception ModelStreamError, as an event.
        """
        call = self._call(endpoint_name, headers, body, request_id)
        try:
            async with asyncio.timeout_at(call.deadline):
                answered, pieces = await call.stream()
        except _FAILURES as error:
            raise call.failed(error) from error
        answer_headers = call.answer_headers(answered)
        content_type = answer_headers.pop("Content-Type", None)
        if content_type is not None:
            answer_headers["X-Amzn-SageMaker-Content-Type"] = content_type
        return StreamAnswer(200, answer_headers | {"Content-Type": _STREAM}, call.frames(pieces))

    def _call(self, endpoint_name: str, headers: Mapping[str, str], body: bytes, request_id: str) -> _Call:
        endpoint = self._hosting.endpoint(endpoint_name)
        if endpoint is None:
            raise ValidationError(f"Endpoint {endpoint_name} of account {self._config.account_id} not found.")
        wanted = headers.get("x-amzn-sagemaker-target-variant")
        variant = endpoint.choose() if wanted is None else endpoint.variants.get(wanted)
        if variant is None:
            raise ValidationError(
                f"Endpoint {endpoint_name} has no variant that takes calls; give one of them a weight above 0."
                if wanted is None
                else f"Variant {wanted} was not found in endpoint {endpoint_name}; there are: "
                f"{', '.join(endpoint.variants)}."
            )
        target = headers.get("x-amzn-sagemaker-target-model")
        if variant.plan.is_multi_model and not target:
            raise ValidationError(
                f"Request {request_id or uuid.uuid4()} is missing a target model header, which endpoint "
                f"{endpoint_name} needs to know the model to invoke."
            )
        if not variant.plan.is_multi_model and target:
            raise ValidationError(
                f"Endpoint {endpoint_name} is not a multi-model endpoint and does not support target model header.",
                {"ErrorCode": "TARGET_MODEL_HEADER_NOT_SUPPORTED"},
            )
        return _Call(self._hosting, endpoint, variant, target, headers, body)


class _Call:
    """One call on its way: where it is, since when, and what it leaves in the metrics."""

    __slots__ = (
        "config", "endpoint", "variant", "target", "headers", "body",
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
        self.endpoint = endpoint
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
        self.instance = instance = self.variant.instance_for(self.target)
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
        """The container's reply. A call that was surely not run is made again: model reloaded, container replaced."""
        for attempt in itertools.count(1):
            try:
                instance, container, path = await self._take()
                self.asked = time.perf_counter()
                try:
                    reply = await container.invoke(path, self.headers, self.body)
                except ContainerGone as error:
                    await instance.settle(container)
                    if error.is_sent or attempt == _ATTEMPTS:
                        raise
                    continue
                finally:
                    self._answered()
                if reply.status < 400 or not self._was_not_run(reply) or attempt == _ATTEMPTS:
                    return reply
            finally:
                self.release()
        raise AssertionError("the last attempt returns or raises")

    async def stream(self) -> tuple[Mapping[str, str], AsyncGenerator[bytes, None]]:
        """As `reply`, but for the body; `frames` must be used up or closed afterwards. Raises ModelError too."""
        for attempt in itertools.count(1):
            is_answered = False
            try:
                instance, container, path = await self._take()
                self.asked = time.perf_counter()
                try:
                    status, answered, pieces = await container.invoke_stream(path, self.headers, self.body)
                    if status < 400:
                        is_answered = True
                        return answered, pieces
                    reply = Reply(status, answered, b"".join([piece async for piece in pieces]))
                except ContainerGone as error:
                    await instance.settle(container)
                    if error.is_sent or attempt == _ATTEMPTS:
                        raise
                    continue
                if not self._was_not_run(reply) or attempt == _ATTEMPTS:
                    raise self.model_error(reply)
            finally:
                if not is_answered:
                    self._answered()
                    self.release()
        raise AssertionError("the last attempt returns or raises")

    async def frames(self, pieces: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        """The pieces as event stream messages, within the time a call may take."""
        errors: tuple[str, ...] = ()
        try:
            async with contextlib.aclosing(pieces):
                while True:
                    left_s = self.deadline - asyncio.get_running_loop().time()
                    yield eventstream.payload_part(await asyncio.wait_for(anext(pieces), left_s))
        except StopAsyncIteration:
            return
        except (TimeoutError, ContainerGone) as error:
            errors = ("Invocation5XXErrors", "InvocationModelErrors")
            code = "ModelInvocationTimeExceeded" if isinstance(error, TimeoutError) else "StreamBroken"
            text = _TIMED_OUT if isinstance(error, TimeoutError) else _EXITED
            yield eventstream.exception("ModelStreamError", text, {"ErrorCode": code})
        finally:
            self._answered()
            self.release()
            self.count(*errors)

    def _answered(self) -> None:
        if self.asked is not None:
            self.model_us += (time.perf_counter() - self.asked) * 1e6
            self.asked = None

    def _was_not_run(self, reply: Reply) -> bool:
        """Whether the reply says that the model is not there or serves no more: then it has to be loaded again."""
        if self.model is None or self.instance is None:
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

    def model_error(self, reply: Reply) -> ModelError:
        """A model's own failure."""
        return self._model_error(reply.status, reply.body[:_MESSAGE_BYTES].decode(errors="replace"))

    def _model_error(self, status: int, text: str) -> ModelError:
        """A model's failure in AWS's words (aws/amazon-sagemaker-examples#407, torchserve-examples#3)."""
        region, account, group = self.config.region, self.config.account_id, log_group(self.endpoint.name)
        return ModelError(
            f"Received {'client' if 400 <= status < 500 else 'server'} error ({status}) from model with message "
            f'"{text}". See https://{region}.console.aws.amazon.com/cloudwatch/home?region={region}'
            f"#logEventViewer:group={group} in account {account} for more information.",
            original_status=status,
            original_message=text,
            log_stream_arn=f"arn:aws:logs:{region}:{account}:log-group:{group}",
        )

    def failed(self, error: Exception) -> AwsError:
        """Count a call that failed, and say what AWS says."""
        told = self._told(error)
        if isinstance(told, ModelError):
            status = told.members["OriginalStatusCode"]
            is_client = isinstance(status, int) and 400 <= status < 500
            self.count("Invocation4XXErrors" if is_client else "Invocation5XXErrors", "InvocationModelErrors")
        else:
            self.count("Invocation4XXErrors" if told.status < 500 else "Invocation5XXErrors")
        return told

    def _told(self, error: Exception) -> AwsError:
        match error:
            case AwsError():
                return error
            case TimeoutError() if self.asked is None and self.model_us == 0:
                return ModelNotReadyException(
                    f"Model {self.target or self.variant.plan.model_name} of endpoint {self.endpoint.name} is still "
                    f"being loaded after {self.config.invoke_timeout_s:g} seconds; the load goes on, try again later."
                )
            case TimeoutError():
                return self._model_error(0, _TIMED_OUT)
            case ContainerGone():
                return self._model_error(0, _EXITED)
            case LoadRefused(status=status, message=message):
                return self._model_error(status, message)
            case PackageMissing(bucket=bucket, key=key):
                return ValidationError(
                    f"Failed to download model data(bucket: {bucket}, key: {key}). Please ensure that there is an "
                    f"object located at the URL and that the role passed to CreateModel has permissions to download "
                    f"the model."
                )
            case PackageUnusable(url=url, reason=reason):
                return ValidationError(
                    f"Failed to extract model data archive from URL {url}. Please ensure that the object located at "
                    f"the URL is a valid tar.gz archive: {reason}"
                )
            case LoadTimedOut():
                return self._model_error(0, str(error))
            case ContainerLost() | DiskFull():
                return ServiceUnavailable(str(error))
        return InternalDependencyException(str(error))

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

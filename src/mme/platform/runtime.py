"""Decides what InvokeEndpoint answers: from a call to a container's reply, or to the error AWS gives for it."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

from mme.platform.calls import Call
from mme.platform.errors import ServiceUnavailable, ValidationError
from mme.platform.faults import FAILURES
from mme.platform.hosting import Hosting

_STREAM = "application/vnd.amazon.eventstream"


@dataclass(frozen=True, slots=True)
class InvokeAnswer:
    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class StreamAnswer:
    """`frames` are event stream messages, one for each piece of the model's answer. The model is in use until they are
    left."""

    status: int
    headers: dict[str, str]
    frames: AbstractContextManager[AsyncIterator[bytes]]


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
                raise call.faults.of_model(reply)
        except FAILURES as error:
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
        except FAILURES as error:
            raise call.failed(error) from error
        answer_headers = call.answer_headers(answered)
        content_type = answer_headers.pop("Content-Type", None)
        if content_type is not None:
            answer_headers["X-Amzn-SageMaker-Content-Type"] = content_type
        return StreamAnswer(200, answer_headers | {"Content-Type": _STREAM}, call.frames(pieces))

    def _call(self, endpoint_name: str, headers: Mapping[str, str], body: bytes, request_id: str) -> Call:
        endpoint = self._hosting.endpoint(endpoint_name)
        if endpoint is None and self._hosting.is_coming_back(endpoint_name):
            raise ServiceUnavailable(f"Endpoint {endpoint_name} is being brought back. Try your call again.")
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
        return Call(self._hosting, endpoint, variant, target, headers, body)

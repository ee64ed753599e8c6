"""Decides who answers a request, and that whatever goes wrong is answered as AWS does: one URL for all of AWS.

SageMaker's control plane and runtime are ours, S3 goes to the store of objects or to moto as `s3.place` says,
everything else to moto.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import parse_qsl

import aiohttp

import mme.platform.journal as journals
from mme.platform import arrivals, copies, protocols, proxy, s3, validation
from mme.platform.admission import Admission, refuse_pages
from mme.platform.autoscaling import Autoscaler
from mme.platform.backing import BackingFailed, Service
from mme.platform.config import ObjectStore, PlatformConfig
from mme.platform.errors import (
    AccessDenied,
    AwsError,
    InternalFailure,
    SerializationException,
    ServiceUnavailable,
    UnknownOperation,
    UnsupportedOperation,
    ValidationException,
)
from mme.platform.messages import BodyMismatch, BodyTooLarge, ClientGone, Reply, Request
from mme.platform.objects import Objects
from mme.platform.resources import Operation
from mme.platform.runtime import InvokeAnswer, StreamAnswer
from mme.platform.scalable_targets import refuse_policy
from mme.platform.signatures import NotAuthentic
from mme.platform.statistics import refuse_others

if TYPE_CHECKING:
    from mme.platform.access import Access  # slow to import, and needed only where policies are enforced

log = logging.getLogger(__name__)

INVOKE_LIMIT_BYTES = 6_291_456  # botocore's shape BodyBlob of sagemaker-runtime
CONTROL_LIMIT_BYTES = 4 << 20  # any other; PutLogEvents, the largest, has 1 MB
_OTHER_CONTENT = "The provided 'x-amz-content-sha256' header does not match what was computed."
# Services that an account has and a machine hasn't, with the reason: moto would answer for them as if they were empty.
_REFUSED = {"servicequotas": "there are no quotas", "ecr": "no image is pulled: the model server is on this machine"}


class Invoker(Protocol):
    """What the gateway asks of the runtime: `mme.platform.runtime.Runtime`."""

    async def invoke_endpoint(
        self, endpoint_name: str, headers: Mapping[str, str], body: bytes, request_id: str = ""
    ) -> InvokeAnswer: ...

    async def invoke_endpoint_with_response_stream(
        self, endpoint_name: str, headers: Mapping[str, str], body: bytes, request_id: str = ""
    ) -> StreamAnswer: ...


class Gateway:
    """Answers every request of the platform. Belongs to one event loop."""

    def __init__(
        self,
        config: PlatformConfig,
        store: ObjectStore,
        *,
        operations: Mapping[str, Operation],
        runtime: Invoker,
        admission: Admission,
        objects: Service,
        kept_objects: Objects,
        aws: Service,
        journal: journals.Journal,
        session: aiohttp.ClientSession,
        status: Callable[[], Awaitable[dict[str, Any]]],
        access: Access | None = None,
        scaler: Autoscaler | None = None,
    ) -> None:
        self._config = config
        self._store = store
        self._operations = operations
        self._runtime = runtime
        self._admission = admission
        self._objects = objects
        self._kept_objects = kept_objects
        self._aws = aws
        self._journal = journal
        self._session = session
        self._status = status
        self._access = access
        self._scaler = scaler
        self._seeding = asyncio.Lock()

    async def __call__(self, request: Request, reply: Reply) -> None:
        """Answer one request. Whatever goes wrong becomes an AWS error here, and nowhere else."""
        request_id = new_id()
        protocol: protocols.Protocol = "rest-json"
        try:
            refuse_pages(request)
            service = arrivals.service_of(request)
            protocol = arrivals.protocol_of(service, request)
            await self._route(service, protocol, request, request_id, reply)
            return
        except ClientGone:
            return
        except AwsError as error:
            failed = error
        except BodyMismatch:
            failed = NotAuthentic("content", protocol, _OTHER_CONTENT)
        except (proxy.UpstreamGone, BackingFailed) as error:
            log.warning("request %s: %s %r: %s", request_id, request.method, request.path, error)
            failed = ServiceUnavailable("the service behind the gateway does not answer; try again later")
        except Exception:
            if reply.has_begun:
                raise  # the connection breaks, as it did behind us
            log.exception("request %s: %s %r", request_id, request.method, request.path)
            failed = InternalFailure(f"the platform failed; its log says why under the request {request_id}")
        reply.whole(*protocols.failure(failed, protocol, request_id))

    async def _route(
        self, service: str, protocol: protocols.Protocol, request: Request, request_id: str, reply: Reply
    ) -> None:
        if request.path == "/_mme/ping" and request.method == "GET":
            reply.whole(200, protocols.headers("text/plain", b"", request_id), b"")
        elif request.path == "/_mme/status" and request.method == "GET":
            body = json.dumps(await self._status()).encode()
            reply.whole(200, protocols.headers("application/json", body, request_id), body)
        elif service == "s3":
            await self._s3(await self._admission.admit_to_s3(request), reply)
        elif protocol == "rest-json":
            body = await _body_of_invocation(request)
            request = await self._admission.admit(service, protocol, request, body)
            await self._invoke(request, body, request_id, reply)
        else:
            body = await _whole_body(request, CONTROL_LIMIT_BYTES)
            request = await self._admission.admit(service, protocol, request, body)
            if service == "sagemaker":
                reply.whole(*protocols.answer(await self._control(request, body), request_id))
            elif service == "application-autoscaling" and self._scaler is not None:
                await self._autoscaling(self._scaler, request, body, request_id, reply)
            else:
                await self._others(service, request, body, reply)

    async def _control(self, request: Request, body: bytes) -> dict[str, Any]:
        prefix, _, name = request.headers["x-amz-target"].partition(".")
        model = validation.operation("sagemaker", name) if prefix == "SageMaker" else None
        if model is None:
            raise UnknownOperation(f"SageMaker has no operation {request.headers['x-amz-target']!r}")
        if name not in self._operations:
            raise UnsupportedOperation(f"{name} is not supported by the local platform; use AWS for it")
        parameters = _parsed(name, body)
        validation.check(model.input_shape, parameters)
        if self._access is not None:
            from mme.platform.access import calls_of

            await self._access.check(request.headers, calls_of(name, parameters, self._config))
        return await self._operations[name]({key: value for key, value in parameters.items() if value is not None})

    async def _invoke(self, request: Request, body: bytes, request_id: str, reply: Reply) -> None:
        operation, endpoint_name = arrivals.invocation(request)
        if self._access is not None:
            from mme.platform.access import call_of_invocation

            target = request.headers.get("x-amzn-sagemaker-target-model")
            await self._access.check(request.headers, [call_of_invocation(endpoint_name, target, self._config)])
        if operation == "InvokeEndpoint":
            whole = await self._runtime.invoke_endpoint(endpoint_name, request.headers, body, request_id)
            headers = _answered(whole.headers, request_id)
            headers.append(("content-length", str(len(whole.body))))
            reply.whole(whole.status, headers, whole.body)
            return
        streamed = await self._runtime.invoke_endpoint_with_response_stream(
            endpoint_name, request.headers, body, request_id
        )
        start = _answered(streamed.headers, request_id)
        with streamed.frames as frames:
            await reply.begin(streamed.status, start)
            async for frame in frames:
                await reply.piece(frame)
        reply.end()

    async def _s3(self, request: Request, reply: Reply) -> None:
        one = s3.call(request.method, request.path, request.query, request.headers)
        if one.headers.get("x-amz-expected-bucket-owner", self._config.account_id) != self._config.account_id:
            raise AccessDenied("the bucket belongs to another account than x-amz-expected-bucket-owner says")
        place = s3.place(one)
        if place == "objects":
            await self._objects.up(proxy.ANSWER_S)
            await self._kept_objects.answer(request, reply)
        elif place == "copy of a part":
            await self._objects.up(proxy.ANSWER_S)
            copied = await copies.copy_part(self._session, self._store, request)
            reply.whole(copied.status, copied.headers, copied.body)
        elif place == "bucket":
            await self._kept("s3", request, await _whole_body(request, CONTROL_LIMIT_BYTES), reply)
        else:
            await self._bucket(request, reply)

    async def _bucket(self, request: Request, reply: Reply) -> None:
        """Create or delete a bucket in both places: by moto's rules, and only while it is empty of objects."""
        body = await _whole_body(request, CONTROL_LIMIT_BYTES)
        first, second = (self._aws, self._objects) if request.method == "PUT" else (self._objects, self._aws)
        await asyncio.gather(first.up(proxy.ANSWER_S), second.up(proxy.ANSWER_S))
        shown = await proxy.exchange(self._session, first.url, request, body)
        if shown.status < 400:
            other = await proxy.exchange(self._session, second.url, request, body)
            if other.status >= 400 and other.status not in (404, 409):  # it is gone, or there, in this place already
                shown = other
        if shown.status < 400:
            self._record("s3", "", request, body)
            if request.method == "DELETE":
                self._kept_objects.forget_bucket(s3.call(request.method, request.path, "", {}).bucket)
        reply.whole(shown.status, shown.headers, shown.body)

    async def _others(self, service: str, request: Request, body: bytes, reply: Reply) -> None:
        """What moto answers. What configures something is kept, so that it can be repeated when moto starts anew."""
        if service in _REFUSED:
            raise UnsupportedOperation(f"the local platform does not play {service}: {_REFUSED[service]}")
        if service == "monitoring":
            refuse_others(*journals.action_of(request.path, request.headers, body))
        if service == "iam":
            journals.refuse_renames(*journals.action_of(request.path, request.headers, body))
        await self._kept(service, request, body, reply)

    async def _autoscaling(
        self, scaler: Autoscaler, request: Request, body: bytes, request_id: str, reply: Reply
    ) -> None:
        """Application Auto Scaling: moto keeps what is registered, what comes of it is ours."""
        name = request.headers.get("x-amz-target", "").rpartition(".")[2]
        model = validation.operation("application-autoscaling", name)
        if model is None:
            raise UnknownOperation(f"Application Auto Scaling has no operation {name!r}")
        parameters = _parsed(name, body)
        validation.check(model.input_shape, parameters)
        if name == "DescribeScalingActivities":
            reply.whole(*protocols.answer(scaler.describe_scaling_activities(parameters), request_id))
            return
        if name == "RegisterScalableTarget":
            await self._aws.up(proxy.ANSWER_S)
            await scaler.refuse_target(parameters)
        elif name == "PutScalingPolicy":
            refuse_policy(parameters)
        await self._kept("application-autoscaling", request, body, reply)

    async def _kept(self, service: str, request: Request, body: bytes, reply: Reply) -> None:
        if service == "sts" and self._access is not None:
            from mme.platform.access import refuse_session_policies

            refuse_session_policies(dict(parse_qsl(body.decode("utf-8", "replace"))))
        seed = journals.new_seed(service, body)
        try:
            async with asyncio.timeout(proxy.ANSWER_S), self._seeding:
                await self._aws.up()
                await journals.seed_moto(self._session, self._aws.url, seed)
                answer = await proxy.exchange(self._session, self._aws.url, request, body)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise proxy.UpstreamGone(f"moto: {error!r}") from error
        if answer.status == 500:  # a page for people, which no client of AWS's reads
            raise InternalFailure(f"moto, which plays {service} here, failed at this request; moto.log says why")
        if answer.status < 300:
            self._record(service, seed, request, body)
            if service in ("iam", "sts"):
                answer = self._admission.keyring.learn(request, body, answer)
        reply.whole(answer.status, answer.headers, answer.body)

    def _record(self, service: str, seed: str, request: Request, body: bytes) -> None:
        kept = journals.entry(service, request.method, request.path, request.query, request.headers, body)
        if kept is not None:
            self._journal.record(kept, seed, request.method, request.target, request.headers, body)


def _parsed(operation: str, body: bytes) -> Any:
    try:
        return json.loads(body or b"{}")
    except ValueError as error:
        raise SerializationException(f"the body of {operation} is not JSON: {error}") from error


async def _whole_body(request: Request, limit_bytes: int) -> bytes:
    try:
        return await request.body.whole(limit_bytes)
    except BodyTooLarge:
        raise SerializationException(f"the request has more than {limit_bytes} bytes") from None


async def _body_of_invocation(request: Request) -> bytes:
    try:
        return await request.body.whole(INVOKE_LIMIT_BYTES)
    except BodyTooLarge:
        constraint = f"Member must have length less than or equal to {INVOKE_LIMIT_BYTES}"
        fault = f"1 validation error detected: Value at 'body' failed to satisfy constraint: {constraint}"
        raise protocols.of_the_runtime(ValidationException(fault)) from None


def _answered(headers: Mapping[str, str], request_id: str) -> protocols.Headers:
    return [("x-amzn-requestid", request_id), *((name.lower(), value) for name, value in headers.items())]


def new_id() -> str:
    """A request's id, in the form of a UUID."""
    digits = f"{random.getrandbits(128):032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"

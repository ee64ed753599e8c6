"""Decides what a request is for: which service and protocol of AWS's, and which call on which endpoint.

A request says so by the scope of its credential, `X-Amz-Target` and its path.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from urllib.parse import unquote

from botocore.model import Shape

from mme.platform import protocols, validation
from mme.platform.errors import UnknownOperation, UnsupportedOperation
from mme.platform.messages import Request

_SCOPE = re.compile(r"Credential=[^/,\s]+/\d{8}/[^/]+/([^/,\s]+)/aws4_request")
_INVOCATION = re.compile(r"/endpoints/([^/]+)/(invocations|invocations-response-stream|async-invocations)")
_RUNTIME_OPERATIONS = {
    "invocations": "InvokeEndpoint",
    "invocations-response-stream": "InvokeEndpointWithResponseStream",
    "async-invocations": "InvokeEndpointAsync",
}
_UNSUPPORTED_HEADERS = {
    "x-amzn-sagemaker-inference-component": "InferenceComponentName",
    "x-amzn-sagemaker-target-container-hostname": "TargetContainerHostname",
    "x-amzn-sagemaker-enable-explanations": "EnableExplanations",
    "x-amzn-sagemaker-session-id": "SessionId",
    "x-amzn-sagemaker-prefix-aware-id": "PrefixAwareId",
}


def service_of(request: Request) -> str:
    """The service of the credential scope, in the headers or in the address.

    Without one it is guessed, so that the refusal is in the right protocol: S3 is what is left.
    """
    found = _SCOPE.search(request.headers.get("authorization", ""))
    if found is not None:
        return found[1]
    for part in unquote(request.query).split("&"):
        if part.startswith("X-Amz-Credential=") and part.count("/") >= 4:
            return part.split("/")[-2]
    if request.headers.get("x-amz-target", "").startswith("SageMaker."):
        return "sagemaker"
    if request.method == "POST" and _INVOCATION.fullmatch(request.path):
        return "sagemaker"
    is_form = request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded")
    return "sts" if is_form and request.path == "/" else "s3"


def protocol_of(service: str, request: Request) -> protocols.Protocol:
    if service == "s3":
        return "rest-xml"
    if "x-amz-target" in request.headers:
        return "json"
    return "rest-json" if service == "sagemaker" else "query"


def invocation(request: Request) -> tuple[str, str]:
    """The operation of the runtime that is asked for, and its endpoint's name; raises for what this platform can't do.

    Everything but the body is checked.
    """
    found = _INVOCATION.fullmatch(request.path)
    if found is None or request.method != "POST":
        raise UnknownOperation(f"SageMaker has no operation {request.method} {request.path}")
    endpoint_name, operation = unquote(found[1]), _RUNTIME_OPERATIONS[found[2]]
    if operation == "InvokeEndpointAsync":
        raise UnsupportedOperation(f"{operation} is not supported by the local platform; use InvokeEndpoint")
    for header in _UNSUPPORTED_HEADERS.keys() & request.headers.keys():
        member = _UNSUPPORTED_HEADERS[header]
        raise UnsupportedOperation(f"{member} of {operation} is not supported by the local platform")
    _validate_invocation(operation, endpoint_name, request.headers)
    return operation, endpoint_name


def _validate_invocation(operation: str, endpoint_name: str, headers: Mapping[str, str]) -> None:
    """Check what comes in the path and in headers against the operation's shape; the body's length is checked apart."""
    name_shape, by_header = _invocation_shapes(operation)
    given = [(name_shape, endpoint_name, "EndpointName")]
    given += [(shape, headers[header], member) for header, member, shape in by_header if header in headers]
    if not all(validation.is_sound(shape, value) for shape, value, _ in given):
        faults = [fault for shape, value, member in given for fault in validation.faults(shape, value, member)]
        raise protocols.of_the_runtime(validation.refusal(faults))


@cache
def _invocation_shapes(operation: str) -> tuple[Shape, tuple[tuple[str, str, Shape], ...]]:
    """The shapes of an endpoint's name and of what comes in headers: header, member, shape."""
    model = validation.operation("sagemaker-runtime", operation)
    assert model is not None
    members = model.input_shape.members
    by_header = (
        (shape.serialization["name"].lower(), member, shape)
        for member, shape in members.items()
        if shape.serialization.get("location") == "header"
    )
    return members["EndpointName"], tuple(by_header)

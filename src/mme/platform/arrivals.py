"""Decides what a request is for: which service and protocol of AWS's, and which call on which endpoint.

A request says so by the scope of its credential, `X-Amz-Target` and its path.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import unquote

from mme.platform import protocols, validation
from mme.platform.errors import AccessDenied, UnknownOperation, UnsupportedOperation, ValidationException
from mme.platform.messages import Request

_SCOPE = re.compile(r"Credential=[^/,\s]+/\d{8}/[^/]+/([^/,\s]+)/aws4_request")
_INVOCATION = re.compile(r"/endpoints/([^/]+)/(invocations|invocations-response-stream|async-invocations)")
_LOOPBACK = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:\d+)?", re.IGNORECASE)
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


def refuse_other_hosts(request: Request) -> None:
    """A page in a browser can make its own name point to this machine, but can't make the browser send another one."""
    host = request.headers.get("host", "")
    if not _LOOPBACK.fullmatch(host):
        raise AccessDenied(f"the local platform does not answer for the host {host!r}; call it as 127.0.0.1")
    if not request.path.startswith("/"):
        raise UnknownOperation(f"there is nothing at {request.path!r}")


def service_of(request: Request) -> str:
    """The service of the credential scope. A request without one is S3's: signed in its URL, or not at all."""
    found = _SCOPE.search(request.headers.get("authorization", ""))
    if found is not None:
        return found[1]
    if request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        return "sts"  # AssumeRoleWithWebIdentity and its kin are not signed
    for part in unquote(request.query).split("&"):
        if part.startswith("X-Amz-Credential="):
            return part.split("/")[-2] if part.count("/") >= 4 else "s3"
    return "s3"


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
    for header, member in _UNSUPPORTED_HEADERS.items():
        if header in request.headers:
            raise UnsupportedOperation(f"{member} of {operation} is not supported by the local platform")
    _validate_invocation(operation, endpoint_name, request.headers)
    return operation, endpoint_name


def _validate_invocation(operation: str, endpoint_name: str, headers: Mapping[str, str]) -> None:
    """Check what comes in the path and in headers against the operation's shape; the body's length is checked apart."""
    model = validation.operation("sagemaker-runtime", operation)
    assert model is not None
    given = {"EndpointName": endpoint_name, "Body": ""}
    for name, shape in model.input_shape.members.items():
        if shape.serialization.get("location") == "header":
            value = headers.get(shape.serialization["name"].lower())
            if value is not None:
                given[name] = value
    try:
        validation.check(model.input_shape, given)
    except ValidationException as error:
        raise protocols.of_the_runtime(error) from error

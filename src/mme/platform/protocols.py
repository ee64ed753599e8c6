"""Decides how answers and errors look on the wire, for each protocol that AWS's services are spoken to in."""

from __future__ import annotations

import json
from typing import Literal
from xml.sax.saxutils import escape

from mme.platform.errors import AwsError, ValidationError, ValidationException

Protocol = Literal["json", "rest-json", "rest-xml", "query"]
Headers = list[tuple[str, str]]

JSON = "application/x-amz-json-1.1"


def headers(content_type: str, body: bytes, request_id: str, **more: str) -> Headers:
    named = {"content-type": content_type, "content-length": str(len(body)), "x-amzn-requestid": request_id, **more}
    return list(named.items())


def answer(document: object, request_id: str) -> tuple[int, Headers, bytes]:
    """A control plane's answer, in JSON 1.1."""
    body = json.dumps(document, separators=(",", ":")).encode() if document else b""
    return 200, headers(JSON, body, request_id), body


def failure(error: AwsError, protocol: Protocol, request_id: str) -> tuple[int, Headers, bytes]:
    """The one place where an error becomes a status, headers and a body, in the forms that botocore reads."""
    if protocol == "json":
        # JSON 1.1 services answer 400 for every fault of the caller's.
        status = 400 if error.status in (403, 404) else error.status
        body = json.dumps({"__type": error.code, "message": error.message, **error.members}).encode()
        return status, headers(JSON, body, request_id), body
    if protocol == "rest-json":
        body = json.dumps({**error.members, "Message": error.message}).encode()
        kind = {"x-amzn-errortype": error.code}
        return error.status, headers("application/json", body, request_id, **kind), body
    members = f"<Code>{error.code}</Code><Message>{escape(error.message)}</Message>"
    if protocol == "rest-xml":
        text = f"<Error>{members}<RequestId>{request_id}</RequestId></Error>"
    else:
        kind_of = "Receiver" if error.status >= 500 else "Sender"
        text = (
            f"<ErrorResponse><Error><Type>{kind_of}</Type>{members}</Error>"
            f"<RequestId>{request_id}</RequestId></ErrorResponse>"
        )
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n{text}'.encode()
    return error.status, headers("application/xml", body, request_id), body


def of_the_runtime(error: ValidationException) -> ValidationError:
    """The runtime calls the same fault by another name."""
    return ValidationError(error.message)

"""Decides whether an S3 address signed the old way (SigV2) holds, and signs its request anew for the store of objects.

boto3 and `aws s3 presign` sign addresses like that for us-east-1, and rclone understands SigV4 only.
"""

from __future__ import annotations

import hmac
import time
from dataclasses import replace
from typing import Any
from urllib.parse import SplitResult, parse_qsl, urlencode

from botocore.auth import UNSIGNED_PAYLOAD, HmacV1QueryAuth, S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.compat import HTTPHeaders
from botocore.credentials import Credentials

from mme.platform.config import ObjectStore
from mme.platform.errors import AccessDenied, AwsError
from mme.platform.proxy import Request

_SIGNATURE = ("AWSAccessKeyId", "Signature", "Expires")
_SIGNED_ANEW = ("host", "authorization", "x-amz-date", "x-amz-content-sha256")


class InvalidAccessKeyId(AwsError):
    code = "InvalidAccessKeyId"
    status = 403


class SignatureDoesNotMatch(AwsError):
    code = "SignatureDoesNotMatch"
    status = 403


class _AsItWasSigned(HmacV1QueryAuth):  # type: ignore[misc]
    """Computes the signature that an address with this end of its time has."""

    def __init__(self, credentials: Credentials, expires: str) -> None:
        super().__init__(credentials)
        self._given = expires

    def _get_date(self) -> str:
        return self._given


class _UnsignedPayload(S3SigV4Auth):  # type: ignore[misc]
    """Signs everything but the body, which is not here yet."""

    def payload(self, request: Any) -> str:
        return str(UNSIGNED_PAYLOAD)


def is_presigned(request: Request) -> bool:
    return "authorization" not in request.headers and "AWSAccessKeyId=" in request.query


def signed_anew(request: Request, store: ObjectStore) -> Request:
    """The same request, with the store's own signature in place of that in its query.

    Raises InvalidAccessKeyId, SignatureDoesNotMatch, or AccessDenied for an address that has expired, as S3 does.
    """
    query = dict(parse_qsl(request.query, keep_blank_values=True))
    if query["AWSAccessKeyId"] != store.access_key:
        raise InvalidAccessKeyId("The AWS Access Key Id you provided does not exist in our records.")
    expires = query.get("Expires", "")
    given = HTTPHeaders()
    for name, value in {**request.headers, **_headers_in(query)}.items():
        given[name] = value
    credentials = Credentials(store.access_key, store.secret_key)
    expected = _AsItWasSigned(credentials, expires).get_signature(
        request.method, SplitResult("http", "", request.path, request.query, ""), given
    )
    if not hmac.compare_digest(expected, query.get("Signature", "")):
        raise SignatureDoesNotMatch(
            "The request signature we calculated does not match the signature you provided. "
            "Check your key and signing method."
        )
    if not expires.isdigit() or int(expires) < time.time():
        raise AccessDenied("Request has expired")
    moved = _headers_in(query)
    rest = urlencode({name: value for name, value in query.items() if name not in (*_SIGNATURE, *moved)})
    url = f"{store.s3_url}{request.path}" + (f"?{rest}" if rest else "")
    headers = {name: value for name, value in ({**request.headers, **moved}).items() if name not in _SIGNED_ANEW}
    own = AWSRequest(request.method, url, {name: value for name, value in headers.items() if name.startswith("x-amz-")})
    _UnsignedPayload(credentials, "s3", store.region).add_auth(own)
    signature = {name.lower(): value for name, value in own.headers.items()}
    return replace(request, query=rest, headers={**headers, **signature})


def _headers_in(query: dict[str, str]) -> dict[str, str]:
    """What was signed as a header and put into the address, since its user would not send it."""
    names = ("content-md5", "content-type")
    return {name: value for name, value in query.items() if name.startswith("x-amz-") or name in names}

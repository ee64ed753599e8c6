"""Decides whether a signature of an S3 call holds, where the store can't check it, and signs what goes there instead.

boto3 and `aws s3 presign` sign addresses the old way (SigV2) for us-east-1, and rclone understands SigV4 only.
"""

from __future__ import annotations

import hmac
import re
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import SplitResult, parse_qsl, urlencode

from botocore.auth import UNSIGNED_PAYLOAD, HmacV1QueryAuth, S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.compat import HTTPHeaders
from botocore.credentials import Credentials

from mme.platform.config import ObjectStore
from mme.platform.errors import AccessDenied, AwsError
from mme.platform.messages import Request

_SIGNATURE = ("AWSAccessKeyId", "Signature", "Expires")
_MISMATCH = (
    "The request signature we calculated does not match the signature you provided. Check your key and signing method."
)
_AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 Credential=(?P<key>[^/]+)/\d{8}/(?P<region>[^/]+)/s3/aws4_request, *"
    r"SignedHeaders=(?P<names>[^,]+), *Signature=(?P<signature>[0-9a-f]+)"
)
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
        raise SignatureDoesNotMatch(_MISMATCH)
    if not expires.isdigit() or int(expires) < time.time():
        raise AccessDenied("Request has expired")
    moved = _headers_in(query)
    rest = urlencode({name: value for name, value in query.items() if name not in (*_SIGNATURE, *moved)})
    headers = {name: value for name, value in {**request.headers, **moved}.items() if name not in _SIGNED_ANEW}
    signature = signed(request.method, request.path, rest, headers, store)
    return replace(request, query=rest, headers={**headers, **signature})


def signed(method: str, path: str, query: str, headers: Mapping[str, str], store: ObjectStore) -> dict[str, str]:
    """The headers to add to a request to the store, whose body may be anything; it may be sent within 15 minutes."""
    url = f"{store.s3_url}{path}" + (f"?{query}" if query else "")
    own = AWSRequest(method, url, {name: value for name, value in headers.items() if name.startswith("x-amz-")})
    _UnsignedPayload(Credentials(store.access_key, store.secret_key), "s3", store.region).add_auth(own)
    return {name.lower(): value for name, value in own.headers.items()}


def verify(request: Request, store: ObjectStore) -> None:
    """Check the SigV4 signature in the headers of a request that will not reach the store as it is.

    Raises InvalidAccessKeyId, SignatureDoesNotMatch.
    """
    found = _AUTHORIZATION.search(request.headers.get("authorization", ""))
    if found is None or found["key"] != store.access_key:
        raise InvalidAccessKeyId("The AWS Access Key Id you provided does not exist in our records.")
    url = f"http://{request.headers['host']}{request.target}"
    names = found["names"].split(";")
    own = AWSRequest(request.method, url, {name: request.headers.get(name, "") for name in names})
    own.context["timestamp"] = request.headers.get("x-amz-date", "")
    auth = S3SigV4Auth(Credentials(store.access_key, store.secret_key), "s3", found["region"])
    expected = auth.signature(auth.string_to_sign(own, auth.canonical_request(own)), own)
    if not hmac.compare_digest(expected, found["signature"]):
        raise SignatureDoesNotMatch(_MISMATCH)


def _headers_in(query: dict[str, str]) -> dict[str, str]:
    """What was signed as a header and put into the address, since its user would not send it."""
    names = ("content-md5", "content-type")
    return {name: value for name, value in query.items() if name.startswith("x-amz-") or name in names}

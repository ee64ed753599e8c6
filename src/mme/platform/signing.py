"""Decides how a call reaches the store of objects, which knows Signature Version 4 and the home's own key alone.

boto3 and `aws s3 presign` sign addresses the old way, by Signature Version 2, for us-east-1.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import SplitResult, parse_qsl, quote, urlencode

from botocore.auth import UNSIGNED_PAYLOAD, HmacV1QueryAuth, S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.compat import HTTPHeaders
from botocore.credentials import Credentials

from mme.platform.config import ObjectStore
from mme.platform.messages import Request
from mme.platform.signatures import MISMATCH_TO_S3, UNKNOWN_TO_S3, Keys, NotAuthentic

_SIGNATURE = ("AWSAccessKeyId", "Signature", "Expires")
_SIGNED_ANEW = ("host", "authorization", "x-amz-date", "x-amz-content-sha256", "x-amz-security-token")


class _AsItWasSigned(HmacV1QueryAuth):  # type: ignore[misc]
    """Computes the signature that an address with this end of its time has."""

    def __init__(self, credentials: Credentials, expires: str) -> None:
        super().__init__(credentials)
        self._given = expires

    def _get_date(self) -> str:
        return self._given


class _GivenPayload(S3SigV4Auth):  # type: ignore[misc]
    """Signs everything but the body, which is not here yet."""

    def __init__(self, credentials: Credentials, region: str, payload: str) -> None:
        super().__init__(credentials, "s3", region)
        self._given = payload

    def payload(self, request: Any) -> str:
        return self._given


def is_old(request: Request) -> bool:
    """Whether it is signed in its address as before Signature Version 4."""
    return "authorization" not in request.headers and "AWSAccessKeyId=" in request.query


async def check_old(request: Request, keys: Keys) -> None:
    """Raise NotAuthentic unless its signature holds and its time has not come."""
    query = dict(parse_qsl(request.query, keep_blank_values=True))
    secret = await keys.secret(query["AWSAccessKeyId"])
    if secret is None or secret.token != query.get("x-amz-security-token"):
        raise NotAuthentic("unknown", "rest-xml", UNKNOWN_TO_S3)
    expires = query.get("Expires", "")
    given = HTTPHeaders()
    for name, value in {**request.headers, **_headers_in(query)}.items():
        given[name] = value
    credentials = Credentials(query["AWSAccessKeyId"], secret.secret_key)
    expected = _AsItWasSigned(credentials, expires).get_signature(
        request.method, SplitResult("http", "", request.path, request.query, ""), given
    )
    if not hmac.compare_digest(expected.encode(), query.get("Signature", "").encode()):
        raise NotAuthentic("mismatch", "rest-xml", MISMATCH_TO_S3)
    if not expires.isdigit() or int(expires) < time.time():
        raise NotAuthentic("expired", "rest-xml", "Request has expired")


def signed_anew(request: Request, store: ObjectStore) -> Request:
    """The same request, with the store's own signature in place of the one it came with, or of none."""
    query = dict(parse_qsl(request.query, keep_blank_values=True))
    moved = _headers_in(query)
    left_out = (*_SIGNATURE, *moved)
    rest = urlencode(
        {name: value for name, value in query.items() if name not in left_out and not name.startswith("X-Amz-")},
        quote_via=quote,
    )
    payload = request.headers.get("x-amz-content-sha256", "")
    headers = {name: value for name, value in {**request.headers, **moved}.items() if name not in _SIGNED_ANEW}
    signature = signed(
        request.method, request.path, rest, headers, store, payload if payload.startswith("STREAMING-") else None
    )
    return replace(request, query=rest, headers={**headers, **signature})


def signed(
    method: str, path: str, query: str, headers: Mapping[str, str], store: ObjectStore, payload: str | None = None
) -> dict[str, str]:
    """The headers to add to a request to the store, which may be sent within 15 minutes.

    `payload` is what it says of its body; None for one that may have any.
    """
    url = f"{store.s3_url}{path}" + (f"?{query}" if query else "")
    own = AWSRequest(method, url, {name: value for name, value in headers.items() if name.startswith("x-amz-")})
    _GivenPayload(Credentials(store.access_key, store.secret_key), store.region, payload or UNSIGNED_PAYLOAD).add_auth(
        own
    )
    return {name.lower(): value for name, value in own.headers.items()}


def _headers_in(query: dict[str, str]) -> dict[str, str]:
    """What was signed as a header and put into the address, since its user would not send it."""
    names = ("content-md5", "content-type")
    return {name: value for name, value in query.items() if name.startswith("x-amz-") or name in names}

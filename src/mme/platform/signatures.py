"""Decides whether a request is signed, by Signature Version 4, with a key that somebody here has.

AWS names the same fault differently by protocol: IAM user guide, "Troubleshoot Signature Version 4 requests for AWS
APIs", and Amazon S3 API reference, "Error responses". Not verified: SageMaker's own words where they may differ.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Protocol
from urllib.parse import parse_qsl, quote

from botocore.auth import EMPTY_SHA256_HASH, UNSIGNED_PAYLOAD
from botocore.utils import normalize_url_path

from mme.platform import protocols
from mme.platform.errors import AwsError
from mme.platform.messages import Request

_AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256\s+Credential=(?P<key>[^/,\s]+)/(?P<date>\d{8})/(?P<region>[^/,\s]+)/(?P<service>[^/,\s]+)"
    r"/aws4_request,\s*SignedHeaders=(?P<names>[^,\s]+),\s*Signature=(?P<signature>[0-9a-f]{64})"
)
_CREDENTIAL = re.compile(r"([^/]+)/(\d{8})/([^/]+)/([^/]+)/aws4_request")
_TIMESTAMP = re.compile(r"\d{8}T\d{6}Z")
_SKEW_S = 5 * 60  # of the time of a signature, either way
_SKEW_OF_S3_S = 15 * 60
_LONGEST_PRESIGNED_S = 7 * 24 * 3600

_MISMATCH = (
    "The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key "
    "and signing method. Consult the service documentation for details."
)
MISMATCH_TO_S3 = (
    "The request signature we calculated does not match the signature you provided. Check your key and signing method."
)
_UNKNOWN = "The security token included in the request is invalid."
_WRONG_TOKEN_TO_S3 = "The provided token is malformed or otherwise invalid."
UNKNOWN_TO_S3 = "The AWS Access Key Id you provided does not exist in our records."

# A fault's code and status in S3's XML, in the query protocol, and in the two JSON protocols.
_NAMES = {
    "missing": (("AccessDenied", 403), ("MissingAuthenticationToken", 403), "MissingAuthenticationTokenException"),
    "malformed": (("AuthorizationHeaderMalformed", 400), ("IncompleteSignature", 400), "IncompleteSignatureException"),
    "unknown": (("InvalidAccessKeyId", 403), ("InvalidClientTokenId", 403), "UnrecognizedClientException"),
    "token": (("InvalidToken", 400), ("InvalidClientTokenId", 403), "UnrecognizedClientException"),
    "skewed": (("RequestTimeTooSkewed", 403), ("SignatureDoesNotMatch", 403), "InvalidSignatureException"),
    "expired": (("AccessDenied", 403), ("SignatureDoesNotMatch", 403), "InvalidSignatureException"),
    "mismatch": (("SignatureDoesNotMatch", 403), ("SignatureDoesNotMatch", 403), "InvalidSignatureException"),
    "content": (("XAmzContentSHA256Mismatch", 400), ("SignatureDoesNotMatch", 403), "InvalidSignatureException"),
}


class NotAuthentic(AwsError):
    """A request that isn't signed as it should be, by the name that its protocol has for the fault."""

    def __init__(self, fault: str, protocol: protocols.Protocol, message: str) -> None:
        super().__init__(message)
        of_s3, of_query, of_json = _NAMES[fault]
        self.code, self.status = {"rest-xml": of_s3, "query": of_query}.get(protocol, (of_json, 403))


@dataclass(frozen=True)
class Secret:
    """What goes with an access key."""

    secret_key: str
    token: str | None = None
    """That of a session's temporary key."""
    owner: str = ""
    """The key in whose place the session's stands; a role's session stands for itself."""


class Keys(Protocol):
    async def secret(self, access_key: str) -> Secret | None:
        """The secret of a key, None for one that nobody has."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What a request says of its signature. `expires_s` is set for one that is signed in its address."""

    access_key: str
    date: str
    region: str
    service: str
    names: str
    signature: str
    timestamp: str
    token: str | None
    expires_s: int | None = None


def claim_of(request: Request, protocol: protocols.Protocol) -> Claim:
    """Raises NotAuthentic where there is none, or one that isn't whole."""
    authorization = request.headers.get("authorization")
    if authorization is None:
        return _claim_in_address(request, protocol)
    found = _AUTHORIZATION.fullmatch(authorization)
    timestamp = request.headers.get("x-amz-date", "")
    if found is None:
        raise NotAuthentic("malformed", protocol, _missing(authorization))
    if not _TIMESTAMP.fullmatch(timestamp) or timestamp[:8] != found["date"]:
        text = "Authorization header requires existence of an 'X-Amz-Date' header of the date in its Credential."
        raise NotAuthentic("malformed", protocol, text)
    if "host" not in found["names"].split(";"):
        raise NotAuthentic("malformed", protocol, "'Host' must be a 'SignedHeader' in the AWS Authorization.")
    key, date, region, service, names, signature = found.groups()
    token = request.headers.get("x-amz-security-token")
    return Claim(key, date, region, service, names, signature, timestamp, token)


def _missing(authorization: str) -> str:
    parts = ("Credential", "Signature", "SignedHeaders")
    wanted = [f"Authorization header requires '{part}' parameter." for part in parts if f"{part}=" not in authorization]
    return " ".join(wanted or ["The authorization header is malformed; it is not of the form of AWS4-HMAC-SHA256."])


def _claim_in_address(request: Request, protocol: protocols.Protocol) -> Claim:
    query = dict(parse_qsl(request.query, keep_blank_values=True)) if "X-Amz-" in request.query else {}
    if "X-Amz-Signature" not in query:
        text = "Access Denied" if protocol == "rest-xml" else "Missing Authentication Token"
        raise NotAuthentic("missing", protocol, text)
    credential = _CREDENTIAL.fullmatch(query.get("X-Amz-Credential", ""))
    timestamp, names = query.get("X-Amz-Date", ""), query.get("X-Amz-SignedHeaders", "")
    expires = query.get("X-Amz-Expires", "")
    is_whole = query.get("X-Amz-Algorithm") == "AWS4-HMAC-SHA256" and _TIMESTAMP.fullmatch(timestamp) is not None
    is_timed = expires.isascii() and expires.isdigit() and int(expires) <= _LONGEST_PRESIGNED_S
    if credential is None or not is_whole or not is_timed or "host" not in names.split(";"):
        text = "Query-string authentication requires the X-Amz-Algorithm, X-Amz-Credential, X-Amz-Signature, "
        raise NotAuthentic("malformed", protocol, f"{text}X-Amz-Date, X-Amz-SignedHeaders, and X-Amz-Expires.")
    token = query.get("X-Amz-Security-Token")
    key, date, region, service = credential.groups()
    return Claim(key, date, region, service, names, query["X-Amz-Signature"], timestamp, token, int(expires))


class Signatures:
    """Checks signatures. Belongs to one event loop; waits only for keys that are not the home's own."""

    def __init__(self, keys: Keys, now: Callable[[], float] = time.time) -> None:
        self._keys = keys
        self._now = now

    async def check(self, claim: Claim, request: Request, protocol: protocols.Protocol, body: bytes | None) -> None:
        """Raise NotAuthentic unless the claim holds. `body` is None where it comes later: S3's."""
        is_s3 = claim.service == "s3"
        self._check_time(claim, protocol)
        secret = await self._keys.secret(claim.access_key)
        if secret is None:
            raise NotAuthentic("unknown", protocol, UNKNOWN_TO_S3 if is_s3 else _UNKNOWN)
        if secret.token != claim.token:
            raise NotAuthentic("token", protocol, _WRONG_TOKEN_TO_S3 if is_s3 else _UNKNOWN)
        said = request.headers.get("x-amz-content-sha256")
        if body is not None:
            payload = hashlib.sha256(body).hexdigest() if body else EMPTY_SHA256_HASH
            if said is not None and said != payload:
                raise NotAuthentic("content", protocol, _MISMATCH)
        else:
            payload = said if said is not None else UNSIGNED_PAYLOAD
        if not hmac.compare_digest(expected(claim, request, secret.secret_key, payload), claim.signature):
            raise NotAuthentic("mismatch", protocol, MISMATCH_TO_S3 if is_s3 else _MISMATCH)

    def _check_time(self, claim: Claim, protocol: protocols.Protocol) -> None:
        try:
            at, now = _seconds(claim.timestamp), self._now()
        except ValueError:
            raise NotAuthentic("malformed", protocol, f"There is no time {claim.timestamp!r}.") from None
        skew_s = _SKEW_OF_S3_S if claim.service == "s3" else _SKEW_S
        if claim.expires_s is not None and now > at + claim.expires_s:
            raise NotAuthentic("expired", protocol, "Request has expired")
        if at - skew_s <= now and (now <= at + skew_s or claim.expires_s is not None):
            return
        text = "The difference between the request time and the current time is too large."
        if claim.service != "s3" and at < now:
            text = f"expired: {claim.timestamp} is now earlier than {_stamp(now - skew_s)} ({_stamp(now)} - 5 min.)"
        elif claim.service != "s3":
            latest = f"{_stamp(now + skew_s)} ({_stamp(now)} + 5 min.)"
            text = f"not yet current: {claim.timestamp} is still later than {latest}"
        raise NotAuthentic("skewed", protocol, text if claim.service == "s3" else f"Signature {text}")


def expected(claim: Claim, request: Request, secret_key: str, payload: str) -> str:
    """The signature that `secret_key` makes of the request; `payload` is the body's digest, or what is said of it.

    As botocore computes it, whose signer takes longer and signs headers of its own choice.
    """
    headers = request.headers
    lines = "\n".join([f"{name}:{' '.join(headers.get(name, '').split())}" for name in claim.names.split(";")])
    if not lines.isascii():
        lines = lines.encode("latin-1", "replace").decode("utf-8", "replace")
    path = _canonical_path(request.path, claim.service == "s3")
    query = _canonical_query(request.query) if request.query else ""
    canonical = f"{request.method}\n{path}\n{query}\n{lines}\n\n{claim.names}\n{payload}"
    scope = f"{claim.date}/{claim.region}/{claim.service}/aws4_request"
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    to_sign = f"AWS4-HMAC-SHA256\n{claim.timestamp}\n{scope}\n{digest}"
    key = _signing_key(secret_key, claim.date, claim.region, claim.service)
    return hmac.digest(key, to_sign.encode(), "sha256").hex()


@lru_cache(1024)
def _canonical_path(path: str, is_s3: bool) -> str:
    """S3 takes a path as it is, everybody else without dots and quoted once more."""
    return path if is_s3 else quote(normalize_url_path(path), safe="/~")


def _canonical_query(query: str) -> str:
    pairs = (pair.partition("=") for pair in query.split("&") if not pair.startswith("X-Amz-Signature="))
    return "&".join([f"{name}={value}" for name, value in sorted((name, value) for name, _, value in pairs)])


@lru_cache(1024)
def _signing_key(secret_key: str, date: str, region: str, service: str) -> bytes:
    key = f"AWS4{secret_key}".encode()
    for part in (date, region, service, "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key


@lru_cache(64)
def _seconds(timestamp: str) -> float:
    return datetime.strptime(timestamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()


def _stamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y%m%dT%H%M%SZ")

"""Decides what becomes of an S3 call: the store of objects does it, moto answers for the bucket, or it is refused.

`rclone serve s3` takes what it doesn't know for something else: PutObjectTagging replaces the object's bytes,
DeleteObjectTagging deletes it, conditions of a write are ignored. So only what it was seen to do right gets there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal
from urllib.parse import parse_qsl, unquote

from mme.platform.errors import AwsError

Place = Literal["objects", "bucket", "both", "copy of a part"]

# Configuration of a bucket, as its sub-resource is called in the query, with the methods moto answers for.
_BUCKET_CONFIGURATION = {
    "accelerate": "GET PUT",
    "acl": "GET PUT",
    "cors": "GET PUT DELETE",
    "encryption": "GET PUT DELETE",
    "lifecycle": "GET PUT DELETE",
    "location": "GET",
    "logging": "GET PUT",
    "notification": "GET PUT",
    "object-lock": "GET",
    "ownershipControls": "GET PUT DELETE",
    "policy": "GET PUT DELETE",
    "policyStatus": "GET",
    "publicAccessBlock": "GET PUT DELETE",
    "requestPayment": "GET",
    "tagging": "GET PUT DELETE",
    "versioning": "GET",
    "website": "GET PUT DELETE",
}

# What may stand in a query beside the sub-resource: where signatures are, and what tells the operation's name.
_SIGNATURE = re.compile(r"x-amz-.*|AWSAccessKeyId|Signature|Expires|x-id", re.IGNORECASE)
_RESPONSE_HEADERS = {f"response-{n}" for n in ("content-type", "content-disposition", "cache-control", "expires")}

_LISTING = {"prefix", "delimiter", "max-keys", "encoding-type"}
_LISTING_1 = _LISTING | {"marker"}
_LISTING_2 = _LISTING | {"list-type", "continuation-token", "start-after", "fetch-owner"}

# (method, whether there is a key) -> the sets of query names that the store understands, each exactly ...
_EXACT_CALLS: dict[tuple[str, bool], tuple[set[str], ...]] = {
    ("HEAD", False): (set(),),
    ("PUT", False): (set(),),
    ("DELETE", False): (set(),),
    ("POST", False): ({"delete"},),
    ("HEAD", True): (set(),),
    ("PUT", True): (set(), {"partNumber", "uploadId"}),
    ("DELETE", True): (set(), {"uploadId"}),
    ("POST", True): ({"uploads"}, {"uploadId"}),
}
# ... or as far as they are given.
_READING_CALLS: dict[tuple[str, bool], tuple[set[str], ...]] = {
    ("GET", False): (_LISTING_2, _LISTING_1),
    ("GET", True): (_RESPONSE_HEADERS,),
}

# Headers that ask for what the store would not do, and the name under which a refusal speaks of them.
_UNHEEDED_IN_WRITES = {
    "if-match": "a conditional write (If-Match)",
    "if-none-match": "a conditional write (If-None-Match)",
    "x-amz-tagging": "tagging of objects",
    "x-amz-object-lock-mode": "object lock",
    "x-amz-object-lock-legal-hold": "object lock",
    "x-amz-object-lock-retain-until-date": "object lock",
    "x-amz-server-side-encryption-customer-algorithm": "encryption with a customer's key (SSE-C)",
    "x-amz-website-redirect-location": "redirects of objects",
    "x-amz-write-offset-bytes": "appending to an object",
    "x-amz-copy-source-if-match": "a conditional copy",
    "x-amz-copy-source-if-none-match": "a conditional copy",
    "x-amz-copy-source-if-modified-since": "a conditional copy",
    "x-amz-copy-source-if-unmodified-since": "a conditional copy",
}


class NotImplementedHere(AwsError):
    """S3 can do it, the store of objects here can't; S3's own code for that."""

    code = "NotImplemented"
    status = 501


class InvalidRequest(AwsError):
    code = "InvalidRequest"


class MalformedXML(AwsError):
    code = "MalformedXML"


class NoSuchBucket(AwsError):
    code = "NoSuchBucket"
    status = 404


class NoSuchKey(AwsError):
    code = "NoSuchKey"
    status = 404


@dataclass(frozen=True)
class Call:
    """An S3 call in path style, as far as it matters here: `key` is empty for one about the bucket."""

    method: str
    bucket: str
    key: str
    query: Mapping[str, str]
    headers: Mapping[str, str]


def call(method: str, raw_path: str, raw_query: str, headers: Mapping[str, str]) -> Call:
    """Read a request; `headers` have lower-case names."""
    bucket, _, key = unquote(raw_path).lstrip("/").partition("/")
    return Call(method, bucket, key, dict(parse_qsl(raw_query, keep_blank_values=True)), headers)


def place(one: Call) -> Place:
    """Where a call goes: to the objects, to the bucket's configuration, to both, or to `copies`.

    Raises NotImplementedHere naming what is not supported, before anything is changed.
    """
    query = {name for name in one.query if not _SIGNATURE.fullmatch(name)}
    if not one.bucket:
        if one.method == "GET" and query <= {"prefix", "max-buckets", "continuation-token", "bucket-region"}:
            return "objects"
        raise _refusal(one, query)
    if not one.key:
        for name in sorted(query):
            if one.method in _BUCKET_CONFIGURATION.get(name, "").split():
                return "bucket"
    kind = (one.method, bool(one.key))
    if query not in _EXACT_CALLS.get(kind, ()) and not any(query <= names for names in _READING_CALLS.get(kind, ())):
        raise _refusal(one, query)
    if one.query.get("delimiter", "/") not in ("", "/"):
        raise NotImplementedHere(f"the local S3 lists by the delimiter '/' only, not by {one.query['delimiter']!r}")
    if one.key.endswith("/") and (one.method == "POST" or "x-amz-copy-source" in one.headers):
        raise folder_refusal(one.key)
    if {"partNumber", "uploadId"} <= query and "x-amz-copy-source" in one.headers:
        _refuse_unheeded(one, heeded=("x-amz-copy-source-if-match",))
        return "copy of a part"
    if one.method not in ("GET", "HEAD"):
        _refuse_unheeded(one)
    return "both" if not one.key and one.method in ("PUT", "DELETE") else "objects"


def _refuse_unheeded(one: Call, heeded: tuple[str, ...] = ()) -> None:
    for header, what in _UNHEEDED_IN_WRITES.items():
        if header in one.headers and header not in heeded:
            raise NotImplementedHere(f"the local S3 does not support {what}; leave {header} out, or use AWS")
    if "x-amz-copy-source" in one.headers and "versionId=" in one.headers["x-amz-copy-source"]:
        raise NotImplementedHere("the local S3 has no versions of objects; leave versionId out")


def folder_refusal(key: str) -> NotImplementedHere:
    return NotImplementedHere(
        f"the local S3 keeps objects as files, so none can have the key {key!r}; put its bytes under a key without the "
        "last '/'"
    )


def _refusal(one: Call, query: set[str]) -> NotImplementedHere:
    words = " ".join(sorted(query)) or "no sub-resource"
    about = "an object" if one.key else "a bucket" if one.bucket else "the service"
    return NotImplementedHere(f"the local S3 does not support {one.method} of {about} with {words}")

"""Decides what is said of an object beside its bytes: its type, metadata and the like, kept in the state.

rclone keeps them in memory only, shows headers that S3 keeps to itself, and merges in a copy what S3 replaces. So it is
asked for bytes, and what is said of them is ours, for as long as they have the ETag that they had when it was said.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime
from functools import partial
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import aiohttp

from mme.platform import copies, proxy, s3
from mme.platform.config import ObjectStore
from mme.platform.files import Files
from mme.platform.messages import Reply, Request
from mme.platform.proxy import Answer, Shown, UpstreamGone, passed_back, shown_all
from mme.platform.state import State

_XML_LIMIT_BYTES = 8 << 20  # of CompleteMultipartUpload with 10,000 parts, of DeleteObjects with 1,000 keys
_ETAG_OF_NOTHING = f'"{hashlib.md5(b"").hexdigest()}"'
_TYPE = "binary/octet-stream"  # what S3 calls an object that nobody gave a type
_SAID = {
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-type",
    "expires",
    "x-amz-server-side-encryption",
    "x-amz-server-side-encryption-aws-kms-key-id",
    "x-amz-storage-class",
}
_METADATA = "x-amz-meta-"
_CHECKSUMS = {f"x-amz-checksum-{name}" for name in ("crc32", "crc32c", "crc64nvme", "sha1", "sha256")}
_OF_THE_STORE = {
    "accept-ranges",
    "content-length",
    "content-range",
    "etag",
    "last-modified",
    "x-amz-id-2",
    "x-amz-request-id",
}


class Objects:
    """The objects of the store, as S3 would show them. Belongs to one event loop."""

    def __init__(self, session: aiohttp.ClientSession, store: ObjectStore, files: Files, state: State) -> None:
        self._session = session
        self._store = store
        self._files = files
        self._state = state
        self._uploads: dict[str, dict[str, str]] = {}  # said when an upload in parts began; it ends with the store

    async def answer(self, request: Request, reply: Reply) -> None:
        """Answer a call that `s3.place` gives to the objects. What is said of one is kept before its answer goes out.

        Raises UpstreamGone, and what `s3` has for calls that can't be.
        """
        one = s3.call(request.method, request.path, request.query, request.headers)
        whole: Answer | None = None
        shown: Shown = shown_all
        if one.key and one.method in ("PUT", "POST"):
            self._files.check(one.bucket, one.key)
        match one.method:
            case "POST" if "delete" in one.query:
                whole = await self._delete_objects(one, request)
            case "POST":
                whole = await self._post(one, request)
            case "PUT" if one.key.endswith("/"):
                whole = await self._put_folder(one, request)
            case "PUT" if "x-amz-copy-source" in one.headers:
                whole = await self._copy(one, request)
            case "PUT" if "uploadId" not in one.query:
                shown = partial(self._put, one)
            case "DELETE" if "uploadId" not in one.query and not self._files.is_free(one.bucket, one.key):
                self._files.check_bucket(one.bucket)
                whole = Answer(204, [], b"")
            case "DELETE":
                shown = partial(self._deleted, one)
            case "GET" | "HEAD" if one.key.endswith("/"):
                raise s3.NoSuchKey(f"The specified key {one.key!r} does not exist")
            case "GET" | "HEAD" if one.key:
                shown = partial(self._shown, one)
        if whole is None:
            await proxy.stream(self._session, self._store.s3_url, request, reply, shown)
        else:
            reply.whole(whole.status, whole.headers, whole.body)

    def forget_bucket(self, bucket: str) -> None:
        self._state.forget_bucket(bucket)

    async def _put_folder(self, one: s3.Call, request: Request) -> Answer:
        """What makes a folder in a console: nothing, since here one is there as soon as there are objects under it.

        Raises NotImplementedHere if it has bytes.
        """
        self._files.check_bucket(one.bucket)
        if one.headers.get("x-amz-decoded-content-length", str(request.body.length)) != "0":
            raise s3.folder_refusal(one.key)
        await request.body.whole(_XML_LIMIT_BYTES)
        return Answer(200, [("etag", _ETAG_OF_NOTHING), ("content-length", "0")], b"")

    def _shown(self, one: s3.Call, answer: aiohttp.ClientResponse) -> tuple[int, list[tuple[str, str]]]:
        if answer.status not in (200, 304):
            return shown_all(answer)
        store = [(name, value) for name, value in passed_back(answer) if name in _OF_THE_STORE]
        if answer.status == 304 or _is_unchanged(one, answer):
            return 304, [(name, value) for name, value in store if name != "content-length"]
        said = self._state.description(one.bucket, one.key, _etag(answer))
        if said is None:  # it was put into the folder by hand
            said = {"content-type": answer.headers.get("content-type", _TYPE)}
        is_part = "content-range" in answer.headers
        is_checked = not is_part and one.headers.get("x-amz-checksum-mode") == "ENABLED"
        said = {name: value for name, value in said.items() if is_checked or name not in _CHECKSUMS}
        for name, value in one.query.items():
            if name.startswith("response-"):
                said[name.removeprefix("response-")] = value
        return 206 if is_part else 200, store + list(said.items())

    def _put(self, one: s3.Call, answer: aiohttp.ClientResponse) -> tuple[int, list[tuple[str, str]]]:
        if answer.status == 200:
            self._state.describe(one.bucket, one.key, _etag(answer), _said(one.headers))
        return shown_all(answer)

    def _deleted(self, one: s3.Call, answer: aiohttp.ClientResponse) -> tuple[int, list[tuple[str, str]]]:
        if "uploadId" in one.query:
            self._uploads.pop(one.query["uploadId"], None)
        elif answer.status < 300:
            self._state.forget_objects(one.bucket, [one.key])
        return shown_all(answer)

    async def _post(self, one: s3.Call, request: Request) -> Answer:
        """The begin or end of an upload in parts."""
        body = await request.body.whole(_XML_LIMIT_BYTES)
        answer = await proxy.exchange(self._session, self._store.s3_url, request, body)
        if answer.status != 200:
            return answer
        if "uploads" in one.query:
            upload = ElementTree.fromstring(answer.body).findtext("{*}UploadId", "")
            self._uploads[upload] = _said(one.headers)
        else:
            said = self._uploads.pop(one.query["uploadId"], {})
            self._state.describe(one.bucket, one.key, await self._etag_of(one), said)
        return answer

    async def _delete_objects(self, one: s3.Call, request: Request) -> Answer:
        """A key that no object can have counts as deleted; it is kept from the store, which takes it for another's."""
        body = await request.body.whole(_XML_LIMIT_BYTES)
        try:
            deletion = ElementTree.fromstring(body)
        except ElementTree.ParseError as error:
            raise s3.MalformedXML(f"the body of DeleteObjects is no XML: {error}") from None
        absent = ""
        for each in deletion.findall("{*}Object"):
            for member in each:
                if (name := member.tag.rpartition("}")[2]) != "Key":
                    raise s3.NotImplementedHere(f"the local S3 does not support {name} of DeleteObjects; leave it out")
            key = each.findtext("{*}Key", "")
            if not self._files.is_free(one.bucket, key):
                deletion.remove(each)
                absent += f"<Deleted><Key>{escape(key)}</Key></Deleted>"
        rest = ElementTree.tostring(deletion)
        try:
            sent = copies.send(self._session, self._store, "POST", request.path, "delete", {}, rest)
            async with await sent as answer:
                status, headers, said = answer.status, passed_back(answer), await answer.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise UpstreamGone(str(error)) from error
        if status != 200:
            return Answer(status, headers, said)
        self._state.forget_objects(one.bucket, [key.text or "" for key in deletion.iterfind("{*}Object/{*}Key")])
        if deletion.findtext("{*}Quiet") != "true":
            said = said.replace(b"</DeleteResult>", f"{absent}</DeleteResult>".encode())
        return Answer(200, [("content-type", "application/xml"), ("content-length", str(len(said)))], said)

    async def _copy(self, one: s3.Call, request: Request) -> Answer:
        """A copy is said of what its source is, or what the call says instead; S3 does nothing between."""
        source = copies.source_of(request)
        is_replaced = one.headers.get("x-amz-metadata-directive", "COPY").upper() == "REPLACE"
        if source == (one.bucket, one.key) and not is_replaced:
            raise s3.InvalidRequest(
                "This copy request is illegal because it is trying to copy an object to itself without changing the "
                "object's metadata, storage class, website redirect location or encryption attributes."
            )
        answer = await proxy.exchange(self._session, self._store.s3_url, request, b"")
        if answer.status != 200:
            return answer
        etag = await self._etag_of(one)
        before = self._state.description(*source, etag)
        checksums = {name: value for name, value in (before or {}).items() if name in _CHECKSUMS}
        said = _said(one.headers) | checksums if is_replaced else before
        if said is None:
            self._state.forget_objects(one.bucket, [one.key])
        else:
            self._state.describe(one.bucket, one.key, etag, said)
        return copies.result("CopyObjectResult", f'"{etag}"')

    async def _etag_of(self, one: s3.Call) -> str:
        """The ETag that the store gives the object when it is read; that of an upload in parts is another one."""
        try:
            path = copies.path_of(one.bucket, one.key)
            async with await copies.send(self._session, self._store, "HEAD", path, "", {}) as answer:
                return _etag(answer)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise UpstreamGone(str(error)) from error


def _is_unchanged(one: s3.Call, answer: aiohttp.ClientResponse) -> bool:
    """Whether the caller has the object already, which rclone doesn't look at; of dates only where no ETag is given.

    Raises PreconditionFailed for one that isn't the object which the caller means. RFC 9110, 13.2.2.
    """
    modified = parsedate_to_datetime(answer.headers["last-modified"])
    if (means := one.headers.get("if-match")) is not None:
        is_meant = _names(means, answer)
    else:
        is_meant = "if-unmodified-since" not in one.headers or modified <= _date(one, "if-unmodified-since")
    if not is_meant:
        raise copies.PreconditionFailed("At least one of the pre-conditions you specified did not hold")
    if (has := one.headers.get("if-none-match")) is not None:
        return _names(has, answer)
    return "if-modified-since" in one.headers and modified <= _date(one, "if-modified-since")


def _names(etags: str, answer: aiohttp.ClientResponse) -> bool:
    return etags == "*" or _etag(answer) in [etag.strip().strip('"') for etag in etags.split(",")]


def _date(one: s3.Call, header: str) -> datetime:
    try:
        return parsedate_to_datetime(one.headers[header])
    except ValueError:
        raise s3.InvalidRequest(f"{header}: {one.headers[header]!r} is no date of HTTP") from None


def _etag(answer: aiohttp.ClientResponse) -> str:
    return answer.headers.get("etag", "").strip('"')


def _said(headers: Mapping[str, str]) -> dict[str, str]:
    """What a call says of the object that it puts."""
    said = {
        name: value
        for name, value in headers.items()
        if name in _SAID or name in _CHECKSUMS or name.startswith(_METADATA)
    }
    said.setdefault("content-type", _TYPE)
    encodings = [part.strip() for part in said.pop("content-encoding", "").split(",")]
    if kept := ",".join(part for part in encodings if part and part != "aws-chunked"):  # of the way, not of the object
        said["content-encoding"] = kept
    if said.get("x-amz-storage-class") == "STANDARD":
        del said["x-amz-storage-class"]  # S3 doesn't say it of the usual one
    return said

"""Decides how a part of an upload is copied from another object: read here and put there, since rclone can't do it.

`aws s3 cp` and boto3's `copy` copy in parts what is larger than 8 MB.
"""

from __future__ import annotations

from datetime import UTC, datetime
from urllib.parse import quote, unquote

import aiohttp
from yarl import URL

from mme.platform import s3, signing
from mme.platform.config import ObjectStore
from mme.platform.errors import AwsError
from mme.platform.messages import Request
from mme.platform.proxy import Answer, UpstreamGone, passed_back


class PreconditionFailed(AwsError):
    code = "PreconditionFailed"
    status = 412


async def copy_part(session: aiohttp.ClientSession, store: ObjectStore, request: Request) -> Answer:
    """UploadPartCopy: S3's answer, or the store's where it refuses.

    Raises NoSuchKey, PreconditionFailed for a source that is another one than the caller thinks, and UpstreamGone.
    """
    source = path_of(*source_of(request))
    asked = request.headers.get("x-amz-copy-source-range")
    headers = {} if asked is None else {"range": asked}
    try:
        read = await send(session, store, "GET", source, "", headers)
        async with read:
            if read.status >= 300:
                return Answer(read.status, passed_back(read), await read.read())
            wanted = request.headers.get("x-amz-copy-source-if-match", "").strip('"')
            if wanted and wanted != read.headers.get("etag", "").strip('"'):
                raise PreconditionFailed("At least one of the pre-conditions you specified did not hold")
            length = {"content-length": read.headers["content-length"]}
            put = await send(session, store, "PUT", request.path, request.query, length, read.content)
            async with put:
                body = await put.read()
                if put.status >= 300:
                    return Answer(put.status, passed_back(put), body)
                return result("CopyPartResult", put.headers["etag"])
    except (aiohttp.ClientError, TimeoutError) as error:
        raise UpstreamGone(str(error)) from error


def source_of(request: Request) -> tuple[str, str]:
    """Bucket and key of what is to be copied. Raises NoSuchKey for a key that no object has."""
    bucket, _, key = unquote(request.headers["x-amz-copy-source"]).lstrip("/").partition("/")
    if key.endswith("/"):
        raise s3.NoSuchKey(f"The specified key {key!r} does not exist")
    return bucket, key


def path_of(bucket: str, key: str) -> str:
    return "/" + quote(f"{bucket}/{key}", safe="/~")


async def send(
    session: aiohttp.ClientSession,
    store: ObjectStore,
    method: str,
    path: str,
    query: str,
    headers: dict[str, str],
    body: aiohttp.StreamReader | bytes | None = None,
) -> aiohttp.ClientResponse:
    """A request of the platform's own to the store of objects."""
    signature = signing.signed(method, path, query, headers, store)
    url = URL(f"{store.s3_url}{path}" + (f"?{query}" if query else ""), encoded=True)
    return await session.request(method, url, headers={**headers, **signature}, data=body)


def result(kind: str, etag: str) -> Answer:
    """S3's answer to a copy: `kind` is CopyObjectResult or CopyPartResult."""
    when = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
    members = f"<LastModified>{when}</LastModified><ETag>{etag.replace(chr(34), '&quot;')}</ETag>"
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n<{kind}>{members}</{kind}>'.encode()
    headers = [("content-type", "application/xml"), ("content-length", str(len(body)))]
    return Answer(200, headers, body)

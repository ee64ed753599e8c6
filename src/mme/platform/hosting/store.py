"""Decides how a package comes from S3: signed requests, one object streamed to one file, checked against its ETag."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlencode, urlsplit
from xml.etree import ElementTree

import aiohttp
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from yarl import URL

from mme.platform.config import ObjectStore
from mme.platform.hosting.plans import PackageMissing, StoreUnavailable

_MD5 = re.compile(r"[0-9a-f]{32}")  # the ETag of an object that was not uploaded in parts
_PIECE_BYTES = 256 * 1024
# Without an answer or a next piece for so long, S3 counts as gone.
_SILENCE_S = 30.0


@dataclass(frozen=True)
class PackageVersion:
    """What S3 says of an object without sending it."""

    etag: str
    size_bytes: int


@dataclass(frozen=True)
class S3Url:
    bucket: str
    key: str

    @classmethod
    def parse(cls, url: str) -> S3Url:
        """Split `s3://bucket/key`. Raises ValueError naming the URL for anything else."""
        parts = urlsplit(url)
        if parts.scheme != "s3" or not parts.netloc:
            raise ValueError(f"{url!r} is not an S3 URL; write s3://bucket/key")
        return cls(parts.netloc, url.partition(parts.netloc)[2].lstrip("/"))

    def join(self, target: str) -> S3Url:
        """The object that `target` names under this prefix.

        Raises PackageMissing for a target with a `.` or `..` segment: S3 takes a key to the letter, a store on a
        file system would leave the prefix with it.
        """
        if any(part in {"", ".", ".."} for part in target.split("/")):
            raise PackageMissing(self.bucket, self.key + target)
        prefix = self.key if not self.key or self.key.endswith("/") else self.key + "/"
        return S3Url(self.bucket, prefix + target)

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}"


class PackageStore:
    """Reads packages from S3. Must be made in a running event loop, and closed."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._auth = S3SigV4Auth(Credentials(store.access_key, store.secret_key), "s3", store.region)
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_SILENCE_S, sock_read=_SILENCE_S),
            auto_decompress=False,
        )

    async def close(self) -> None:
        await self._session.close()

    def _request(
        self, method: str, at: S3Url, query: Mapping[str, str] | None = None
    ) -> aiohttp.client._RequestContextManager:
        url = f"{self._store.s3_url}/{at.bucket}/{quote(at.key, safe='/~')}"
        if query:
            url += f"?{urlencode(query, quote_via=quote)}"
        request = AWSRequest(method=method, url=url)
        self._auth.add_auth(request)
        return self._session.request(method, URL(url, encoded=True), headers=dict(request.headers.items()))

    async def version(self, at: S3Url) -> PackageVersion:
        """HEAD the object. Raises PackageMissing, StoreUnavailable."""
        try:
            async with self._request("HEAD", at) as response:
                return _version(response, at)
        except (aiohttp.ClientError, OSError) as error:
            raise StoreUnavailable(f"S3 does not answer for {at}: {error}") from error

    async def targets(self, prefix: S3Url) -> dict[str, int]:
        """The packages under a prefix, by their names relative to it, in bytes. Raises StoreUnavailable."""
        key = prefix.join("x").key[:-1]
        bucket = S3Url(prefix.bucket, "")
        query = {"list-type": "2", "prefix": key}
        sizes: dict[str, int] = {}
        while True:  # S3 lists 1,000 at once
            try:
                async with self._request("GET", bucket, query) as response:
                    body = await response.text()
                    if response.status != 200:
                        raise StoreUnavailable(f"S3 answered {response.status} for a list of {prefix}")
            except (aiohttp.ClientError, OSError) as error:
                raise StoreUnavailable(f"S3 does not answer for a list of {prefix}: {error}") from error
            listed = ElementTree.fromstring(body)
            for one in listed.iterfind("{*}Contents"):
                sizes[one.findtext("{*}Key", "")[len(key) :]] = int(one.findtext("{*}Size", "0"))
            more = listed.findtext("{*}NextContinuationToken")
            if not more:
                return {target: size_bytes for target, size_bytes in sizes.items() if target.endswith(".tar.gz")}
            query = query | {"continuation-token": more}

    async def download(self, at: S3Url, to: Path, *, limit_bytes: int) -> PackageVersion:
        """GET the object into a new file and return what it was.

        Raises PackageMissing, StoreUnavailable (also for a body that is shorter, longer or other than promised);
        ValueError for an object beyond `limit_bytes`. What is left of the file then is the caller's to remove.
        """
        digest = hashlib.md5(usedforsecurity=False)
        received = 0
        try:
            async with self._request("GET", at) as response:
                version = _version(response, at)
                if version.size_bytes > limit_bytes:
                    raise ValueError(f"{at} has {version.size_bytes} bytes; there is room for {limit_bytes}")
                with to.open("xb") as file:
                    async for piece in response.content.iter_chunked(_PIECE_BYTES):
                        received += len(piece)
                        if received > version.size_bytes:
                            break
                        digest.update(piece)
                        file.write(piece)
        except aiohttp.ClientError as error:
            raise StoreUnavailable(f"S3 broke off {at} after {received} bytes: {error}") from error
        if received != version.size_bytes:
            raise StoreUnavailable(f"S3 promised {version.size_bytes} bytes of {at} and sent {received}")
        if _MD5.fullmatch(version.etag) and digest.hexdigest() != version.etag:
            raise StoreUnavailable(f"S3 sent other bytes of {at} than its ETag {version.etag} says")
        return version


def _version(response: aiohttp.ClientResponse, at: S3Url) -> PackageVersion:
    if response.status == 404:
        raise PackageMissing(at.bucket, at.key)
    if response.status != 200:
        raise StoreUnavailable(f"S3 answered {response.status} for {at}")
    return PackageVersion(response.headers.get("ETag", "").strip('"'), int(response.headers.get("Content-Length", -1)))

"""Decides which access keys there are, and what goes with each: the home's own, and those that moto's IAM and STS made.

What moto makes is read from its answers as they pass; what it made before this process began, from the list of all that
it has (`GET /moto-api/data.json`), which takes it half a second.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

import aiohttp

from mme.platform.backing import Service
from mme.platform.config import ObjectStore
from mme.platform.proxy import UpstreamGone
from mme.platform.signatures import Secret

_BOUND = 10_000  # keys remembered, strangers' too; beyond that all are forgotten and read again
_MADE = re.compile(r"Action=(CreateAccessKey|AssumeRole\w*)(&|$)")
_ENDED = re.compile(r"Action=((Delete|Update)AccessKey|DeleteUser|CreateAccessKey)(&|$)")
_SCOPE = "AWS4-HMAC-SHA256 Credential=platform/20200101/us-east-1/iam/aws4_request, SignedHeaders=host, Signature=none"


class Keyring:
    """Belongs to one event loop."""

    def __init__(self, store: ObjectStore, aws: Service, session: aiohttp.ClientSession) -> None:
        self._own = (store.access_key, Secret(store.secret_key))
        self._aws = aws
        self._session = session
        self._known: dict[str, Secret | None] = {}
        self._asking = asyncio.Lock()

    async def secret(self, access_key: str) -> Secret | None:
        """The secret of a key, None for one that nobody has. Raises UpstreamGone if moto has to be asked and can't."""
        if access_key == self._own[0]:
            return self._own[1]
        if access_key not in self._known:
            async with self._asking:
                if access_key not in self._known:
                    self._remember(access_key, await self._asked(access_key))
        return self._known.get(access_key)

    def learn(self, body: bytes, answer: bytes) -> None:
        """Take note of what a call to IAM or STS, which moto has done, says of keys."""
        asked, said = body.decode("utf-8", "replace"), answer.decode("utf-8", "replace")
        if _ENDED.search(asked):
            self._known.clear()
        if _MADE.search(asked):
            access_key, secret_key = _element("AccessKeyId", said), _element("SecretAccessKey", said)
            if access_key and secret_key:
                self._remember(access_key, Secret(secret_key, _element("SessionToken", said)))

    def _remember(self, access_key: str, secret: Secret | None) -> None:
        if len(self._known) >= _BOUND:
            self._known.clear()
        self._known[access_key] = secret

    async def _asked(self, access_key: str) -> Secret | None:
        await self._aws.up()
        try:
            async with self._session.get(f"{self._aws.url}/moto-api/data.json") as answer:
                had = await answer.json(content_type=None)
            for session in _listed(had, "sts", "AssumedRole"):
                if session["access_key_id"] == access_key:
                    return Secret(session["secret_access_key"], session["session_token"])
            for key in _listed(had, "iam", "AccessKey"):
                if key["access_key_id"] == access_key and await self._is_there(access_key, key["user_name"]):
                    return Secret(key["secret_access_key"])
        except (aiohttp.ClientError, TimeoutError) as error:
            raise UpstreamGone(str(error)) from error
        return None

    async def _is_there(self, access_key: str, user_name: str) -> bool:
        """moto's list goes on to name the keys that were deleted; its IAM does not."""
        asked = {"Action": "ListAccessKeys", "Version": "2010-05-08", "UserName": user_name}
        headers = {"authorization": _SCOPE, "content-type": "application/x-www-form-urlencoded"}
        async with self._session.post(self._aws.url, data=asked, headers=headers) as answer:
            listed = await answer.text()
        members = re.findall(r"<member>.*?</member>", listed, re.DOTALL)
        return any(f">{access_key}<" in member and ">Active<" in member for member in members)


def _listed(had: dict[str, Any], service: str, kind: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = had.get(service, {}).get(kind, [])
    return found


def _element(name: str, xml: str) -> str | None:
    found = re.search(f"<{name}>([^<]+)</{name}>", xml)
    return None if found is None else found[1]

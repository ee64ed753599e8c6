"""Decides which access keys there are, and what goes with each: the home's own, those of users, those of sessions.

What moto makes up is read from its answers as they pass. Users' keys are kept with the home, and moto's IAM is asked
whether they still hold; sessions end with this process. What a CloudFormation stack of moto's makes isn't known here.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from dataclasses import replace
from urllib.parse import parse_qsl

import aiohttp

from mme.platform import proxy
from mme.platform.backing import Service
from mme.platform.config import ObjectStore
from mme.platform.errors import AccessDenied
from mme.platform.messages import Request
from mme.platform.proxy import UpstreamGone
from mme.platform.signatures import Secret
from mme.platform.state import State

_BOUND = 10_000  # keys remembered, strangers' too; beyond that all are forgotten and read again; and sessions
_KIND = "access-key"  # of the documents in the state
_ENDING = ("DeleteAccessKey", "UpdateAccessKey", "DeleteUser", "UpdateUser")
_CREDENTIAL = re.compile(r"(?<=Credential=)[^/,\s]+")
_SCOPE = "AWS4-HMAC-SHA256 Credential=platform/20200101/us-east-1/iam/aws4_request, SignedHeaders=host, Signature=none"


class Keyring:
    """Belongs to one event loop."""

    def __init__(self, store: ObjectStore, aws: Service, session: aiohttp.ClientSession, state: State) -> None:
        self._own = (store.access_key, Secret(store.secret_key))
        self._aws = aws
        self._session = session
        self._state = state
        self._sessions: dict[str, Secret] = {}
        self._known: dict[str, Secret | None] = {}
        self._changes = 0
        self._asking = asyncio.Lock()

    async def secret(self, access_key: str) -> Secret | None:
        """The secret of a key, None for one that nobody has. Raises UpstreamGone if moto has to be asked and can't."""
        if access_key == self._own[0]:
            return self._own[1]
        if (session := self._sessions.get(access_key)) is not None:
            return session if not session.owner or await self.secret(session.owner) is not None else None
        if access_key not in self._known:
            try:
                async with asyncio.timeout(proxy.ANSWER_S), self._asking:
                    return await self._asked(access_key)
            except (aiohttp.ClientError, TimeoutError) as error:
                raise UpstreamGone(f"moto: {error!r}") from error
        return self._known[access_key]

    def as_its_owner(self, request: Request) -> Request:
        """The request as moto knows who sends it: under the key that the session's was made for."""
        session = self._sessions.get(_key_of(request)) if self._sessions else None
        if session is None or not session.owner:
            return request
        signed = _CREDENTIAL.sub(session.owner, request.headers["authorization"], count=1)
        return replace(request, headers={**request.headers, "authorization": signed})

    def refuse_a_session(self, request: Request) -> None:
        """Raise AccessDenied, in AWS's words, for what is asked with a session's key."""
        if _key_of(request) in self._sessions:
            raise AccessDenied("Cannot call GetSessionToken with session credentials")

    def learn(self, request: Request, body: bytes, answer: proxy.Answer) -> proxy.Answer:
        """Take note of what a call to IAM or STS, which moto has done, says of keys; what the caller is to get."""
        asked = dict(parse_qsl(body.decode("utf-8", "replace")))
        said = answer.body.decode("utf-8", "replace")
        action, access_key, secret_key = asked.get("Action", ""), _of(said, "AccessKeyId"), _of(said, "SecretAccessKey")
        if action in _ENDING:
            self._known.clear()
            self._changes += 1
        if action == "DeleteAccessKey":
            self._state.delete(_KIND, asked.get("AccessKeyId", ""))
        elif action == "CreateAccessKey":
            self._state.put(_KIND, access_key, {"secret_key": secret_key, "user_name": _of(said, "UserName")})
            self._known.pop(access_key, None)
        elif action == "AssumeRole":
            self._open(access_key, Secret(secret_key, _of(said, "SessionToken")))
        elif action == "GetSessionToken":
            return self._session_of(request, answer)
        return answer

    def _session_of(self, request: Request, answer: proxy.Answer) -> proxy.Answer:
        """moto's answer with keys of the caller's own: its are one pair for everybody, that of AWS's documentation."""
        access_key = f"ASIA{secrets.token_hex(8).upper()}"
        secret_key, token = secrets.token_hex(20), secrets.token_hex(64)
        self._open(access_key, Secret(secret_key, token, owner=_key_of(request)))
        said = answer.body.decode()
        for name, made in (("AccessKeyId", access_key), ("SecretAccessKey", secret_key), ("SessionToken", token)):
            said = re.sub(f"(?<=<{name}>)[^<]+", made, said)
        headers = [(name, value) for name, value in answer.headers if name != "content-length"]
        return proxy.Answer(answer.status, [*headers, ("content-length", str(len(said)))], said.encode())

    def _open(self, access_key: str, session: Secret) -> None:
        while len(self._sessions) >= _BOUND:
            del self._sessions[next(iter(self._sessions))]  # the oldest
        self._sessions[access_key] = session

    async def _asked(self, access_key: str) -> Secret | None:
        """What is kept of the key, if IAM says that it holds. One who changes that meanwhile has it asked anew."""
        kept = self._state.get(_KIND, access_key)
        while True:
            changes = self._changes
            holds = kept is not None and await self._holds(access_key, kept["user_name"])
            secret = Secret(kept["secret_key"]) if kept is not None and holds else None
            if changes == self._changes:
                if len(self._known) >= _BOUND:
                    self._known.clear()
                self._known[access_key] = secret
                return secret

    async def _holds(self, access_key: str, user_name: str) -> bool:
        await self._aws.up()
        asked = {"Action": "ListAccessKeys", "Version": "2010-05-08", "UserName": user_name}
        headers = {"authorization": _SCOPE, "content-type": "application/x-www-form-urlencoded"}
        async with self._session.post(self._aws.url, data=asked, headers=headers) as answer:
            if answer.status >= 500:
                answer.raise_for_status()
            listed = await answer.text()
        members = re.findall(r"<member>.*?</member>", listed, re.DOTALL)
        return any(f">{access_key}<" in member and ">Active<" in member for member in members)


def _key_of(request: Request) -> str:
    used = _CREDENTIAL.search(request.headers.get("authorization", ""))
    return "" if used is None else used[0]


def _of(xml: str, name: str) -> str:
    found = re.search(f"<{name}>([^<]+)</{name}>", xml)
    return "" if found is None else found[1]

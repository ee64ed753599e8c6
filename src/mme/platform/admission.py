"""Decides who is let in: programs on this machine, not pages in its browsers, that sign with a key known here.

`MME_SIGV4=off` takes any signature, and none, for good.
"""

from __future__ import annotations

import re
from urllib.parse import parse_qs

from mme import pages
from mme.platform import protocols, signing
from mme.platform.config import ObjectStore
from mme.platform.errors import AccessDenied, UnsupportedOperation
from mme.platform.keyring import Keyring
from mme.platform.messages import Request
from mme.platform.signatures import Signatures, claim_of

_DIGEST = re.compile(r"[0-9a-f]{64}")
# Of STS, with the reason: moto would give keys to who shows any token at all, and the same to everybody.
_REFUSED = {
    "AssumeRoleWithWebIdentity": "there is no identity provider that could have signed its token; use AssumeRole",
    "AssumeRoleWithSAML": "there is no identity provider that could have signed its assertion; use AssumeRole",
    "GetFederationToken": "use AssumeRole",
}


def refuse_pages(request: Request) -> None:
    """Raise AccessDenied for what a page in a browser sends."""
    headers = request.headers
    if why := pages.refusal(headers["host"], headers.get("origin"), headers.get("sec-fetch-site")):
        raise AccessDenied(f"the local platform {why}")


class Admission:
    """Makes sure that a request comes from somebody with a key. Belongs to one event loop."""

    def __init__(self, store: ObjectStore, keyring: Keyring, *, is_checked: bool) -> None:
        self._store = store
        self.keyring = keyring
        self._signatures = Signatures(keyring)
        self._is_checked = is_checked

    async def admit(self, service: str, protocol: protocols.Protocol, request: Request, body: bytes) -> Request:
        """The request, whose whole body is `body`, as those behind know its sender, if it may pass.

        Raises NotAuthentic, and for STS what it can't be asked: UnsupportedOperation by name, since some of it comes
        unsigned, and AccessDenied.
        """
        asked = parse_qs(body.decode("utf-8", "replace")).get("Action", [""])[0] if service == "sts" else ""
        if asked in _REFUSED:
            raise UnsupportedOperation(f"{asked} is not supported by the local platform; {_REFUSED[asked]}")
        if self._is_checked:
            await self._signatures.check(claim_of(request, protocol), request, protocol, body)
        if asked == "GetSessionToken":
            self.keyring.refuse_a_session(request)
        return self.keyring.as_its_owner(request)

    async def admit_to_s3(self, request: Request) -> Request:
        """The request as the store of objects takes it, which knows one key and one way to sign.

        Raises NotAuthentic. A body other than the one whose digest was signed is found when it is read: BodyMismatch.
        """
        if signing.is_old(request):
            if self._is_checked:
                await signing.check_old(request, self.keyring)
            return signing.signed_anew(request, self._store)
        if not self._is_checked:
            return signing.signed_anew(request, self._store)
        claim = claim_of(request, "rest-xml")
        await self._signatures.check(claim, request, "rest-xml", None)
        digest = request.headers.get("x-amz-content-sha256", "")
        if _DIGEST.fullmatch(digest):
            request.body.must_have(digest)
        return request if claim.access_key == self._store.access_key else signing.signed_anew(request, self._store)

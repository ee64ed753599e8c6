"""Decides who is listened to: programs on this machine, with the container's key if it has one, not pages in a browser.

DJL Serving answers everybody: in its image nobody else reaches it.
"""

from __future__ import annotations

import hmac
from functools import lru_cache

from mme import pages
from mme.server.errors import Refused

KEY = "MME_CONTAINER_KEY"
"""The variable with the key of a container that has one; its header is X-MME-Key."""
_KEY_HEADER = "x-mme-key"
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Admission:
    def __init__(self, key: str = "", host: str = "127.0.0.1") -> None:
        """`host` is the address that is listened on; at others than loopback a request may name any host."""
        self._key = key
        self._has_names = host not in _LOOPBACK

    def admit(self, headers: list[tuple[str, str]]) -> None:
        """Raise Refused for a request with these headers unless it may be answered; the key is taken out of them."""
        found = _places(tuple([name for name, _ in headers]))
        if not found and not self._key:
            return
        said = {name: headers[at][1] for name, at in found.items()}
        host = said.get("host")
        if self._has_names or "." not in (host or ""):  # no page of the internet is at a name without a dot
            host = None
        if why := pages.refusal(host, said.get("origin"), said.get("sec-fetch-site")):
            raise Refused(f"This server {why}.")
        if self._key:
            if not hmac.compare_digest(said.get(_KEY_HEADER, "").encode(), self._key.encode()):
                raise Refused("This container answers the platform that started it; call the platform.")
            del headers[found[_KEY_HEADER]]


@lru_cache(maxsize=256)
def _places(names: tuple[str, ...]) -> dict[str, int]:
    """Where among headers of these names those stand that are looked at: clients send the same ones again and again."""
    looked_at = ("host", "origin", "sec-fetch-site", _KEY_HEADER)
    return {name.lower(): at for at, name in enumerate(names) if name.lower() in looked_at}

"""Decides what a page in a browser sends, which no server on this machine answers.

A page can make its own name point to this machine, but can't make the browser send another Host; and browsers say where
a form or a script comes from: in Origin, or in Sec-Fetch-Site where there is none.
"""

from __future__ import annotations

import re
from functools import lru_cache

_HOST = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:\d+)?", re.IGNORECASE)
_ORIGIN = re.compile(rf"https?://{_HOST.pattern}", re.IGNORECASE)


@lru_cache(256)
def refusal(host: str | None, origin: str | None, fetch_site: str | None) -> str:
    """Why a request with these headers is not to be answered, to follow a name for who doesn't; "" if it may be."""
    if host is not None and not _HOST.fullmatch(host):
        return f"does not answer for the host {host!r}; call it as 127.0.0.1"
    if origin is not None and not _ORIGIN.fullmatch(origin):
        return f"does not answer to pages of {origin!r}"
    return "does not answer to pages of other sites" if fetch_site == "cross-site" else ""

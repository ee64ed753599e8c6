"""Decides who reaches moto: requests whose path begins with a key, which goes with its address. Run as a program.

moto asks nobody for a signature, and shows the secrets of all that it has made: on a machine with other users its port
alone must open nothing. Source: moto 5's `moto/server.py`, whose request handler is werkzeug's.
"""

from __future__ import annotations

import hmac
import logging
import os
import sys

from moto import server
from moto.moto_server.werkzeug_app import MotoRequestHandler

KEY = "MME_MOTO_KEY"
"""The variable that holds the key."""


class _Handler(MotoRequestHandler):
    path: str
    begin = f"/{os.environ.pop(KEY, '')}"

    def parse_request(self) -> bool:
        if not super().parse_request():
            return False
        begin, self.path = self.path[: len(self.begin)], self.path[len(self.begin) :] or "/"
        if not hmac.compare_digest(begin.encode(), self.begin.encode()):
            self.send_error(403)
            return False
        return True


if __name__ == "__main__":
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # else a line for each request
    server.MotoRequestHandler = _Handler  # type: ignore[attr-defined]
    server.main(sys.argv[1:])

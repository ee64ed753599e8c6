"""Decides which calls a busy worker holds behind the one it makes, and whether it has them yet or the front again.

A worker may be handed a call ahead of its answer to the one before, so that it needn't wait for the front in between.
Such a call has a token, a byte in a socket that both processes read: whoever takes the token has the call. The worker
takes it right before it answers, and says so with the answer, or when it comes upon the call; the front takes it when
the call is better made elsewhere. So a call that a busy or dead worker hasn't begun is never lost, nor made twice.
"""

from __future__ import annotations

import array
import socket
from collections import deque
from collections.abc import Sequence
from typing import Any

from mme.server.call import Call
from mme.server.worker import frames

_MAX_AHEAD = 2  # calls in a worker behind the one it makes
_TOKENS = 256  # more than can be in a worker's socket, taken back ones included


class Flight:
    """The calls of one request frame, with what is left to be answered."""

    __slots__ = ("number", "calls", "timeout_s", "deadline")

    def __init__(self, number: int, calls: Sequence[Call], timeout_s: float) -> None:
        self.number = number
        self.calls = dict(enumerate(calls))
        self.timeout_s = timeout_s
        self.deadline = 0.0

    @property
    def token(self) -> int:
        return self.number % _TOKENS


class Ahead:
    """The calls that one worker was handed ahead, the oldest first."""

    def __init__(self, sock: Any) -> None:
        """`sock` is the worker's own, over which it gets its end of the tokens."""
        self._socket = sock
        self._flights: deque[Flight] = deque()
        self._tokens: tuple[socket.socket, socket.socket] | None = None  # to put them in, to take them back
        self._dead = 0  # the last call taken back: what it leaves is in the socket until a later one is answered

    def __len__(self) -> int:
        return len(self._flights)

    @property
    def has_room(self) -> bool:
        return not self._dead and len(self._flights) < _MAX_AHEAD

    @property
    def calls(self) -> list[Call]:
        return [flight.calls[0] for flight in self._flights]

    def hold(self, flight: Flight) -> bool:
        """Give the worker the token of a call that it is about to be sent. False if it can't be given one now."""
        if self._tokens is None and not self._share_tokens():
            return False
        assert self._tokens is not None
        try:
            self._tokens[0].send(bytes((flight.token,)), socket.MSG_DONTWAIT)
        except OSError:  # a handler can do what it likes to its end
            return False
        self._flights.append(flight)
        return True

    def take_back(self) -> Call | None:
        """The oldest call that the worker hasn't begun, and now won't; None if there is none."""
        if not self._flights or self._tokens is None:
            return None
        try:
            token = self._tokens[1].recv(1, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        for flight in self._flights:
            if token == bytes((flight.token,)):
                self._flights.remove(flight)
                self._dead = flight.number
                return flight.calls[0]
        return None

    def answered(self, number: int) -> None:
        """The worker has answered this one, and so has read all that was sent before it."""
        if number > self._dead:
            self._dead = 0

    def next(self) -> Flight | None:
        """The oldest, which the worker has begun; None if it holds none."""
        return self._flights.popleft() if self._flights else None

    def close(self) -> list[Flight]:
        """The worker is gone: what it had begun, though its answer to the one before hasn't come."""
        for end in self._tokens or ():
            end.close()
        left = list(self._flights)
        self._flights.clear()
        return left

    def _share_tokens(self) -> bool:
        """Give the worker its end, when it is first handed a call ahead."""
        ours, theirs = socket.socketpair()
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", (theirs.fileno(),)))
        try:
            self._socket.sendmsg(frames.encode({"op": "tokens"}), (rights,))
        except OSError:  # full, or closed
            ours.close()
            theirs.close()
            return False
        self._tokens = ours, theirs
        return True

"""What a branch serves once to itself before it is forked: a handler that does what most do.

Python rewrites code while it runs for the first times (it specialises it), and many caches fill then. What has been
written before a fork stays shared; what each worker would write is its own memory. No model's code is run here.
"""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .api import Input, Output

_CALLS = 40  # Python 3.11 specialises code that has run a few times


def handle(inputs: Input) -> Output | None:
    """Answer the sums of the rows of `{"inputs": rows}`."""
    import numpy as np

    from .api import Output

    if inputs.is_empty():
        return None
    rows = np.array(inputs.get_as_json()["inputs"])
    inputs.get_property("content-type")
    return Output().add_as_json({"predictions": rows.sum(axis=1).tolist()})


def rehearse() -> None:
    """Load and serve this handler on a socket of our own."""
    from . import frames
    from .handler import HandlerSpec
    from .loop import Imports, Worker

    spec = HandlerSpec(str(Path(__file__).parent), "mme.server.worker.rehearsal")
    body = json.dumps({"inputs": [[1.5, 2, 3, 4, 5]] * 2}).encode()
    request = {"properties": {"Content-Type": "application/json"}, "content": [["data", len(body)]]}
    ours, theirs = socket.socketpair()
    with ours, theirs:
        frames.send(ours, frames.encode({"id": 0, "op": "init", "inputs": [{"properties": {}, "content": []}]}))
        for call in range(_CALLS):
            frames.send(ours, frames.encode({"id": call, "op": "invoke", "inputs": [request]}, body))
        ours.shutdown(socket.SHUT_WR)
        Worker(theirs, spec, Imports([], spec.model_dir)).run()

"""What DJL Serving runs for a handler that waits as long as option.wait_ms says, like one that asks another service."""

import time

from djl_python import Input, Output

wait_ms = None


def handle(inputs: Input) -> Output | None:
    """Answer {"waited_ms": N}, N milliseconds later."""
    global wait_ms
    if wait_ms is None:
        wait_ms = int(inputs.get_property("wait_ms"))
    if inputs.is_empty():
        return None
    time.sleep(wait_ms / 1000)
    return Output().add_property("content-type", "application/json").add_as_json({"waited_ms": wait_ms})

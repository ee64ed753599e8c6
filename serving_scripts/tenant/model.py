"""What DJL Serving runs for a tenant of the labs: takes its time and its memory, and says since when it is loaded."""

import time

from djl_python import Input, Output

LOADED_AT = time.time()  # as the caller's clock has it, where both are on one machine
answer_s = 0.0
held = b""


def handle(inputs: Input) -> Output | None:
    """Answer {"loaded_at": ...}, in seconds since 1970, option.answer_ms after the call, as one who waits for others.

    From its load on it holds option.holds_mb megabytes.
    """
    global answer_s, held
    if inputs.is_empty():
        answer_s = int(inputs.get_property("answer_ms")) / 1000
        held = b"\x01" * (int(inputs.get_property("holds_mb")) * 2**20)  # written to, so that every page is there
        return None
    time.sleep(answer_s)
    return Output().add_property("content-type", "application/json").add_as_json({"loaded_at": LOADED_AT})

"""What DJL Serving runs for ballast: it takes as much memory as option.ballast_mb says, and does no work."""

from djl_python import Input, Output

ballast = None
ballast_mb = 0


def handle(inputs: Input) -> Output | None:
    """Answer {"predictions": [...]}, where each is the megabytes that are held."""
    global ballast, ballast_mb
    if ballast is None:
        ballast_mb = int(inputs.get_property("ballast_mb"))
        ballast = bytearray(b"\x01") * (ballast_mb * 2**20)  # written to, so that every page is really there
    if inputs.is_empty():
        return None
    body = inputs.get_as_json()
    records = body["inputs"] if isinstance(body, dict) else body
    output = Output().add_property("content-type", "application/json")
    return output.add_as_json({"predictions": [ballast_mb for _ in records]})

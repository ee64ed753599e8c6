"""What DJL Serving runs for a straight line: numbers in, the line's value at each of them out."""

import json
from pathlib import Path

from djl_python import Input, Output

line = None


def handle(inputs: Input) -> Output | None:
    """Answer {"inputs": [x, ...]} with {"predictions": [slope * x + intercept, ...]}, by the package's line.json."""
    global line
    if line is None:
        line = json.loads((Path(inputs.get_property("model_dir")) / "line.json").read_text())
    if inputs.is_empty():
        return None
    predictions = [line["slope"] * x + line["intercept"] for x in inputs.get_as_json()["inputs"]]
    return Output().add_property("content-type", "application/json").add_as_json({"predictions": predictions})

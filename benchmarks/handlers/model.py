"""The handler that a container of the multi-model contract runs: it asks `answering.py`, which every server shares."""

from __future__ import annotations

import answering
from djl_python import Input, Output

model = None


def handle(inputs: Input) -> Output | None:
    global model
    if model is None:
        model = answering.load(inputs.get_property("model_dir"))
    if inputs.is_empty():
        return None
    output = Output().add_property("content-type", "application/json")
    return output.add(answering.answer(model, inputs.get_as_bytes()).encode())

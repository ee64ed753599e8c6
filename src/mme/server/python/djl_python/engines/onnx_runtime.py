"""Decides how model.onnx is run: in onnxruntime on the CPU, inputs by name where they have one, else in order.

Source: OrtModel and OrtSymbolBlock of DJL 0.36.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .tensors import Tensors
from .translator import Predict, TranslateException, model_file, served


def load(folder: Path, properties: Mapping[str, Any]) -> Predict:
    """Threads are one unless option.intraOpNumThreads or option.interOpNumThreads says more, as workers are many."""
    import onnxruntime  # type: ignore[import-untyped]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(properties.get("intraOpNumThreads", 1))
    options.inter_op_num_threads = int(properties.get("interOpNumThreads", 1))
    file = model_file(folder, properties, ".onnx")
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    inputs = [each.name for each in session.get_inputs()]
    outputs = [each.name for each in session.get_outputs()]

    def predict(tensors: Tensors) -> Tensors:
        if len(tensors) != len(inputs):
            raise TranslateException(f"Input mismatch, looking for: {inputs}, given {len(tensors)} arrays")
        fed = {}
        for place, (name, array) in enumerate(tensors):
            if name is not None and name not in inputs:
                raise TranslateException(f"Invalid input tensor name: {name}")
            fed[name or inputs[place]] = array
        return list(zip(outputs, session.run(outputs, fed), strict=True))

    return predict


handle = served(load)

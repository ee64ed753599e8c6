"""Decides how model.pt is run: a TorchScript module on the CPU, its inputs in order.

Source: PtModel and IValueUtils of DJL 0.36.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .tensors import Tensors
from .translator import Predict, TranslateException, model_file, served


def load(folder: Path, properties: Mapping[str, Any]) -> Predict:
    import torch

    module = torch.jit.load(str(model_file(folder, properties, ".pt")), map_location="cpu").eval()  # type: ignore[no-untyped-call]

    def predict(tensors: Tensors) -> Tensors:
        with torch.inference_mode():
            answered = module(*(torch.tensor(array) for _, array in tensors))
        return list(_flat(answered, None))

    def _flat(value: Any, name: str | None) -> Any:
        if isinstance(value, torch.Tensor):
            yield name, value.numpy()
        elif isinstance(value, dict):
            for key, one in value.items():
                yield from _flat(one, str(key))
        elif isinstance(value, tuple | list):
            for one in value:
                yield from _flat(one, None)
        else:
            raise TranslateException(f"the model answers with a {type(value).__name__}, not with tensors")

    return predict


handle = served(load)

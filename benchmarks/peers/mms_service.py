"""Multi Model Server's and TorchServe's custom service: each worker process holds one model, that of its folder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from answering_model import load

model: Callable[[bytes], str] | None = None


def handle(data: list[dict[str, Any]] | None, context: Any) -> list[str] | None:
    global model
    if model is None:
        model = load(context.system_properties["model_dir"])
    if data is None:
        return None
    return [model(bytes(row["body"])) for row in data]

"""BentoML has no way to load a model into a running service: this one keeps a dictionary of them."""

from __future__ import annotations

from collections.abc import Callable

import bentoml
from answering_model import load as load_model


@bentoml.service(
    workers=1, traffic={"timeout": 120}, metrics={"enabled": False}, logging={"access": {"enabled": False}}
)
class Models:
    def __init__(self) -> None:
        self.models: dict[str, Callable[[bytes], str]] = {}

    @bentoml.api
    def load(self, model: str, folder: str) -> str:
        self.models[model] = load_model(folder)
        return "loaded"

    @bentoml.api
    def unload(self, model: str) -> str:
        del self.models[model]
        return "unloaded"

    @bentoml.api
    def predict(self, model: str, body: str) -> str:
        return self.models[model](body.encode())

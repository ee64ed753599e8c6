"""LitServe has no way to load a model into a running server: one worker process keeps a dictionary of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import litserve
from answering_model import load


class Models(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.models: dict[str, Callable[[bytes], str]] = {}

    def predict(self, request: dict[str, Any]) -> str:
        name = request["model"]
        match request["do"]:
            case "load":
                self.models[name] = load(request["folder"])
                return "loaded"
            case "unload":
                del self.models[name]
                return "unloaded"
        return self.models[name](request["body"].encode())


if __name__ == "__main__":
    server = litserve.LitServer(Models(api_path="/predict"), accelerator="cpu", workers_per_device=1, timeout=120)
    server.run(
        host="127.0.0.1",
        port=int(os.environ["PORT"]),
        num_api_servers=1,
        log_level="warning",
        access_log=False,
        generate_client_file=False,
    )

"""FastAPI as one writes it for models: a dictionary of them, and the routes of the multi-model contract.

The call is an `async def` and runs on the event loop: faster than FastAPI's threads, and one call at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from answering_model import load
from fastapi import FastAPI, HTTPException, Request, Response

app = FastAPI()
models: dict[str, Callable[[bytes], str]] = {}


@app.get("/ping")
def ping() -> dict[str, str]:
    return {}


@app.post("/models")
def load_model(body: dict[str, Any]) -> dict[str, str]:
    models[body["model_name"]] = load(body["url"])
    return {"status": "loaded"}


@app.delete("/models/{name}")
def unload_model(name: str) -> dict[str, str]:
    if models.pop(name, None) is None:
        raise HTTPException(404)
    return {"status": "unloaded"}


@app.post("/models/{name}/invoke")
async def invoke(name: str, request: Request) -> Response:
    model = models.get(name)
    if model is None:
        raise HTTPException(404)
    return Response(model(await request.body()), media_type="application/json")

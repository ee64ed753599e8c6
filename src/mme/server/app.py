"""Decides which request means what: DJL Serving's routes for the multi-model contract, and one place for failures.

`/ping`, `/models…`, `/invocations`, `/predictions/…`, `/v1/chat/completions`, `/workflows…` and `/server/…` are DJL's;
`/metrics` (as `/server/metrics`) and `/_mme/models` (processes and memory) are ours. Routes, quirks included, are those
of DJL Serving 0.36.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping
from typing import Any
from urllib.parse import parse_qsl, unquote_to_bytes

from mme.server import arguments, metrics
from mme.server.admission import Admission
from mme.server.call import Call
from mme.server.config import LoadRequest
from mme.server.errors import (
    BadRequest,
    InvalidParameter,
    JavaFailure,
    MethodNotAllowed,
    ModelNotFound,
    NotANumber,
    ResourceNotFound,
    ServerError,
    java_json,
)
from mme.server.exchange import Exchange
from mme.server.integers import integer
from mme.server.registry import Model, Registry

log = logging.getLogger(__name__)

_PAGE = 100  # models in one answer at most
_INVOKE = "/invoke"
_TARGET_MODEL = "x-amzn-sagemaker-target-model"


class App:
    """Answers requests from a registry of models."""

    def __init__(
        self, registry: Registry, may_choose_handler: bool = False, admission: Admission | None = None
    ) -> None:
        self.registry = registry
        self._admission = admission or Admission()
        self._may_choose_handler = may_choose_handler
        self._tasks: set[asyncio.Task[None]] = set()

    def handle(self, exchange: Exchange) -> None:
        """Answer a request, now or later. Never raises."""
        try:
            self._admission.admit(exchange.headers)
            self._route(exchange)
        except Exception as error:
            self._fail(exchange, error)

    def _fail(self, exchange: Exchange, error: Exception) -> None:
        if not isinstance(error, ServerError):
            log.error("%s %r failed", exchange.method, exchange.target, exc_info=error)
            error = JavaFailure("EngineException", "The request failed; the container's log says why.")
        exchange.fail(error)

    def _later(self, exchange: Exchange, work: Coroutine[Any, Any, None]) -> None:
        """Do what takes time beside other requests."""

        async def run() -> None:
            try:
                await work
            except Exception as error:
                self._fail(exchange, error)

        task = asyncio.get_running_loop().create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _route(self, exchange: Exchange) -> None:
        raw_path, has_query, raw_query = exchange.target.partition(b"?")
        path = raw_path.decode("latin-1")
        if "%" in path:
            path = unquote_to_bytes(path).decode("utf-8", "replace")
        if path.startswith("/models/") and path.endswith(_INVOKE) and not has_query:
            self._invoke(exchange, path[8 : -len(_INVOKE)].partition("/")[0])
            return
        query = parse_qsl(raw_query.decode("latin-1"), keep_blank_values=True)
        segments = path.rstrip("/").split("/")[1:]
        match segments:
            case ["ping", *_]:
                self._ping(exchange)
            case ["models"]:
                self._models(exchange, dict(query))
            case ["models", name]:
                self._model(exchange, name, None, dict(query))
            case ["models", name, version, *_]:
                self._model(exchange, name, version, dict(query))
            case ["invocations"] | ["v1", "chat", "completions"]:
                self._invocations(exchange, query)
            case ["predictions", name, *_]:
                self._invoke(exchange, name, query)
            case ["workflows"]:
                self._workflows(exchange, dict(query))
            case ["workflows", name]:
                self._model(exchange, name, None, dict(query))
            case ["server", "logging"]:
                self._set_log_level(exchange, dict(query))
            case ["server", "metrics"] if exchange.method != "GET":
                raise MethodNotAllowed()
            case ["metrics"] | ["server", "metrics"] if exchange.method == "GET":
                exchange.answer(200, metrics.render(self.registry), [("content-type", metrics.CONTENT_TYPE)])
            case ["_mme", "models"] if exchange.method == "GET":
                exchange.answer_json(200, java_json(self.registry.status()))
            case [] if exchange.method == "OPTIONS":
                exchange.answer_json(200, java_json({}))
            case _:
                raise ResourceNotFound()

    # Inference

    def _invoke(self, exchange: Exchange, name: str, query: list[tuple[str, str]] | None = None) -> None:
        self._submit(self.registry.find(name), Call(exchange, query or (), self._may_choose_handler), exchange)

    def _invocations(self, exchange: Exchange, query: list[tuple[str, str]]) -> None:
        """The route of single-model containers: the model by name, or the only one that was there at the start."""
        call = Call(exchange, query, self._may_choose_handler)
        name = dict(query).get("model_name") or call.properties.get("model_name")
        if name is None:
            name = next((value.decode("utf-8", "replace") for key, value in call.contents if key == "model_name"), None)
        if name is None:
            started = [model.name for model in self.registry.models.values() if model.is_startup]
            if len(started) != 1:
                raise BadRequest("Parameter model_name is required.")
            name = started[0]
        self._submit(self.registry.find(name), call, exchange)

    def _submit(self, model: Model, call: Call, exchange: Exchange) -> None:
        if exchange.method == "OPTIONS":
            exchange.answer_json(200, java_json({}))
            return
        if not model.target_model:
            model.target_model = next((value for name, value in exchange.headers if name.lower() == _TARGET_MODEL), "")
        model.submit(call)

    # Management

    def _ping(self, exchange: Exchange) -> None:
        """Healthy as long as the container is: a model that has failed is named, and doesn't take the others down."""
        models = sorted(self.registry.models.values(), key=lambda model: model.name)
        exchange.answer_json(200, java_json({model.name: {"status": model.health} for model in models}))

    def _models(self, exchange: Exchange, query: Mapping[str, str]) -> None:
        if exchange.method == "GET":
            page, token = self._page(query)
            models = [
                {"modelName": model.name, "modelUrl": model.request.url, "status": model.status} for model in page
            ]
            exchange.answer_json(200, java_json(token | {"models": models}))
        elif exchange.method == "POST":
            self._register(exchange, query)
        else:
            raise MethodNotAllowed()

    def _set_log_level(self, exchange: Exchange, query: Mapping[str, str]) -> None:
        level = logging.getLevelNamesMapping().get(query.get("level", "info").upper(), logging.INFO)
        logging.getLogger().setLevel(level)
        exchange.answer_json(200, java_json({"status": "OK"}))

    def _workflows(self, exchange: Exchange, query: Mapping[str, str]) -> None:
        """Each model is a workflow of its own; workflows of several are not served."""
        if exchange.method == "POST":
            raise BadRequest("Either parameter url or template is required.")
        if exchange.method != "GET":
            raise MethodNotAllowed()
        page, token = self._page(query)
        token = token or {"nextPageToken": str(len(self.registry.models))}
        exchange.answer_json(200, java_json(token | {"workflows": [{"workflowName": model.name} for model in page]}))

    def _page(self, query: Mapping[str, str]) -> tuple[list[Model], dict[str, str]]:
        """The models that were asked for, by name, and where the next page begins."""
        limit = integer(query.get("limit", str(_PAGE)))
        start = integer(query.get("next_page_token", "0"))
        models = sorted(self.registry.models.values(), key=lambda model: model.name)
        if limit < 0 or limit > _PAGE:
            limit = _PAGE
        start = max(0, start)
        end = start + limit
        token = {"nextPageToken": str(end)} if end < len(models) else {}
        return models[start:end], token

    def _model(self, exchange: Exchange, name: str, version: str | None, query: Mapping[str, str]) -> None:
        match exchange.method:
            case "GET":
                model = self.registry.models.get(name)
                if model is None:
                    raise ModelNotFound(f"Workflow not found: {name}")
                if version not in (None, model.request.version):
                    raise ModelNotFound(f"Workflow not found: Workflow not found: {name}/{version}")
                exchange.answer_json(200, java_json([{"workflowName": name, "models": [model.describe()]}]))
            case "PUT":
                self._check_version(name, version)
                self._later(exchange, self._scale(exchange, name, query))
            case "DELETE":
                self._check_version(name, version)
                self._later(exchange, self._unload(exchange, name))
            case _:
                raise MethodNotAllowed()

    def _check_version(self, name: str, version: str | None) -> None:
        if version not in (None, self.registry.find(name).request.version):
            raise ModelNotFound(f"Model or workflow not found: {name}")

    async def _scale(self, exchange: Exchange, name: str, query: Mapping[str, str]) -> None:
        try:
            least, most = (integer(query.get(key, "-1")) for key in ("min_worker", "max_worker"))
        except NotANumber as error:
            raise InvalidParameter(str(error)) from None
        await self.registry.scale(name, None if least < 0 else least, None if most < 0 else most)
        text = f"New Worker configuration min workers:{least} max workers:{most}"
        exchange.answer_json(200, java_json({"status": f'Workflow "{name}" worker scaled. {text}'}))

    async def _unload(self, exchange: Exchange, name: str) -> None:
        await self.registry.unload(name)
        exchange.answer_json(200, java_json({"status": f'Model or workflow "{name}" unregistered'}))

    def _register(self, exchange: Exchange, query: Mapping[str, str]) -> None:
        headers = {name.lower(): value for name, value in exchange.headers}
        if headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json":
            given = arguments.from_json(exchange.body)
        else:
            given = arguments.from_query(query)
        request = arguments.load_request(given, headers.get(_TARGET_MODEL, ""))
        if request.synchronous:
            self._later(exchange, self._load(exchange, request))
        else:
            self.registry.begin_load(request)
            exchange.answer_json(202, java_json({"status": f'Model "{request.name}" registration scheduled.'}))

    async def _load(self, exchange: Exchange, request: LoadRequest) -> None:
        await self.registry.load(request)
        exchange.answer_json(200, java_json({"status": f'Model "{request.name}" registered.'}))

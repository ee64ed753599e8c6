"""Ray Serve with model multiplexing: a header names the model, the first call loads it, the least used is dropped."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import ray
from answering_model import load
from ray import serve
from ray.serve.schema import LoggingConfig
from starlette.requests import Request
from starlette.responses import Response

STORE = os.environ["STORE"]
QUIET = LoggingConfig(enable_access_log=False, log_level="WARNING")


@serve.deployment(num_replicas=1, max_ongoing_requests=64, ray_actor_options={"num_cpus": 0})
class Models:
    @serve.multiplexed(max_num_models_per_replica=2000)
    async def model(self, name: str) -> Callable[[bytes], str]:
        return load(f"{STORE}/{name}")

    async def __call__(self, request: Request) -> Response:
        answer = await self.model(serve.get_multiplexed_model_id())
        return Response(answer(await request.body()), media_type="application/json")


if __name__ == "__main__":
    ray.init(
        include_dashboard=False,
        num_cpus=2,
        object_store_memory=200 * 2**20,
        log_to_driver=False,
        configure_logging=False,
        runtime_env={"env_vars": {"PYTHONPATH": os.environ["PYTHONPATH"]}},
    )
    serve.start(http_options={"host": "127.0.0.1", "port": int(os.environ["PORT"])}, logging_config=QUIET)
    serve.run(Models.bind(), route_prefix="/", name="models", logging_config=QUIET)
    signal.sigwait([signal.SIGTERM, signal.SIGINT])
    serve.shutdown()
    ray.shutdown()

"""A real DJL Serving behind the platform, from PATH and in Docker, where this machine has them."""

from __future__ import annotations

import json
import tarfile
from io import BytesIO
from typing import Any

import pytest

from mme.platform.containers import KINDS
from mme.platform.errors import ModelError

pytestmark = pytest.mark.anyio

KIND = pytest.mark.parametrize(
    "name",
    [
        pytest.param("djl-serving", marks=pytest.mark.djl_serving),
        pytest.param("docker", marks=pytest.mark.docker),
    ],
)
HANDLER = """
import os
from djl_python import Input, Output

def handle(inputs):
    if inputs.is_empty():
        return None
    text = inputs.get_as_string()
    if text == "die":
        os._exit(1)
    return Output().add_as_json({"pid": os.getpid(), "text": text})
"""
PROPERTIES = "engine=Python\nminWorkers=1\nmaxWorkers=1\nrequired_memory_mb={}\n"


def package(required_mb: int = 10) -> bytes:
    packed = BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, text in (("model.py", HANDLER), ("serving.properties", PROPERTIES.format(required_mb))):
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, BytesIO(text.encode()))
    return packed.getvalue()


async def ask(rig: Any, target: str, text: str = "x") -> Any:
    return json.loads((await rig.invoke(target, text.encode(), **{"content-type": "text/plain"})).body)


@KIND
async def test_models_are_loaded_called_and_described(rig: Any, name: str) -> None:
    rig.kind = KINDS[name]
    for target in ("a.tar.gz", "b.tar.gz"):
        rig.put_bytes(target, package())
    async with rig.up():
        a, b = await ask(rig, "a.tar.gz"), await ask(rig, "b.tar.gz")
        assert a["pid"] != b["pid"] and a["text"] == "x"
        await rig.instance.refresh()
        assert [len(model["workers"]) for model in rig.instance.describe()["models"]] == [1, 1]


@KIND
async def test_a_model_that_lost_its_worker_serves_the_next_call(rig: Any, name: str) -> None:
    rig.kind = KINDS[name]
    rig.put_bytes("a.tar.gz", package())
    async with rig.up():
        first = (await ask(rig, "a.tar.gz"))["pid"]
        with pytest.raises(ModelError, match="Python worker disconnected"):
            await ask(rig, "a.tar.gz", "die")
        assert (await ask(rig, "a.tar.gz"))["pid"] != first


@KIND
async def test_what_does_not_fit_is_refused_after_all_else_left(rig: Any, name: str) -> None:
    rig.kind = KINDS[name]
    rig.put_bytes("small.tar.gz", package())
    rig.put_bytes("big.tar.gz", package(required_mb=100_000))
    async with rig.up():
        await ask(rig, "small.tar.gz")
        with pytest.raises(ModelError, match="No enough memory to load the model"):
            await ask(rig, "big.tar.gz")
        assert rig.where("small.tar.gz") == "disk"

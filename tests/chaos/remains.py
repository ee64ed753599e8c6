"""What a fault may leave: nothing. Everything that runs, listens or lies on the disk has its place in the status."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import psutil
from world import ENDPOINT, VARIANT, World, until

from mme.platform.config import MARK
from mme.processes import marked

_SERVICES = 4  # ports: the gateway, the page, rclone, moto


def whole(world: World) -> None:
    """Wait until nothing is in use, half done, or left by what has gone."""
    found: list[str] = []

    def is_whole() -> bool:
        try:
            found[:] = filter(None, (_in_use(world), _processes(world), _files(world)))
        except (psutil.Error, OSError) as error:  # something went while it was looked at
            found[:] = [repr(error)]
        return not found

    try:
        until(is_whole, "all is as before")
    except AssertionError as error:
        raise AssertionError(f"{error}: {found}") from None


def _in_use(world: World) -> str:
    instances = world.instances()
    busy = [model["target_model"] for one in instances for model in one["models"] if model["in_use"]]
    return f"{busy} are in use" if busy or any(one["in_flight"] for one in instances) else ""


def _processes(world: World) -> str:
    platform = psutil.Process(world.platform_pid)
    nursery = world.nursery_now()
    # Those of a root that was killed have another parent now, and are the container's as before.
    own = {platform.pid, *(child.pid for child in platform.children(recursive=True)), *nursery["processes"]}
    if strays := [process for process in marked(MARK, str(world.home)) if process.pid not in own]:
        return f"{strays} belong to nobody"
    instances = world.instances()
    if len(world.container_pids()) != len(instances):
        return f"{len(world.container_pids())} containers for {len(instances)} instances"
    serving = {nursery["pid"], *_of_models(instances)}
    serving |= {pid for branch in nursery["branches"] for pid in (branch["pid"], branch["standby"]) if pid}
    if others := set(nursery["processes"]) - serving:
        return f"processes {others} serve nobody"
    ports = {one.laddr.port for pid in own for one in _sockets(pid) if one.status == psutil.CONN_LISTEN}
    if len(ports) != _SERVICES + len(instances):
        return f"somebody listens on one of {sorted(ports)}"
    shared = [pid for pid in own if "/dev/shm" in _maps(pid)]  # it would stay under its name if they were killed
    return f"{shared} share memory" if shared else ""


def _files(world: World) -> str:
    instances = world.instances()
    folders = {str(path.relative_to(world.home / "instances")) for path in world.home.glob("instances/*/*/*/")}
    folders = {folder for folder in folders if not folder.startswith("nursery/")}
    if folders != {f"{ENDPOINT}/{VARIANT}/{instance['number']}" for instance in instances}:
        return f"folders of instances: {folders}"
    if partial := [*world.home.glob("instances/*/*/*/models/.*"), *world.home.glob("objects/**/*.partial")]:
        return f"{partial} are half done"
    temporary, workers = len([*world.home.glob("instances/nursery/tmp-*/*/*")]), _of_models(instances)
    return f"{temporary} temporary folders of {len(workers)} workers" if temporary > len(workers) else ""


def _of_models(instances: list[dict[str, Any]]) -> set[int]:
    """The pids of workers and templates."""
    models = [model for instance in instances for model in instance["models"]]
    templates = {model["template"]["pid"] for model in models if model["template"]}
    return templates | {worker["pid"] for model in models for worker in model["workers"]}


def _sockets(pid: int) -> list[Any]:
    with contextlib.suppress(psutil.Error):
        return list(psutil.Process(pid).net_connections())
    return []


def _maps(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/maps").read_text()
    return ""

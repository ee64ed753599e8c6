"""Decides what a container is to the platform: a process that speaks SageMaker's multi-model contract on one port.

kinds      how each kind of container is started, and what it sees of the instance's disk
container  started, watched, asked by the contract, stopped
records    what it prints, cut into records of a log
"""

from mme.platform.containers.container import (
    Container,
    ContainerError,
    ContainerGone,
    ContainerStartFailed,
    Pieces,
    Reply,
)
from mme.platform.containers.kinds import KINDS, ContainerKind, ContainerSpec, Launch, kind_named, sweep_docker

__all__ = [
    "KINDS",
    "Container",
    "ContainerError",
    "ContainerGone",
    "ContainerKind",
    "ContainerSpec",
    "ContainerStartFailed",
    "Launch",
    "Pieces",
    "Reply",
    "kind_named",
    "sweep_docker",
]

"""Who uses the platform meanwhile: callers of models, and one who makes and deletes what is kept, and checks it."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from world import BUCKET, IN_USE, World

CALLERS = 3


@dataclass(frozen=True)
class Kind:
    """Something that is kept, by its name: in the platform's state, in S3, in what is repeated to moto."""

    make: Callable[[str], Any]
    delete: Callable[[str], Any]
    is_there: Callable[[str], bool]


def kinds(world: World) -> dict[str, Kind]:
    def has_object(name: str) -> bool:
        try:
            body = world.s3.get_object(Bucket=BUCKET, Key=name)["Body"].read()
        except world.s3.exceptions.NoSuchKey:
            return False
        if body != name.encode() * 1000:
            world.wrong.append(f"object {name} has {len(body)} other bytes than were put")
        return True

    def has_role(name: str) -> bool:
        try:
            return bool(world.iam.get_role(RoleName=name))
        except world.iam.exceptions.NoSuchEntityException:
            return False

    return {
        "model": Kind(
            lambda name: world.sagemaker.create_model(ModelName=name, PrimaryContainer={"Image": "image"}),
            lambda name: world.sagemaker.delete_model(ModelName=name),
            lambda name: bool(world.sagemaker.list_models(NameContains=name)["Models"]),
        ),
        "object": Kind(
            lambda name: world.s3.put_object(Bucket=BUCKET, Key=name, Body=name.encode() * 1000),
            lambda name: world.s3.delete_object(Bucket=BUCKET, Key=name),
            has_object,
        ),
        "role": Kind(
            lambda name: world.iam.create_role(RoleName=name, AssumeRolePolicyDocument="{}"),
            lambda name: world.iam.delete_role(RoleName=name),
            has_role,
        ),
    }


@contextmanager
def busy(world: World) -> Iterator[None]:
    """All of them at work until the block ends."""
    ended = threading.Event()

    def call() -> None:
        for name in itertools.cycle(IN_USE):
            world.call(name)
            if ended.wait(0.02):
                return

    def configure() -> None:
        while not ended.wait(0.1):
            number = next(world.numbers)
            kept, gone = f"kept-{number}", f"gone-{number}"
            for name, kind in kinds(world).items():
                if world.told(partial(kind.make, kept)) is not None:
                    world.acknowledged[name, kept] = True
                if world.told(partial(kind.make, gone)) is not None:
                    if world.told(partial(kind.delete, gone)) is not None:
                        world.acknowledged[name, gone] = False

    working = [world.threads.submit(work) for work in (*[call] * CALLERS, configure)]
    try:
        yield
    finally:
        ended.set()
        for work in working:
            work.result()


def verify(world: World) -> None:
    """Note what was acknowledged and is not so, and delete the rest."""
    made = kinds(world)
    for (name, which), is_kept in world.acknowledged.items():
        if made[name].is_there(which) != is_kept:
            world.wrong.append(f"{name} {which} is {'gone' if is_kept else 'there'}, and the contrary was acknowledged")
        elif is_kept:
            made[name].delete(which)
    world.acknowledged.clear()

"""What has to hold whatever the fault was: every call answered as AWS could, right if at all, and nothing left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from callers import verify
from matrix import Case
from remains import whole
from world import IN_USE, World

# What AWS may answer, from the reference of InvokeEndpoint and the common errors of its services.
MAY_BE_TOLD = {
    "right",
    "424 ModelError",
    "429 ModelNotReadyException",
    "500 InternalFailure",
    "500 InternalError",
    "503 ServiceUnavailable",
    "503 of the front",  # a load balancer's, without a code
    "530 InternalDependencyException",
}
OF_A_WRONG_CLOCK = {"403 InvalidSignatureException", "403 SignatureDoesNotMatch", "403 RequestTimeTooSkewed"}


@contextmanager
def judged(world: World, case: Case) -> Iterator[None]:
    """Fail unless all is well after the fault that is done in the block; `world.seen` has what calls came to then."""
    world.seen.clear()
    world.wrong.clear()
    world.used.clear()
    yield
    during = world.seen.copy()
    world.in_service()
    for name in {*IN_USE, *world.used}:
        world.answered(name)
    verify(world)
    assert not world.wrong, world.wrong[:5]
    lost = {"connection lost"} if case.may_lose_connections else set()
    skewed = OF_A_WRONG_CLOCK if case.fault.startswith("clock") else set()
    assert set(during) <= MAY_BE_TOLD | lost | skewed, during
    whole(world)
    world.seen = during

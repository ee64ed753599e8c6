from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest

from mme.platform import backing
from mme.platform.backing import BackingFailed, Service

pytestmark = pytest.mark.anyio

ECHO = (
    "import sys; from http.server import BaseHTTPRequestHandler, HTTPServer; "
    "HTTPServer(('127.0.0.1', int(sys.argv[1])), BaseHTTPRequestHandler).serve_forever()"
)
DEAF = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {ECHO}"


def server(port: int) -> list[str]:
    return [sys.executable, "-S", "-c", ECHO, str(port)]


Make = Callable[..., Service]


@pytest.fixture
async def make(tmp_path: Path, anyio_backend: str) -> AsyncIterator[Make]:
    """Makes services that are closed with the test."""
    made: list[Service] = []

    def one(argv: Callable[[int], list[str]] = server, **options: object) -> Service:
        made.append(Service("one", argv, dict(os.environ), tmp_path, **options))  # type: ignore[arg-type]
        return made[-1]

    yield one
    for service in made:
        await service.close()


async def test_a_service_is_up_when_it_answers(make: Make) -> None:
    service = make()
    await service.start()
    await service.up()
    assert service.is_up
    _, writer = await asyncio.open_connection("127.0.0.1", service.port)
    writer.close()


async def test_a_service_that_is_killed_is_started_again_and_told_what_it_was_told_before(make: Make) -> None:
    told: list[int | None] = []

    async def tell() -> None:
        told.append(service.pid)

    service = make(on_up=tell)
    await service.start()
    await service.up()
    first = service.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    async with asyncio.timeout(20):
        while service.pid == first or not service.is_up:
            await asyncio.sleep(0.01)
    assert told == [first, service.pid]


async def test_a_service_that_is_closed_stays_ended(make: Make) -> None:
    service = make()
    await service.start()
    await service.up()
    assert service.pid is not None
    process = psutil.Process(service.pid)
    await service.close()
    assert not process.is_running()


async def test_a_service_that_is_deaf_to_the_request_to_end_is_killed(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backing, "_GRACE_S", 0.2)
    service = make(lambda port: [sys.executable, "-S", "-c", DEAF, str(port)])
    await service.start()
    await service.up()
    await service.close()
    assert service.pid is not None and not psutil.pid_exists(service.pid)


async def test_a_service_that_does_not_come_up_names_its_log(make: Make, tmp_path: Path) -> None:
    service = make(lambda port: [sys.executable, "-c", "raise SystemExit('no')"])
    await service.start()
    with pytest.raises(BackingFailed, match=f"one does not answer; its log is {tmp_path / 'one.log'}"):
        await service.up(timeout_s=0.5)


async def test_keys_are_made_up_once_per_home(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    keys = backing.credentials(first)
    assert backing.credentials(first) == keys
    assert backing.credentials(second) != keys
    assert (first / "credentials.json").stat().st_mode & 0o777 == 0o600


async def test_the_secret_key_is_not_among_the_arguments(tmp_path: Path) -> None:
    service = backing.object_service(tmp_path, "access", "secret-of-the-home")
    await service.start()
    try:
        await service.up()
        assert service.pid is not None
        assert "secret-of-the-home" not in " ".join(psutil.Process(service.pid).cmdline())
    finally:
        await service.close()

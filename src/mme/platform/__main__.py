"""Decides in which order the platform's process starts and stops: `python -m mme.platform --home DIR`.

moto and rclone start while this process imports the rest, so what is imported here at the top is little.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import resource
import signal
import sys
from pathlib import Path

import uvloop

from mme.platform import backing
from mme.platform.config import MARK, RUNNING_FILE
from mme.platform.plain import PlainFormatter
from mme.platform.state import State, StateError
from mme.private import UMASK


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m mme.platform", description="The local SageMaker, in the foreground."
    )
    parser.add_argument("--home", type=Path, required=True, help="the folder that holds everything")
    parser.add_argument("--port", type=int, default=0, help="0, the default, picks a free one")
    parser.add_argument("--region", default="us-east-1")
    parser.add_argument("--instance-memory-mb", type=int, default=3072, help="memory of a local instance")
    parser.add_argument("--container", default="embedded", choices=("embedded", "djl-serving", "docker"))
    return parser.parse_args()


async def _run(arguments: argparse.Namespace, home: Path, state: State) -> None:
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    keys = backing.credentials(home)

    async def replay() -> None:
        from mme.platform.assembly import replay

        await replay(state, aws.url, arguments.region, home)

    objects = backing.object_service(home, *keys)
    aws = backing.aws_service(home, arguments.region, replay)
    try:
        await asyncio.gather(objects.start(), aws.start())
        from mme.platform.assembly import Platform

        platform = Platform(
            home=home,
            region=arguments.region,
            instance_memory_mb=arguments.instance_memory_mb,
            container=arguments.container,
            state=state,
            objects=objects,
            aws=aws,
            keys=keys,
        )
        await platform.run(arguments.port, ended)
    finally:
        await asyncio.gather(objects.close(), aws.close())


def main() -> None:
    arguments = _arguments()
    home = arguments.home.expanduser().resolve()
    os.umask(UMASK)  # of all that is started from here too
    os.environ[MARK] = str(home)  # what is started from here carries it too
    handler = logging.StreamHandler()
    handler.setFormatter(PlainFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # each client and each call under way takes a descriptor
    try:
        state = State(home)
    except StateError as error:
        sys.exit(f"error: {error}")
    (home / RUNNING_FILE).unlink(missing_ok=True)
    try:
        uvloop.run(_run(arguments, home, state))
    except backing.BackingFailed as error:
        sys.exit(f"error: {error}")
    finally:
        (home / RUNNING_FILE).unlink(missing_ok=True)
        state.close()


if __name__ == "__main__":
    main()

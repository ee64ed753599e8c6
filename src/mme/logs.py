"""Decides which of the containers' records are shown, in which order, and what each line looks like."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from mme import session
from mme.plain import plain
from mme.session import SessionError
from mme.settings import Settings

GROUPS = "/aws/sagemaker/Endpoints/"  # where SageMaker keeps them, an endpoint's in a group of its name
_ROUND_S = 1.0
_LATE_MS = 60_000  # CloudWatch may show a record so long after a younger one of another stream


@dataclass(frozen=True)
class Record:
    """What a container said at one time, a line or several. `stream` is its variant and instance."""

    at_ms: int
    endpoint: str
    stream: str
    text: str

    def __str__(self) -> str:
        """In lines of which only the first isn't indented, without anything that a terminal would obey."""
        first, *more = plain(self.text).split("\n")
        lines = [line if line[:1] in ("", " ", "\t") else f"    {line}" for line in more]
        return "\n".join([f"{self.endpoint} {self.stream} {first}", *lines])


def read(settings: Settings, endpoint: str | None = None, *, follow: bool = False) -> Iterator[Record]:
    """The records of an endpoint, or of all, by time; with `follow` those to come as well, without end.

    They are read from CloudWatch Logs, where they arrive a second or two after they were written, and stay when the
    endpoint has gone. Raises SessionError when the platform doesn't run, when CloudWatch Logs refuses, and for an
    endpoint of which nothing was ever logged.
    """
    try:
        client = _client(settings)
        yield from _follow(client, endpoint) if follow else _all(client, _groups(client, endpoint), 0)
    except (BotoCoreError, ClientError) as error:
        raise SessionError(f"the logs can't be read: {session.said(error)}") from error


def _client(settings: Settings) -> Any:
    if settings.backend == "aws":
        return session.connect(settings).client("logs")
    running = session.running(settings)  # not `connect`, which would start one
    return boto3.client(
        "logs",
        endpoint_url=running.url,
        region_name=running.region,
        aws_access_key_id=running.access_key,
        aws_secret_access_key=running.secret_key,
    )


def _follow(client: Any, endpoint: str | None) -> Iterator[Record]:
    seen: dict[str, int] = {}  # when the records were written that may still be read again
    latest_ms = 0
    while True:
        # With an endpoint's name it must be there at the start, later it may go.
        groups = _groups(client, endpoint) if not seen else _groups(client, None)
        wanted = [group for group in groups if endpoint in (None, group.removeprefix(GROUPS))]
        for record in _all(client, wanted, max(0, latest_ms - _LATE_MS), seen):
            latest_ms = max(latest_ms, record.at_ms)
            yield record
        for event_id in [event_id for event_id, at_ms in seen.items() if at_ms < latest_ms - 2 * _LATE_MS]:
            del seen[event_id]
        time.sleep(_ROUND_S)


def _groups(client: Any, endpoint: str | None) -> list[str]:
    pages = client.get_paginator("describe_log_groups").paginate(logGroupNamePrefix=GROUPS)
    groups = [group["logGroupName"] for page in pages for group in page["logGroups"]]
    if endpoint is None:
        return groups
    if GROUPS + endpoint not in groups:
        known = ", ".join(group.removeprefix(GROUPS) for group in groups) or "none yet"
        raise SessionError(f"no endpoint {endpoint!r} has logged anything; there are: {known}")
    return [GROUPS + endpoint]


def _all(client: Any, groups: list[str], since_ms: int, seen: dict[str, int] | None = None) -> list[Record]:
    """What the groups hold from a time on, oldest first, without what was `seen`; which it adds to."""
    found = []
    for group in groups:
        pages = client.get_paginator("filter_log_events").paginate(logGroupName=group, startTime=since_ms)
        try:
            events = [event for page in pages for event in page["events"]]
        except client.exceptions.ResourceNotFoundException:
            continue  # deleted since it was listed
        for event in events:
            if seen is not None:
                if event["eventId"] in seen:
                    continue
                seen[event["eventId"]] = event["timestamp"]
            name = group.removeprefix(GROUPS)
            found.append(Record(event["timestamp"], name, event["logStreamName"], event["message"]))
    return sorted(found, key=lambda record: record.at_ms)

"""Decides how metrics and log lines reach CloudWatch: from a thread of its own, and never at a call's expense.

Whatever waits is bounded: METRIC_BOUND statistic sets and LOG_BOUND lines. While CloudWatch can't be reached the oldest
beyond them are dropped, and how many is said in the platform's log; nobody waits.
"""

from __future__ import annotations

import collections
import functools
import logging
import threading
import time
from collections.abc import Iterable
from typing import Any

from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from mme.platform.config import ObjectStore, PlatformConfig

log = logging.getLogger(__name__)

METRIC_BOUND = 20_000
LOG_BOUND = 20_000
_PERIOD_S = 1.0  # how long a log line may wait before it is sent
_FIRST_AFTER_S = 5.0  # making AWS's clients takes a second of a core, which the first calls need more
_RETRY_S = 2.0  # between attempts while CloudWatch is away
_BATCH_METRICS = 500  # PutMetricData takes 1,000
_BATCH_LINES = 1_000  # PutLogEvents takes 10,000 lines,
_BATCH_BYTES = 900_000  # and 1 MiB, counting 26 bytes for each line
_LINE_OVERHEAD_BYTES = 26


@functools.cache
def _session() -> Any:
    """botocore's, which reads its models of the services once."""
    import botocore.session  # slow, and no start of the platform has to wait for it

    return botocore.session.get_session()


class Publisher:
    """Sends to CloudWatch and CloudWatch Logs in the background. Its methods may be called from any thread."""

    def __init__(self, config: PlatformConfig, store: ObjectStore) -> None:
        self._config = config
        self._store = store
        self._metrics: collections.deque[tuple[str, dict[str, Any]]] = collections.deque()
        self._lines: collections.deque[tuple[str, str, int, str]] = collections.deque()
        self._streams: set[tuple[str, str]] = set()
        self._clients: dict[str, Any] = {}
        self._dropped = 0
        self._condition = threading.Condition()
        self._rounds_asked = 0
        self._rounds_done = 0
        self._is_all_sent = False
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="cloudwatch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def metrics(self, namespace: str, data: Iterable[dict[str, Any]]) -> None:
        """Queue MetricData for PutMetricData."""
        self._metrics.extend((namespace, datum) for datum in data)
        self._bound(self._metrics, METRIC_BOUND)

    def log(self, group: str, stream: str, at_ms: int, line: str) -> None:
        """Queue one line for PutLogEvents."""
        self._lines.append((group, stream, at_ms, line))
        self._bound(self._lines, LOG_BOUND)

    def _bound(self, queue: collections.deque[Any], bound: int) -> None:
        while len(queue) > bound:
            queue.popleft()
            self._dropped += 1

    def forget(self, group: str) -> None:
        """The group may be deleted: its streams are created anew when they are needed."""
        self._streams = {known for known in self._streams if known[0] != group}

    def flush(self, timeout_s: float) -> bool:
        """Wait until what was queued before has been tried once; whether it all went out. Not for the event loop."""
        with self._condition:
            self._rounds_asked += 1
            asked = self._rounds_asked
            self._condition.notify_all()
            self._condition.wait_for(lambda: self._rounds_done >= asked or self._is_closing, timeout_s)
        return self._rounds_done >= asked and self._is_all_sent

    def close(self, timeout_s: float = 3) -> None:
        """Send what waits, as far as that goes within `timeout_s`, and end the thread."""
        if self._thread.is_alive():
            self.flush(timeout_s)
            with self._condition:
                self._is_closing = True
                self._condition.notify_all()
            self._thread.join(timeout_s)

    def _run(self) -> None:
        failed_at = float("-inf")
        pause_s = _FIRST_AFTER_S
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._is_closing or self._rounds_asked > self._rounds_done, pause_s)
                if self._is_closing:
                    return
                asked = self._rounds_asked
            pause_s = _PERIOD_S
            try:
                self._send_metrics()
                self._send_lines()
                self._is_all_sent = True
                if self._dropped:
                    log.warning("%d metrics and log lines were dropped while CloudWatch was away", self._dropped)
                    self._dropped = 0
            except (BotoCoreError, ClientError) as error:
                if time.monotonic() - failed_at > 60:
                    log.warning("CloudWatch is away, metrics and log lines wait: %s", error)
                failed_at = time.monotonic()
                self._is_all_sent = False
                pause_s = _RETRY_S
                self._streams.clear()
            with self._condition:
                self._rounds_done = asked
                self._condition.notify_all()

    def _client(self, service: str) -> Any:
        if service not in self._clients:
            self._clients[service] = _session().create_client(
                service,
                region_name=self._config.region,
                endpoint_url=self._config.moto_url,
                aws_access_key_id=self._store.access_key,
                aws_secret_access_key=self._store.secret_key,
                config=Config(connect_timeout=2, read_timeout=10, retries={"total_max_attempts": 1}),
            )
        return self._clients[service]

    def _send_metrics(self) -> None:
        while self._metrics:
            namespace = self._metrics[0][0]
            batch: list[tuple[str, dict[str, Any]]] = []
            while self._metrics and self._metrics[0][0] == namespace and len(batch) < _BATCH_METRICS:
                batch.append(self._metrics.popleft())
            try:
                self._client("cloudwatch").put_metric_data(
                    Namespace=namespace, MetricData=[datum for _, datum in batch]
                )
            except (BotoCoreError, ClientError) as error:
                self._give_back(self._metrics, METRIC_BOUND, batch, error)

    def _send_lines(self) -> None:
        for _ in range(len(self._lines)):
            if not self._lines:
                return
            group, stream = self._lines[0][:2]
            batch: list[tuple[str, str, int, str]] = []
            size_bytes = 0
            while self._lines and self._lines[0][:2] == (group, stream) and len(batch) < _BATCH_LINES:
                size_bytes += len(self._lines[0][3].encode()) + _LINE_OVERHEAD_BYTES
                if batch and size_bytes > _BATCH_BYTES:
                    break
                batch.append(self._lines.popleft())
            try:
                self._create_stream(group, stream)
                self._client("logs").put_log_events(
                    logGroupName=group,
                    logStreamName=stream,
                    logEvents=[{"timestamp": at_ms, "message": line} for _, _, at_ms, line in batch],
                )
            except (BotoCoreError, ClientError) as error:
                self._give_back(self._lines, LOG_BOUND, batch, error)

    def _give_back(self, queue: collections.deque[Any], bound: int, batch: list[Any], error: Exception) -> None:
        """Queue again what could not be sent, unless it is the data that is refused: sending it again won't help."""
        refusal = error.response["Error"]["Code"] if isinstance(error, ClientError) else type(error).__name__
        if refusal.startswith(("InvalidParameter", "ParamValidation")):
            self._dropped += len(batch)
            log.warning("CloudWatch refuses %d entries: %s", len(batch), error)
            return
        queue.extendleft(reversed(batch))
        self._bound(queue, bound)
        raise error

    def _create_stream(self, group: str, stream: str) -> None:
        if (group, stream) in self._streams:
            return
        logs = self._client("logs")
        for create, names in (
            (logs.create_log_group, {"logGroupName": group}),
            (logs.create_log_stream, {"logGroupName": group, "logStreamName": stream}),
        ):
            try:
                create(**names)
            except logs.exceptions.ResourceAlreadyExistsException:
                continue
        self._streams.add((group, stream))

"""Decides where a container's lines go: a file beside its instance, and CloudWatch Logs as on AWS."""

from __future__ import annotations

import logging
import logging.handlers
import time
from pathlib import Path

from mme.plain import plain
from mme.platform.hosting.publisher import Publisher

log = logging.getLogger(__name__)

LOG_FILE = "container.log"  # in the folder of an instance
_FILE_BYTES = 8 * 2**20  # an instance keeps this much of its log as a file, twice


def log_group(endpoint_name: str) -> str:
    """The CloudWatch Logs group of an endpoint's containers."""
    return f"/aws/sagemaker/Endpoints/{endpoint_name}"


class InstanceLog:
    """The log of one instance: stream `<variant>/<instance id>` of the endpoint's group, and `container.log`."""

    def __init__(self, endpoint_name: str, variant_name: str, instance_id: str, folder: Path, publisher: Publisher):
        self._group = log_group(endpoint_name)
        self._stream = f"{variant_name}/{instance_id}"
        self._publisher = publisher
        self._file = logging.handlers.RotatingFileHandler(
            folder / LOG_FILE, maxBytes=_FILE_BYTES, backupCount=1, encoding="utf-8", errors="backslashreplace"
        )

    def write(self, record: str) -> None:
        """Keep one record of the container's output, a line or several: in CloudWatch Logs it is one event."""
        record = plain(record)
        self._file.emit(logging.makeLogRecord({"msg": record}))
        if record:
            self._publisher.log(self._group, self._stream, int(time.time() * 1000), record)

    def close(self) -> None:
        try:
            self._file.close()
        except OSError as error:  # of the lines that it couldn't write before either
            log.warning("the last lines of %s are in CloudWatch Logs alone: %s", self._stream, error)

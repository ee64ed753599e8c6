"""What AWS clients send, as they send it: service, operation and parameters of every call that botocore makes."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from botocore.client import BaseClient

READS = re.compile(r"(Get|List|Head|Describe|BatchGet|Filter)[A-Z]\w*")


@dataclass(frozen=True)
class Sent:
    """One call, before it is put on the wire."""

    service: str
    operation: str
    parameters: dict[str, Any]

    @property
    def is_read(self) -> bool:
        return READS.fullmatch(self.operation) is not None


@contextlib.contextmanager
def recording(before: Callable[[Sent], None] = lambda sent: None) -> Iterator[list[Sent]]:
    """Every call that any boto3 client of this process makes meanwhile; `before` may raise in its place."""
    sent: list[Sent] = []
    make = BaseClient._make_api_call

    def recorded(client: Any, operation: str, parameters: dict[str, Any]) -> Any:
        call = Sent(client.meta.service_model.service_name, operation, parameters)
        before(call)
        sent.append(call)
        return make(client, operation, parameters)

    with patch.object(BaseClient, "_make_api_call", recorded):
        yield sent

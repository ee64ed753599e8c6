"""Decides how the control plane keeps what has a name, and AWS's answers for a name that is missing or taken.

Names are unique without regard to case, as CreateEndpoint documents it for endpoints.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from mme.platform.config import PlatformConfig
from mme.platform.errors import UnsupportedOperation, ValidationException
from mme.platform.state import State

MAX_TAGS = 50  # per resource, Tag in the SageMaker API reference

MODEL = "model"
ENDPOINT_CONFIG = "endpoint-config"
ENDPOINT = "endpoint"
TAGS = "tags"

# How AWS calls each kind in its messages.
WORDS = {MODEL: "model", ENDPOINT_CONFIG: "endpoint configuration", ENDPOINT: "endpoint"}

Request = Mapping[str, Any]
Answer = dict[str, Any]
Operation = Callable[[Request], Awaitable[Answer]]


class Resources:
    """The named resources that `State` keeps, with AWS's answers for those that are missing or there already."""

    def __init__(self, config: PlatformConfig, state: State) -> None:
        self.config = config
        self.state = state

    def arn(self, kind: str, name: str) -> str:
        return self.config.arn(kind, name)

    def get(self, kind: str, name: str) -> dict[str, Any]:
        """The resource; raises ValidationException in AWS's words (aws/amazon-sagemaker-examples#2402) without one."""
        document = self.state.get(kind, name)
        if document is None:
            raise ValidationException(f'Could not find {WORDS[kind]} "{self.arn(kind, name)}".')
        return document

    def refuse_existing(self, kind: str, name: str) -> None:
        """Raise ValidationException in AWS's words (aws/amazon-sagemaker-examples#2491) if there is such a resource."""
        if self.state.get(kind, name) is not None:
            raise ValidationException(f'Cannot create already existing {WORDS[kind]} "{self.arn(kind, name)}".')

    def create(self, kind: str, name: str, document: dict[str, Any], tags: list[dict[str, str]]) -> None:
        """Keep a new resource and its tags, both or neither."""
        tagged = merge_tags({}, tags)
        with self.state.together():
            self.state.put(kind, name, document)
            if tagged:
                self.state.put(TAGS, self.arn(kind, name), tagged)

    def delete(self, kind: str, name: str) -> None:
        with self.state.together():
            self.state.delete(kind, name)
            self.state.delete(TAGS, self.arn(kind, name))


def now() -> float:
    """The time as AWS writes it in JSON: seconds since 1970, to the millisecond."""
    return round(time.time(), 3)


def present(answer: Mapping[str, Any]) -> Answer:
    """Without the members that are None: AWS leaves out what isn't set, and the SageMaker SDK relies on it."""
    return {name: value for name, value in answer.items() if value is not None}


def refuse_member(members: Mapping[str, Any], name: str, what: str) -> None:
    """Raise UnsupportedOperation if a request has a member that this platform can't honour."""
    if name in members:
        raise UnsupportedOperation(f"{name} of {what} is not supported by the local platform; leave it out, or use AWS")


def merge_tags(tags: Mapping[str, str], added: list[dict[str, str]]) -> dict[str, str]:
    merged = {**tags, **{tag["Key"]: tag["Value"] for tag in added}}
    if len(merged) > MAX_TAGS:
        raise ValidationException(f"the resource would have {len(merged)} tags; it can have {MAX_TAGS}")
    return merged

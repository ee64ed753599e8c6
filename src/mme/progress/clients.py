"""Decides which calls of boto3 make somebody wait, and what for: transfers, waiters, and calls of a model."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from mme.progress.steps import Step, waiting


def follow(boto: Any) -> None:
    """Say what is waited for when clients of this boto3 session upload, download, wait or call an endpoint.

    Clients are extended as boto3's guide to extensibility describes; what they send stays as it is.
    """
    boto.events.register_last("creating-client-class", _tell_waiters)
    boto.events.register_last("creating-client-class.s3", _tell_transfers)
    boto.events.register_last("creating-client-class.sagemaker-runtime", _tell_calls)


def _tell_transfers(class_attributes: dict[str, Any], **_: Any) -> None:
    upload, download = class_attributes["upload_file"], class_attributes["download_file"]

    def upload_file(
        self: Any, Filename: str, Bucket: str, Key: str, ExtraArgs: Any = None, Callback: Any = None, Config: Any = None
    ) -> None:
        with waiting(f"uploading {Key}", os.path.getsize(Filename), is_bytes=True) as step:
            upload(self, Filename, Bucket, Key, ExtraArgs, _counted(step, Callback), Config)

    def download_file(
        self: Any, Bucket: str, Key: str, Filename: str, ExtraArgs: Any = None, Callback: Any = None, Config: Any = None
    ) -> None:
        with waiting(f"downloading {Key}", is_bytes=True) as step:
            download(self, Bucket, Key, Filename, ExtraArgs, _counted(step, Callback), Config)

    class_attributes |= {"upload_file": upload_file, "download_file": download_file}


def _counted(step: Step, callback: Callable[[int], None] | None) -> Callable[[int], None]:
    def moved(count: int) -> None:
        step.advance(count)
        if callback is not None:
            callback(count)

    return moved


def _tell_calls(class_attributes: dict[str, Any], **_: Any) -> None:
    invoke = class_attributes["invoke_endpoint"]

    def invoke_endpoint(self: Any, *arguments: Any, **parameters: Any) -> Any:
        with waiting(f"calling {parameters.get('TargetModel') or parameters.get('EndpointName')}"):
            return invoke(self, *arguments, **parameters)

    class_attributes["invoke_endpoint"] = invoke_endpoint


def _tell_waiters(base_classes: list[Any], **_: Any) -> None:
    base_classes.insert(0, _Waiting)


class _Waiting:
    """A base of clients, before their own, whose waiters say what they wait for."""

    def get_waiter(self, waiter_name: str) -> Any:
        waiter = super().get_waiter(waiter_name)  # type: ignore[misc]
        wait = waiter.wait

        def told_wait(**parameters: Any) -> None:
            names = [value for key, value in parameters.items() if key != "WaiterConfig" and isinstance(value, str)]
            with waiting(f"waiting for {waiter_name.replace('_', ' ')}: {', '.join(names)}"):
                wait(**parameters)

        waiter.wait = told_wait
        return waiter

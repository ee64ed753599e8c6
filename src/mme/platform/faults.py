"""Decides which of AWS's errors a call that failed is answered with, and in which words."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from mme.discretion import discreet, within
from mme.platform.config import PlatformConfig
from mme.platform.containers import ContainerGone, Reply
from mme.platform.errors import (
    AwsError,
    InternalDependencyException,
    ModelError,
    ModelNotReadyException,
    ServiceUnavailable,
    ValidationError,
)
from mme.platform.hosting.logs import log_group
from mme.platform.hosting.plans import (
    ContainerLost,
    DiskFull,
    HostingFault,
    LoadRefused,
    LoadTimedOut,
    PackageMissing,
    PackageUnusable,
)

FAILURES = (AwsError, HostingFault, ContainerGone, TimeoutError)
"""What a call may fail with, each of which `Faults.told` knows."""

_MESSAGE_BYTES = 64 * 1024  # of a model's error that are passed on
# Seen in aws/amazon-sagemaker-examples#799 and #1407.
TIMED_OUT = (
    "Your invocation timed out while waiting for a response from container model. Review the latency metrics for each "
    "container in Amazon CloudWatch, resolve the issue, and try again."
)
EXITED = "The container closed the connection before it answered."


@dataclass(frozen=True, slots=True)
class Faults:
    """The errors of one endpoint's calls."""

    config: PlatformConfig
    endpoint_name: str

    def of_model(self, reply: Reply) -> ModelError:
        """A model's own failure."""
        return self._model_error(reply.status, reply.body[:_MESSAGE_BYTES].decode(errors="replace"))

    def _model_error(self, status: int, text: str) -> ModelError:
        """A model's failure in AWS's words (aws/amazon-sagemaker-examples#407, torchserve-examples#3)."""
        text = discreet(text, _places(self.config.folder))
        region, account, group = self.config.region, self.config.account_id, log_group(self.endpoint_name)
        return ModelError(
            f"Received {'client' if 400 <= status < 500 else 'server'} error ({status}) from model with message "
            f'"{text}". See https://{region}.console.aws.amazon.com/cloudwatch/home?region={region}'
            f"#logEventViewer:group={group} in account {account} for more information.",
            original_status=status,
            original_message=text,
            log_stream_arn=f"arn:aws:logs:{region}:{account}:log-group:{group}",
        )

    def told(self, error: Exception, model_name: str, *, is_asked: bool) -> AwsError:
        """What AWS answers for one of `FAILURES`; `is_asked`: the model was asked before the time ran out."""
        match error:
            case AwsError():
                return error
            case TimeoutError() if not is_asked:
                return ModelNotReadyException(
                    f"Model {model_name} of endpoint {self.endpoint_name} is still "
                    f"being loaded after {self.config.invoke_timeout_s:g} seconds; the load goes on, try again later."
                )
            case TimeoutError():
                return self._model_error(0, TIMED_OUT)
            case ContainerGone():
                return self._model_error(0, EXITED)
            case LoadRefused(status=status, message=message):
                return self._model_error(status, message)
            case PackageMissing(bucket=bucket, key=key):
                return ValidationError(
                    f"Failed to download model data(bucket: {bucket}, key: {key}). Please ensure that there is an "
                    f"object located at the URL and that the role passed to CreateModel has permissions to download "
                    f"the model."
                )
            case PackageUnusable(url=url, reason=reason):
                return ValidationError(
                    f"Failed to extract model data archive from URL {url}. Please ensure that the object located at "
                    f"the URL is a valid tar.gz archive: {reason}"
                )
            case LoadTimedOut():
                return self._model_error(0, str(error))
            case ContainerLost() | DiskFull():
                return ServiceUnavailable(str(error))
        return InternalDependencyException(str(error))


@lru_cache(8)
def _places(instances: Path) -> dict[re.Pattern[str], str]:
    """What lies under the instances' folder, and where a container on AWS would have it."""
    root = re.escape(str(instances))
    return {
        re.compile(rf"{root}/[^/\s]+/[^/\s]+/\d+/models(?=/)"): "/opt/ml/models",
        re.compile(rf"{root}/nursery/tmp-[^/]+/\d+/\d+"): "/tmp",
        within(instances.parent): "",
    }

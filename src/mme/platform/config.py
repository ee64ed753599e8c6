"""Decides what the rooms of the platform are told about their surroundings: places, limits, addresses, keys."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

MARK = "MME_MARK"  # an environment variable of all processes of a platform; its value is their home
RUNNING_FILE = "platform.json"  # under the home, while the platform answers: where, as which process, with which keys

ACCOUNT_ID = "000000000000"  # the one account there is locally; no real account can have it


@dataclass(frozen=True)
class PlatformConfig:
    """One platform process: where it keeps things and what its instances may use."""

    home: Path
    """The folder that holds everything of this platform; its absolute path is the mark of the platform's processes."""
    folder: Path
    """Where the instances keep their disks and logs, under `home`."""
    moto_url: str
    """Where moto answers (STS, IAM, CloudWatch, logs, autoscaling); it may still be starting, and may be restarted."""
    region: str = "us-east-1"
    account_id: str = ACCOUNT_ID
    instance_memory_mb: int = 2048
    instance_disk_mb: int = 20_480
    container: str = "embedded"
    """What instances run: a name of `mme.platform.containers.KINDS`."""
    metrics_period_s: float = 10
    """AWS publishes once a minute; here nobody should wait that long to see what a call did."""
    autoscaling_period_s: float = 60
    """How often scaling policies are evaluated; AWS does it each minute."""
    invoke_timeout_s: float = 60
    load_timeout_s: float = 360
    waiting_limit: int = 256
    """Calls of one model that an instance has at once; a further one is refused, so that no flood grows without end."""

    def arn(self, kind: str, name: str) -> str:
        """The ARN of a SageMaker resource; `kind` is model, endpoint-config or endpoint, and names are lower case."""
        return f"arn:aws:sagemaker:{self.region}:{self.account_id}:{kind}/{name.lower()}"


@dataclass(frozen=True)
class ObjectStore:
    """The S3 that holds the packages, as the platform itself reaches it: path style, SigV4, these keys."""

    s3_url: str
    access_key: str
    secret_key: str
    region: str = "us-east-1"

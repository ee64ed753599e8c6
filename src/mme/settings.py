"""Decides what a run is called, where it keeps its things, and which backend it talks to."""

from __future__ import annotations

import getpass
import json
import os
import sys
import traceback
from contextlib import redirect_stdout
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "notebooks" / "config.ipynb"
EXPIRY_FORMAT = "%Y-%m-%dT%H:%MZ"  # of the tag mme:expiry, in UTC


class ConfigError(Exception):
    """config.ipynb gives no settings; the message says where, and why."""


class Settings(BaseSettings):
    """What the notebooks, the command line and the tests share.

    Each value can be given by name, as `config.ipynb` does, or by an environment variable (`MME_BACKEND`,
    `MME_HOME`, `MME_REGION`, ...). The environment wins, so that one notebook serves every place.
    Raises pydantic's ValidationError, which names the value, for one that cannot be used.
    """

    model_config = SettingsConfigDict(env_prefix="MME_", frozen=True, extra="forbid")

    backend: Literal["local", "aws"] = "local"
    home: Path = ROOT / ".mme"
    """Everything the local platform keeps. Two homes run side by side."""

    region: str = Field(default=None, validate_default=True, pattern=r"^[a-z]{2,4}(-[a-z]+)+-\d+$")
    """None takes the one of the AWS set-up on `aws`, us-east-1 on `local`."""
    bucket: str | None = None
    """The bucket for the packages; without one, a name made of the project, region and account."""
    prefix: str = "model-packages"
    role: str | None = None
    """On AWS, the ARN of the execution role; None takes the notebook's own inside SageMaker. The local platform creates
    its own."""
    yes: bool = False
    """On AWS, that things may be created and billed. Until then, only reads are sent."""

    project: str = Field(default="mme-djl", pattern=r"^[a-z0-9](-?[a-z0-9]){2,30}$", max_length=24)
    """The first part of the name of whatever is created: role, model, endpoint; it is in the bucket's too."""
    owner: str = Field(default_factory=lambda: _user(), pattern=r"^[\w+=.@-]{1,64}$")
    run: str = Field(default_factory=lambda: f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}", pattern=r"^[\w.-]{1,64}$")
    keep_days: int = Field(default=1, ge=1, le=365)
    """After how many days what a run creates counts as left behind: `mme clean --expired` deletes it then."""
    instance_type: str = "ml.m5.large"
    instance_price_per_hour: float | None = Field(default=None, ge=0)
    """What an hour of such an instance costs in the region, from AWS's price list; nothing here knows it."""
    instance_count: int = Field(default=1, ge=1, le=10)
    instance_memory_mb: int = Field(default=3072, ge=512)
    """Memory of a local instance in MB: what all its models and their workers may take together."""
    container: Literal["embedded", "djl-serving", "docker"] = "embedded"
    """What a local instance runs: the embedded server, the djl-serving on PATH, or DJL's image in Docker."""
    image_version: str = "0.36.0-cpu-full"
    container_egress: bool = False
    """Whether the endpoint's containers reach a package index, so that a requirements.txt can be installed in them."""
    lab_scale: float = Field(default=1, gt=0, le=1)
    """How much of their load the labs run: 1 is all of it, and what their saved outputs show."""

    @field_validator("region", mode="before")
    @classmethod
    def _known_region(cls, region: str | None, info: ValidationInfo) -> str:
        return region or ("us-east-1" if info.data.get("backend") != "aws" else _users_region())

    @field_validator("home")
    @classmethod
    def _absolute(cls, home: Path) -> Path:
        return home.expanduser().resolve()

    @property
    def endpoint_name(self) -> str:
        return f"{self.project}-endpoint"

    @property
    def tags(self) -> dict[str, str]:
        """What everything that is created carries; the expiry is counted from now."""
        expiry = datetime.now(UTC) + timedelta(days=self.keep_days)
        return {
            "mme:project": self.project,
            "mme:run": self.run,
            "mme:owner": self.owner,
            "mme:expiry": expiry.strftime(EXPIRY_FORMAT),
        }

    @property
    def data_dir(self) -> Path:
        return ROOT / "data"

    @property
    def scripts_dir(self) -> Path:
        """The handlers, a folder each."""
        return ROOT / "serving_scripts"

    @property
    def packages_dir(self) -> Path:
        """Where notebooks 01 to 04 leave the packages that they build."""
        return ROOT / "model_packages"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return env_settings, init_settings


def configured() -> Settings:
    """The settings that the notebooks get: those of `config.ipynb`, whose code is run, and of the environment.

    What the code prints goes to stderr. Raises ValidationError as Settings does, ConfigError for code that fails
    otherwise.
    """
    names: dict[str, Any] = {}
    for number, source in enumerate(_code_cells(), start=1):
        where = f"{CONFIG.name}, code cell {number}"
        try:
            with redirect_stdout(sys.stderr):
                exec(compile(source, where, "exec"), names)
        except ValidationError:
            raise
        except SyntaxError as error:
            raise ConfigError(f"{error.filename}, line {error.lineno}: {error.msg}") from None
        except Exception as error:  # whatever the user wrote there raises
            lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == where]
            raise ConfigError(f"{where}, line {lines[-1]}: {type(error).__name__}: {error}") from error
    settings = names.get("settings")
    if not isinstance(settings, Settings):
        raise ConfigError(f"{CONFIG.name} makes no settings; its code ends in settings = Settings(...)")
    return settings


def _code_cells() -> list[str]:
    try:
        cells = json.loads(CONFIG.read_text(encoding="utf-8"))["cells"]
        return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    except (ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"{CONFIG} is no notebook ({error}); open it in Jupyter, or take it back from git") from None


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name; OSError since Python 3.13
        return f"uid-{os.getuid()}"


def _users_region() -> str:
    """The region of the user's AWS set-up. Raises ValueError when it names none."""
    import botocore.session  # only AWS needs it, and it is slow
    from botocore.exceptions import ProfileNotFound

    try:
        region = os.environ.get("AWS_REGION") or botocore.session.get_session().get_config_variable("region")
    except ProfileNotFound as error:
        raise ValueError(f"{error}; `aws configure list-profiles` lists those there are") from None
    if not region:
        raise ValueError("your AWS set-up names no region; name one in config.ipynb, as MME_REGION or AWS_REGION")
    return str(region)

"""Decides what a run is called, where it keeps its things, and which backend it talks to."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

ROOT = Path(__file__).resolve().parents[2]


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

    region: str = Field(default="us-east-1", pattern=r"[a-z]{2}(-[a-z]+)+-\d")
    bucket: str | None = None
    """The bucket for the packages; without one, a name made of the project, region and account."""
    prefix: str = "model-packages"
    role: str | None = None
    """On AWS, the ARN of the execution role. The local platform creates its own."""

    project: str = Field(default="mme-djl", pattern=r"[a-z0-9](-?[a-z0-9]){2,30}")
    """The first part of the name of whatever is created: bucket, role, model, endpoint."""
    instance_type: str = "ml.m5.large"
    instance_count: int = Field(default=1, ge=1, le=10)
    instance_memory_mb: int = Field(default=3072, ge=512)
    """Memory of a local instance in MB: what all its models and their workers may take together."""
    image_version: str = "0.36.0-cpu-full"

    @field_validator("home")
    @classmethod
    def _absolute(cls, home: Path) -> Path:
        return home.expanduser().resolve()

    @property
    def endpoint_name(self) -> str:
        return f"{self.project}-endpoint"

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

"""Decides which options several commands share, and which settings follow from them."""

from __future__ import annotations

import os
from typing import Annotated, Literal

import typer

from mme.settings import Settings, configured

Backend = Annotated[Literal["local", "aws"] | None, typer.Option(help="In place of the settings'.")]
Endpoint = Annotated[str | None, typer.Option(metavar="NAME", help="In place of the project's.")]


def of_platform() -> Settings:
    """The settings of the local platform, whichever backend they name."""
    return chosen("local")


def chosen(backend: Literal["local", "aws"] | None) -> Settings:
    """The settings of config.ipynb and the environment, with the backend that was asked for."""
    if backend is not None:
        os.environ["MME_BACKEND"] = backend
    return configured()

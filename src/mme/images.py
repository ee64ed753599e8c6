"""Decides which image an endpoint's containers are started from: AWS keeps one per region, in accounts of its own."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import botocore.session

from mme.settings import Settings

REPOSITORY = "djl-inference"


class ImageError(Exception):
    """There is no image for the settings; the message says what there is."""


def registries(version: str) -> dict[str, str]:
    """By region, the account in which AWS keeps the images of this DJL Serving, or of the newest when it isn't known.

    Read from the SageMaker SDK's own table, sagemaker/core/image_uri_config/djl-lmi.json: `image_uris.retrieve` reads
    the same file, but gives the tags of LMI images alone, and takes six seconds to import.
    """
    found = importlib.util.find_spec("sagemaker")
    assert found is not None and found.submodule_search_locations is not None
    file = Path(found.submodule_search_locations[0]) / "core" / "image_uri_config" / "djl-lmi.json"
    versions: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["versions"]
    accounts: dict[str, str] = versions.get(version, next(iter(versions.values())))["registries"]
    return accounts


def account(settings: Settings) -> str:
    """The account that has the image in the settings' region. Raises ImageError for a region where AWS has none."""
    accounts = registries(settings.image_version.partition("-")[0])
    if settings.region not in accounts:
        raise ImageError(f"AWS has no DJL images in {settings.region}; it has some in {', '.join(sorted(accounts))}")
    return accounts[settings.region]


def image_uri(settings: Settings) -> str:
    """The DJL Serving image of the endpoint's container. Locally the embedded server stands in for it."""
    registry = f"{account(settings)}.dkr.ecr.{settings.region}.{_dns_suffix(settings.region)}"
    return f"{registry}/{REPOSITORY}:{settings.image_version}"


def _dns_suffix(region: str) -> str:
    """What AWS's host names end in, by botocore's table: amazonaws.com, or that of another partition."""
    session = botocore.session.get_session()
    name = session.get_partition_for_region(region)
    partitions = session.get_component("data_loader").load_data("partitions")["partitions"]
    return next(str(one["outputs"]["dnsSuffix"]) for one in partitions if one["id"] == name)

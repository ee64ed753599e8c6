"""The four packages, and a platform whose one endpoint serves them."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from tutorial import SCRIPTS, TRAINED, Packed, Served

from mme import packages, session
from mme.platform import launch
from mme.settings import Settings


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Packed]:
    root = tmp_path_factory.mktemp("packages")
    built = {}
    for slug, (scripts, train) in TRAINED.items():
        properties = {"minWorkers": 1, "maxWorkers": 2}
        folder = packages.prepare(root / slug, SCRIPTS / scripts, properties)
        records, answers = train(folder)
        archive = root / f"{slug}.tar.gz"
        packages.build(folder, archive)
        built[slug] = Packed(slug, archive, records, answers)
    return built


@pytest.fixture(scope="session")
def served(packed: dict[str, Packed], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A platform in a home of its own, whose one endpoint serves the four packages."""
    before = dict(os.environ)
    settings = Settings(home=tmp_path_factory.mktemp("home"), instance_memory_mb=4096)
    try:
        boto = session.connect(settings)
        bucket = session.bucket(settings)
        for package in packed.values():
            boto.client("s3").upload_file(str(package.archive), bucket, f"models/{package.slug}.tar.gz")
        name = "four-models"
        sagemaker = boto.client("sagemaker")
        sagemaker.create_model(
            ModelName=name,
            ExecutionRoleArn=session.role_arn(settings),
            PrimaryContainer={
                "Image": session.image_uri(settings),
                "Mode": "MultiModel",
                "ModelDataUrl": f"s3://{bucket}/models/",
            },
        )
        variant = {"VariantName": "AllTraffic", "ModelName": name, "InstanceType": "ml.m5.large"}
        sagemaker.create_endpoint_config(
            EndpointConfigName=name, ProductionVariants=[{**variant, "InitialInstanceCount": 1}]
        )
        sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)
        sagemaker.get_waiter("endpoint_in_service").wait(
            EndpointName=name, WaiterConfig={"Delay": 1, "MaxAttempts": 60}
        )
        yield Served(settings, boto, name)
    finally:
        launch.down(settings.home)
        os.environ.clear()
        os.environ.update(before)

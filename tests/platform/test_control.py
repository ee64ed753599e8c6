"""The control plane's rules, over a fleet that does as it is told."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from mme.platform.config import PlatformConfig
from mme.platform.control import Catalog
from mme.platform.endpoints import Endpoints
from mme.platform.errors import AwsError, UnsupportedOperation, ValidationException
from mme.platform.hosting.plans import DeploymentFailed, EndpointPlan
from mme.platform.resources import Resources
from mme.platform.state import State

pytestmark = pytest.mark.anyio

ROLE = "arn:aws:iam::000000000000:role/role"
ARN = "arn:aws:sagemaker:us-east-1:000000000000"


class Fleet:
    """Stands in for hosting: a deployment ends when the test lets it, well or with a reason."""

    def __init__(self) -> None:
        self.running: dict[str, EndpointPlan] = {}
        self.rescaled: list[Mapping[str, tuple[float | None, int | None]]] = []
        self.failure: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def deploy(self, plan: EndpointPlan) -> None:
        await self.gate.wait()
        self._fail()
        self.running[plan.name] = plan

    async def rescale(self, endpoint_name: str, desired: Mapping[str, tuple[float | None, int | None]]) -> None:
        await self.gate.wait()
        self._fail()
        self.rescaled.append(desired)

    async def remove(self, endpoint_name: str) -> None:
        await self.gate.wait()
        self.running.pop(endpoint_name, None)

    def is_up(self, endpoint_name: str) -> bool:
        return endpoint_name in self.running

    def _fail(self) -> None:
        if self.failure is not None:
            raise self.failure


class Plane:
    """A control plane on a home of its own, that can be left and entered again."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self.fleet = Fleet()
        self.enter()

    def enter(self) -> None:
        self.state = State(self._home)
        config = PlatformConfig(home=self._home, folder=self._home / "instances", moto_url="http://127.0.0.1:9")
        resources = Resources(config, self.state)
        catalog = Catalog(resources)
        self.endpoints = Endpoints(resources, catalog, self.fleet)
        self._operations = {**catalog.operations, **self.endpoints.operations}

    async def leave(self) -> None:
        await self.endpoints.close()
        self.state.close()

    async def call(self, operation: str, **request: Any) -> dict[str, Any]:
        return await self._operations[operation](request)

    async def fault(self, operation: str, **request: Any) -> str:
        with pytest.raises(AwsError) as refused:
            await self.call(operation, **request)
        return f"{refused.value.code}: {refused.value.message}"

    async def model(self, name: str = "model", **container: Any) -> None:
        container = {"Image": "image", "Mode": "MultiModel", "ModelDataUrl": "s3://bucket/prefix/", **container}
        await self.call("CreateModel", ModelName=name, ExecutionRoleArn=ROLE, PrimaryContainer=container)

    async def config(self, name: str = "config", *variants: dict[str, Any], **members: Any) -> None:
        given = list(variants) or [variant()]
        await self.call("CreateEndpointConfig", EndpointConfigName=name, ProductionVariants=given, **members)

    async def endpoint(self, name: str = "endpoint", config: str = "config") -> None:
        await self.call("CreateEndpoint", EndpointName=name, EndpointConfigName=config)

    async def described(self, name: str = "endpoint") -> dict[str, Any]:
        return await self.call("DescribeEndpoint", EndpointName=name)

    async def status(self, wanted: str, name: str = "endpoint") -> dict[str, Any]:
        """Wait until the endpoint has the status."""
        async with asyncio.timeout(10):
            while (described := await self.described(name))["EndpointStatus"] != wanted:
                await asyncio.sleep(0.005)
        return described

    async def in_service(self) -> None:
        await self.model()
        await self.config()
        await self.endpoint()
        await self.status("InService")


def variant(name: str = "AllTraffic", model: str = "model", **members: Any) -> dict[str, Any]:
    given = {"VariantName": name, "ModelName": model, "InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
    return {**given, **members}


@pytest.fixture
async def plane(tmp_path: Path, anyio_backend: str) -> AsyncIterator[Plane]:
    made = Plane(tmp_path)
    yield made
    await made.leave()


async def test_a_model_is_described_as_it_was_created_without_members_that_are_unset(plane: Plane) -> None:
    await plane.model(Environment={"A": "b"})
    described = await plane.call("DescribeModel", ModelName="model")
    assert described.pop("CreationTime") > 1.7e9
    assert described == {
        "ModelName": "model",
        "ModelArn": f"{ARN}:model/model",
        "ExecutionRoleArn": ROLE,
        "EnableNetworkIsolation": False,
        "PrimaryContainer": {
            "Image": "image",
            "Mode": "MultiModel",
            "ModelDataUrl": "s3://bucket/prefix/",
            "Environment": {"A": "b"},
        },
    }


async def test_a_container_that_says_no_mode_serves_a_single_model(plane: Plane) -> None:
    await plane.call("CreateModel", ModelName="one", PrimaryContainer={"Image": "i", "ModelDataUrl": "s3://b/k.tar.gz"})
    described = await plane.call("DescribeModel", ModelName="one")
    assert described["PrimaryContainer"]["Mode"] == "SingleModel"


@pytest.mark.parametrize(
    ("operation", "request_of_it", "words"),
    [
        ("DescribeModel", {"ModelName": "No"}, f'Could not find model "{ARN}:model/no".'),
        ("DeleteModel", {"ModelName": "no"}, f'Could not find model "{ARN}:model/no".'),
        (
            "DescribeEndpointConfig",
            {"EndpointConfigName": "no"},
            f'Could not find endpoint configuration "{ARN}:endpoint-config/no".',
        ),
        (
            "DeleteEndpointConfig",
            {"EndpointConfigName": "no"},
            f'Could not find endpoint configuration "{ARN}:endpoint-config/no".',
        ),
        ("DescribeEndpoint", {"EndpointName": "no"}, f'Could not find endpoint "{ARN}:endpoint/no".'),
        ("DeleteEndpoint", {"EndpointName": "no"}, f'Could not find endpoint "{ARN}:endpoint/no".'),
        (
            "UpdateEndpoint",
            {"EndpointName": "no", "EndpointConfigName": "no"},
            f'Could not find endpoint "{ARN}:endpoint/no".',
        ),
        (
            "CreateEndpoint",
            {"EndpointName": "new", "EndpointConfigName": "no"},
            f'Could not find endpoint configuration "{ARN}:endpoint-config/no".',
        ),
        (
            "CreateEndpointConfig",
            {"EndpointConfigName": "new", "ProductionVariants": [variant(model="no")]},
            f'Could not find model "{ARN}:model/no".',
        ),
        ("ListTags", {"ResourceArn": f"{ARN}:model/no"}, f'Could not find model "{ARN}:model/no".'),
    ],
)
async def test_what_is_not_there_is_named_by_its_arn(
    plane: Plane, operation: str, request_of_it: dict[str, Any], words: str
) -> None:
    assert await plane.fault(operation, **request_of_it) == f"ValidationException: {words}"


async def test_a_name_can_be_taken_once_whatever_its_case(plane: Plane) -> None:
    await plane.in_service()
    taken = "ValidationException: Cannot create already existing"
    model = await plane.fault("CreateModel", ModelName="MODEL", PrimaryContainer={"Image": "i"})
    assert model == f'{taken} model "{ARN}:model/model".'
    config = await plane.fault("CreateEndpointConfig", EndpointConfigName="Config", ProductionVariants=[variant()])
    assert config == f'{taken} endpoint configuration "{ARN}:endpoint-config/config".'
    endpoint = await plane.fault("CreateEndpoint", EndpointName="Endpoint", EndpointConfigName="config")
    assert endpoint == f'{taken} endpoint "{ARN}:endpoint/endpoint".'


@pytest.mark.parametrize(
    "member",
    ["DataCaptureConfig", "AsyncInferenceConfig", "ExplainerConfig", "ShadowProductionVariants"],
)
async def test_what_cannot_be_honoured_is_refused_by_name(plane: Plane, member: str) -> None:
    await plane.model()
    with pytest.raises(UnsupportedOperation, match=f"^{member} of CreateEndpointConfig is not supported"):
        await plane.config("config", variant(), **{member: {}})
    with pytest.raises(ValidationException):
        await plane.call("DescribeEndpointConfig", EndpointConfigName="config")


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"ServerlessConfig": {}}, "ServerlessConfig of ProductionVariant is not supported"),
        ({"ManagedInstanceScaling": {}}, "ManagedInstanceScaling of ProductionVariant is not supported"),
    ],
)
async def test_a_variant_that_cannot_be_run_is_refused_by_name(
    plane: Plane, members: dict[str, Any], words: str
) -> None:
    await plane.model()
    with pytest.raises(UnsupportedOperation, match=words):
        await plane.config("config", variant(**members))


async def test_two_variants_cannot_have_one_name(plane: Plane) -> None:
    await plane.model()
    with pytest.raises(ValidationException, match="are called A, A; give each its own name"):
        await plane.config("config", variant("A"), variant("A"))


@pytest.mark.parametrize(
    ("request_of_it", "words"),
    [
        ({}, "has no container; give it a PrimaryContainer"),
        ({"Containers": [{"Image": "a"}, {"Image": "b"}]}, "has 2 containers; this platform runs models of one"),
        ({"PrimaryContainer": {}}, "has no Image; name one"),
        ({"PrimaryContainer": {"Image": "i", "ModelDataUrl": "https://a/b"}}, "put it into S3"),
        ({"PrimaryContainer": {"Image": "i", "Mode": "MultiModel"}}, "has no ModelDataUrl; give it the S3 prefix"),
        ({"PrimaryContainer": {"Image": "i", "ModelPackageName": "p"}}, "ModelPackageName of ContainerDefinition"),
    ],
)
async def test_a_model_that_cannot_be_run_is_refused(plane: Plane, request_of_it: dict[str, Any], words: str) -> None:
    assert words in await plane.fault("CreateModel", ModelName="m", **request_of_it)


async def test_model_data_may_be_named_as_a_source(plane: Plane) -> None:
    source = {"S3Uri": "s3://bucket/other/", "S3DataType": "S3Prefix", "CompressionType": "None"}
    await plane.call(
        "CreateModel",
        ModelName="model",
        PrimaryContainer={"Image": "i", "Mode": "MultiModel", "ModelDataSource": {"S3DataSource": source}},
    )
    await plane.config()
    await plane.endpoint()
    await plane.status("InService")
    assert plane.fleet.running["endpoint"].variants[0].model_data_url == "s3://bucket/other/"


async def test_tags_are_added_replaced_listed_and_deleted(plane: Plane) -> None:
    tags = [{"Key": "a", "Value": "1"}, {"Key": "b", "Value": "2"}]
    await plane.call("CreateModel", ModelName="m", PrimaryContainer={"Image": "i"}, Tags=tags)
    arn = f"{ARN}:model/m"
    assert (await plane.call("ListTags", ResourceArn=arn))["Tags"] == tags
    added = await plane.call("AddTags", ResourceArn=arn, Tags=[{"Key": "b", "Value": "3"}])
    assert added["Tags"] == [{"Key": "a", "Value": "1"}, {"Key": "b", "Value": "3"}]
    await plane.call("DeleteTags", ResourceArn=arn, TagKeys=["a", "never"])
    assert (await plane.call("ListTags", ResourceArn=arn))["Tags"] == [{"Key": "b", "Value": "3"}]
    many = [{"Key": str(number), "Value": ""} for number in range(50)]
    assert "would have 51 tags; it can have 50" in await plane.fault("AddTags", ResourceArn=arn, Tags=many)
    await plane.call("DeleteModel", ModelName="m")
    await plane.call("CreateModel", ModelName="m", PrimaryContainer={"Image": "i"})
    assert (await plane.call("ListTags", ResourceArn=arn))["Tags"] == []


@pytest.mark.parametrize(
    "place",
    [
        "arn:aws:sagemaker:eu-west-1:000000000000",
        "arn:aws:sagemaker:us-east-1:000000000001",
        ARN.replace("aws", "aws-cn", 1),
    ],
)
@pytest.mark.parametrize(
    ("operation", "more"),
    [("AddTags", {"Tags": [{"Key": "a", "Value": "b"}]}), ("ListTags", {}), ("DeleteTags", {"TagKeys": ["a"]})],
)
async def test_tags_of_another_region_or_account_are_not_found(
    plane: Plane, place: str, operation: str, more: dict[str, Any]
) -> None:
    await plane.model("M")
    arn = f"{place}:model/m"
    assert f'Could not find model "{arn}".' in await plane.fault(operation, ResourceArn=arn, **more)
    await plane.call(operation, ResourceArn=f"{ARN}:model/M", **more)


async def test_an_endpoint_is_created_while_its_fleet_comes_up(plane: Plane) -> None:
    await plane.model()
    await plane.config()
    plane.fleet.gate.clear()
    await plane.endpoint()
    creating = await plane.described()
    assert creating["EndpointStatus"] == "Creating"
    assert "ProductionVariants" not in creating and "FailureReason" not in creating
    assert creating["PendingDeploymentSummary"]["EndpointConfigName"] == "config"
    plane.fleet.gate.set()
    described = await plane.status("InService")
    (serving,) = described["ProductionVariants"]
    assert serving["VariantName"] == "AllTraffic"
    assert (serving["CurrentInstanceCount"], serving["DesiredInstanceCount"]) == (1, 1)
    assert (serving["CurrentWeight"], serving["DesiredWeight"]) == (1.0, 1.0)
    assert serving["DeployedImages"][0]["SpecifiedImage"] == "image"
    assert "PendingDeploymentSummary" not in described
    assert described["LastModifiedTime"] >= described["CreationTime"]


async def test_a_fleet_that_does_not_come_up_fails_its_endpoint_with_the_reason(plane: Plane) -> None:
    await plane.model()
    await plane.config()
    plane.fleet.failure = DeploymentFailed("The primary container did not pass the ping health check.")
    await plane.endpoint()
    failed = await plane.status("Failed")
    assert failed["FailureReason"] == "The primary container did not pass the ping health check."
    refused = await plane.fault("UpdateEndpoint", EndpointName="endpoint", EndpointConfigName="config")
    assert "Cannot update failed endpoint" in refused
    await plane.call("DeleteEndpoint", EndpointName="endpoint")


async def test_an_error_nobody_foresaw_does_not_leave_an_endpoint_in_progress(plane: Plane) -> None:
    await plane.model()
    await plane.config()
    plane.fleet.failure = ZeroDivisionError("by nought")
    await plane.endpoint()
    assert "ZeroDivisionError" in (await plane.status("Failed"))["FailureReason"]


async def after_an_update_that_met(plane: Plane, failure: Exception) -> Any:
    """What is described of an endpoint that serves, when its fleet has failed to take another configuration."""
    await plane.in_service()
    await plane.config("new")
    plane.fleet.failure = failure
    await plane.call("UpdateEndpoint", EndpointName="endpoint", EndpointConfigName="new")
    return await plane.status("InService")


async def test_an_error_nobody_foresaw_leaves_an_endpoint_that_serves_in_service_as_it_was(plane: Plane) -> None:
    described = await after_an_update_that_met(plane, ZeroDivisionError("by nought"))
    assert described["EndpointConfigName"] == "config" and "ZeroDivisionError" in described["FailureReason"]
    assert "PendingDeploymentSummary" not in described
    plane.fleet.failure = None
    await plane.call("UpdateEndpoint", EndpointName="endpoint", EndpointConfigName="new")
    assert (await plane.status("InService"))["EndpointConfigName"] == "new"


@pytest.mark.parametrize(
    ("operation", "request_of_it"),
    [
        ("UpdateEndpoint", {"EndpointConfigName": "config"}),
        ("UpdateEndpointWeightsAndCapacities", {"DesiredWeightsAndCapacities": [{"VariantName": "AllTraffic"}]}),
        ("DeleteEndpoint", {}),
    ],
)
async def test_what_is_in_progress_is_left_alone(plane: Plane, operation: str, request_of_it: dict[str, Any]) -> None:
    await plane.model()
    await plane.config()
    plane.fleet.gate.clear()
    await plane.endpoint()
    refused = await plane.fault(operation, EndpointName="endpoint", **request_of_it)
    assert refused == f'ValidationException: Cannot update in-progress endpoint "{ARN}:endpoint/endpoint".'


async def test_a_deleted_endpoint_is_gone_when_its_fleet_is(plane: Plane) -> None:
    await plane.in_service()
    plane.fleet.gate.clear()
    await plane.call("DeleteEndpoint", EndpointName="endpoint")
    await plane.status("Deleting")
    assert "Cannot update in-progress endpoint" in await plane.fault("DeleteEndpoint", EndpointName="endpoint")
    plane.fleet.gate.set()
    with pytest.raises(ValidationException, match="Could not find endpoint"):
        await plane.status("never")
    assert plane.fleet.running == {}


async def test_an_update_takes_over_when_the_new_fleet_is_healthy(plane: Plane) -> None:
    await plane.in_service()
    await plane.model("better")
    await plane.config("new", variant("A", "better", InitialInstanceCount=2), variant("B", InitialVariantWeight=3.0))
    plane.fleet.gate.clear()
    await plane.call("UpdateEndpoint", EndpointName="endpoint", EndpointConfigName="new")
    updating = await plane.described()
    assert updating["EndpointStatus"] == "Updating"
    assert updating["EndpointConfigName"] == "config"
    assert [one["VariantName"] for one in updating["ProductionVariants"]] == ["AllTraffic"]
    assert updating["PendingDeploymentSummary"]["EndpointConfigName"] == "new"
    plane.fleet.gate.set()
    updated = await plane.status("InService")
    assert updated["EndpointConfigName"] == "new"
    assert [one["CurrentWeight"] for one in updated["ProductionVariants"]] == [1.0, 3.0]
    assert [one.model_name for one in plane.fleet.running["endpoint"].variants] == ["better", "model"]


async def test_an_update_that_fails_rolls_back_with_the_reason(plane: Plane) -> None:
    described = await after_an_update_that_met(plane, DeploymentFailed("no capacity"))
    assert (described["EndpointConfigName"], described["FailureReason"]) == ("config", "no capacity")
    plane.fleet.failure = None
    await plane.call("UpdateEndpoint", EndpointName="endpoint", EndpointConfigName="new")
    assert "FailureReason" not in await plane.status("InService")


async def test_a_deployment_config_is_refused_by_name(plane: Plane) -> None:
    await plane.in_service()
    given = {"DeploymentConfig": {"BlueGreenUpdatePolicy": {}}, "EndpointConfigName": "config"}
    for operation, name in (("CreateEndpoint", "other"), ("UpdateEndpoint", "endpoint")):
        fault = await plane.fault(operation, EndpointName=name, **given)
        assert fault.startswith(f"UnsupportedOperation: DeploymentConfig of {operation} is not supported")


async def test_an_update_needs_the_configuration_that_is_in_use(plane: Plane) -> None:
    await plane.in_service()
    await plane.config("new")
    await plane.call("DeleteEndpointConfig", EndpointConfigName="config")
    refused = await plane.fault("UpdateEndpoint", EndpointName="endpoint", EndpointConfigName="new")
    assert refused == f'ValidationException: Could not find endpoint configuration "{ARN}:endpoint-config/config".'


async def test_an_update_may_keep_what_was_scaled(plane: Plane) -> None:
    await plane.in_service()
    desired = [{"VariantName": "AllTraffic", "DesiredWeight": 0.5, "DesiredInstanceCount": 4}]
    await plane.call("UpdateEndpointWeightsAndCapacities", EndpointName="endpoint", DesiredWeightsAndCapacities=desired)
    await plane.status("InService")
    await plane.config("new", variant(), variant("Other"))
    await plane.call(
        "UpdateEndpoint",
        EndpointName="endpoint",
        EndpointConfigName="new",
        RetainAllVariantProperties=True,
        ExcludeRetainedVariantProperties=[{"VariantPropertyType": "DesiredWeight"}],
    )
    described = await plane.status("InService")
    assert [(one["CurrentWeight"], one["CurrentInstanceCount"]) for one in described["ProductionVariants"]] == [
        (1.0, 4),
        (1.0, 1),
    ]


async def test_weights_and_capacities_change_without_a_new_fleet(plane: Plane) -> None:
    await plane.in_service()
    plane.fleet.gate.clear()
    await plane.call(
        "UpdateEndpointWeightsAndCapacities",
        EndpointName="endpoint",
        DesiredWeightsAndCapacities=[{"VariantName": "AllTraffic", "DesiredInstanceCount": 3}],
    )
    (changing,) = (await plane.described())["ProductionVariants"]
    assert (changing["CurrentInstanceCount"], changing["DesiredInstanceCount"]) == (1, 3)
    plane.fleet.gate.set()
    (changed,) = (await plane.status("InService"))["ProductionVariants"]
    assert (changed["CurrentInstanceCount"], changed["DesiredInstanceCount"]) == (3, 3)
    assert plane.fleet.rescaled == [{"AllTraffic": (1.0, 3)}]


@pytest.mark.parametrize(
    ("desired", "words"),
    [
        ({"VariantName": "No"}, 'Could not find variant "No" of endpoint'),
        ({"VariantName": "AllTraffic", "DesiredInstanceCount": 0}, "needs at least 1 instance"),
    ],
)
async def test_weights_and_capacities_that_cannot_be_are_refused(
    plane: Plane, desired: dict[str, Any], words: str
) -> None:
    await plane.in_service()
    refused = await plane.fault(
        "UpdateEndpointWeightsAndCapacities", EndpointName="endpoint", DesiredWeightsAndCapacities=[desired]
    )
    assert words in refused
    assert (await plane.described())["EndpointStatus"] == "InService"


async def test_an_endpoint_comes_back_with_what_it_was_deployed_with(plane: Plane) -> None:
    await plane.in_service()
    await plane.call("DeleteModel", ModelName="model")
    await plane.call("DeleteEndpointConfig", EndpointConfigName="config")
    before = plane.fleet.running.pop("endpoint")
    await plane.leave()
    plane.enter()
    await plane.endpoints.recover()
    assert plane.fleet.running == {"endpoint": before}
    assert (await plane.described())["EndpointStatus"] == "InService"


async def test_what_was_under_way_goes_on_after_a_restart(plane: Plane) -> None:
    await plane.in_service()
    await plane.config("new", variant(InitialInstanceCount=2))
    plane.fleet.gate.clear()
    await plane.endpoint("second")
    await plane.call("UpdateEndpoint", EndpointName="endpoint", EndpointConfigName="new")
    await asyncio.sleep(0)
    await plane.leave()
    plane.fleet.running.clear()
    plane.fleet.gate.set()
    plane.enter()
    await plane.endpoints.recover()
    assert (await plane.status("InService"))["EndpointConfigName"] == "new"
    await plane.status("InService", "second")
    assert plane.fleet.running["endpoint"].variants[0].instance_count == 2


async def test_an_endpoint_that_does_not_come_back_says_why(plane: Plane) -> None:
    await plane.in_service()
    await plane.leave()
    plane.fleet.failure = DeploymentFailed("the disk is full")
    plane.enter()
    await plane.endpoints.recover()
    assert (await plane.described())["FailureReason"] == "the disk is full"


async def test_an_endpoint_that_did_not_come_back_comes_back_at_the_next_start(plane: Plane) -> None:
    await plane.in_service()
    await plane.config("new")
    plane.fleet.failure = DeploymentFailed("no")
    await plane.endpoint("never-up", "new")
    await plane.status("Failed", "never-up")
    for failure, status in ((OSError("the disk is away"), "Failed"), (None, "InService")):
        await plane.leave()
        plane.fleet.running.clear()
        plane.fleet.failure = failure
        plane.enter()
        assert plane.endpoints.returning() == ["endpoint"]
        await plane.endpoints.recover()
        assert (await plane.status(status))["EndpointConfigName"] == "config"
    assert "FailureReason" not in await plane.described()
    await plane.call("UpdateEndpoint", EndpointName="endpoint", EndpointConfigName="new")
    await plane.status("InService")
    await plane.status("Failed", "never-up")


async def test_what_is_asked_of_an_endpoint_while_it_comes_back_is_done(plane: Plane) -> None:
    await plane.in_service()
    await plane.config("new")
    await plane.endpoint("unwanted")
    await plane.status("InService", "unwanted")
    await plane.leave()
    plane.fleet.running.clear()
    plane.enter()
    plane.fleet.gate.clear()
    plane.fleet.failure = DeploymentFailed("no")
    coming_back = asyncio.create_task(plane.endpoints.recover())
    await asyncio.sleep(0)
    await plane.call("DeleteEndpoint", EndpointName="unwanted")
    await plane.call("UpdateEndpoint", EndpointName="endpoint", EndpointConfigName="new")
    plane.fleet.gate.set()
    await coming_back
    assert (await plane.status("Failed"))["FailureReason"] == "no"
    with pytest.raises(ValidationException, match="Could not find endpoint"):
        await plane.status("never", "unwanted")


async def test_lists_are_sorted_filtered_and_paged(plane: Plane) -> None:
    for name in ("b-two", "a-one", "c-three", "A-four"):
        await plane.model(name)

    async def names(**request: Any) -> list[str]:
        return [one["ModelName"] for one in (await plane.call("ListModels", **request))["Models"]]

    assert await names(SortBy="Name", SortOrder="Ascending") == ["A-four", "a-one", "b-two", "c-three"]
    assert await names(SortBy="Name") == ["c-three", "b-two", "a-one", "A-four"]
    assert await names(NameContains="T", SortBy="Name") == ["c-three", "b-two"]
    assert await names(CreationTimeAfter=9e9) == []
    assert await names(CreationTimeBefore=9e9, MaxResults=1) == await names(MaxResults=1)
    first = await plane.call("ListModels", SortBy="Name", SortOrder="Ascending", MaxResults=2)
    assert set(first["Models"][0]) == {"ModelName", "ModelArn", "CreationTime"}
    await plane.call("DeleteModel", ModelName="a-one")
    second = await plane.call("ListModels", SortBy="Name", SortOrder="Ascending", NextToken=first["NextToken"])
    assert [one["ModelName"] for one in second["Models"]] == ["b-two", "c-three"]
    assert "NextToken" not in second
    for token in ("nonsense", first["NextToken"]):
        assert "repeat it without a token" in await plane.fault("ListModels", NextToken=token)


@pytest.mark.parametrize("sort_by", ["CreationTime", "Name"])
async def test_a_token_that_no_list_gave_is_refused(plane: Plane, sort_by: str) -> None:
    await plane.model("one")
    faulty = ([True, "m"], [None, "m"], [[9.9], "m"], [{}, "m"], [9, "m"], [9.9, 9], [9.9, None], ["m", 9.9], [9.9], [])
    texts = [json.dumps([sort_by, True, *place]) for place in faulty]
    texts += ["null", "1", '"abcd"', '{"a": 1, "b": 2, "c": 3, "d": 4}', "[[], {}, [], {}]", "[" * 6000, "\xff"]
    texts += [json.dumps([sort_by, 1, 9.9, "m"]), json.dumps([[sort_by], True, 9.9, "m"])]
    for text in texts:
        token = base64.urlsafe_b64encode(text.encode("latin-1")).decode()
        fault = await plane.fault("ListModels", SortBy=sort_by, NextToken=token)
        assert "repeat it without a token" in fault, text


async def test_endpoints_are_listed_by_status(plane: Plane) -> None:
    await plane.in_service()
    plane.fleet.failure = DeploymentFailed("no")
    await plane.endpoint("other")
    await plane.status("Failed", "other")
    for status, names in (("InService", ["endpoint"]), ("Failed", ["other"]), ("Updating", [])):
        listed = await plane.call("ListEndpoints", StatusEquals=status)
        assert [one["EndpointName"] for one in listed["Endpoints"]] == names
    sorted_ = await plane.call("ListEndpoints", SortBy="Status", SortOrder="Ascending")
    assert [one["EndpointStatus"] for one in sorted_["Endpoints"]] == ["Failed", "InService"]
    assert (await plane.call("ListEndpointConfigs"))["EndpointConfigs"][0]["EndpointConfigName"] == "config"


async def test_ten_are_on_a_page_unless_more_are_asked_for(plane: Plane) -> None:
    for number in range(12):
        await plane.model(f"model-{number}")
    page = await plane.call("ListModels")
    assert len(page["Models"]) == 10
    assert len((await plane.call("ListModels", NextToken=page["NextToken"]))["Models"]) == 2

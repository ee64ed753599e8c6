"""The platform as its callers see it: boto3 and the SageMaker SDK against the real process and the embedded server."""

from __future__ import annotations

import io
import json
import os
import socket
import struct
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import pytest
from botocore.exceptions import ClientError

from mme.platform.launch import Running

BUCKET = "packages-of-tests"
ROLE = "arn:aws:iam::000000000000:role/role"
ENDPOINT = "gateway"
WAIT = {"Delay": 0.1, "MaxAttempts": 900}

HANDLER = """
import time
from pathlib import Path

from djl_python import Input, Output


def handle(inputs):
    if inputs.is_empty():
        return None
    request = inputs.get_as_json()
    if request.get("fail"):
        raise ValueError(request["fail"])
    while "gate" in request and not Path(request["gate"]).exists():
        time.sleep(0.01)
    output = Output().add_as_json({"got": request, "type": inputs.get_property("Content-Type")})
    output.add_property("Content-Type", "application/json")
    return output
"""


def package() -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as archive:
        for name, text in (("model.py", HANDLER), ("serving.properties", "engine=Python\n")):
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    return made.getvalue()


@pytest.fixture(scope="module")
def sagemaker(client: Any) -> Any:
    return client("sagemaker")


@pytest.fixture(scope="module")
def runtime(client: Any) -> Any:
    return client("sagemaker-runtime")


@pytest.fixture(scope="module")
def model(client: Any, sagemaker: Any) -> str:
    """A multi-model model over two packages, one of them in a folder."""
    s3 = client("s3")
    s3.create_bucket(Bucket=BUCKET)
    for key in ("echo.tar.gz", "team-a/echo.tar.gz"):
        s3.put_object(Bucket=BUCKET, Key=f"models/{key}", Body=package())
    container = {"Image": "image", "Mode": "MultiModel", "ModelDataUrl": f"s3://{BUCKET}/models/"}
    sagemaker.create_model(ModelName="gateway", ExecutionRoleArn=ROLE, PrimaryContainer=container)
    return "gateway"


def variant(model: str, **members: Any) -> dict[str, Any]:
    given = {"VariantName": "AllTraffic", "ModelName": model, "InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
    return {**given, **members}


@pytest.fixture(scope="module")
def endpoint(sagemaker: Any, model: str) -> Iterator[str]:
    sagemaker.create_endpoint_config(EndpointConfigName=ENDPOINT, ProductionVariants=[variant(model)])
    sagemaker.create_endpoint(EndpointName=ENDPOINT, EndpointConfigName=ENDPOINT, Tags=[{"Key": "a", "Value": "b"}])
    sagemaker.get_waiter("endpoint_in_service").wait(EndpointName=ENDPOINT, WaiterConfig=WAIT)
    yield ENDPOINT
    sagemaker.delete_endpoint(EndpointName=ENDPOINT)
    sagemaker.get_waiter("endpoint_deleted").wait(EndpointName=ENDPOINT, WaiterConfig=WAIT)


def invoke(runtime: Any, endpoint: str, body: Any, target: str = "echo.tar.gz", **more: Any) -> Any:
    return runtime.invoke_endpoint(
        EndpointName=endpoint,
        TargetModel=target,
        Body=json.dumps(body),
        **{"ContentType": "application/json", **more},
    )


def refused(call: Any, **arguments: Any) -> ClientError:
    with pytest.raises(ClientError) as error:
        call(**arguments)
    return error.value


def test_a_call_reaches_its_model_and_its_answer_comes_back(runtime: Any, endpoint: str) -> None:
    for target in ("echo.tar.gz", "team-a/echo.tar.gz"):
        answer = invoke(runtime, endpoint, {"x": 1}, target, CustomAttributes="trace=1", Accept="application/json")
        assert json.loads(answer["Body"].read()) == {"got": {"x": 1}, "type": "application/json"}
        assert answer["ContentType"] == "application/json"
        assert answer["InvokedProductionVariant"] == "AllTraffic"
        assert answer["ResponseMetadata"]["HTTPHeaders"]["x-amzn-requestid"]


def test_calls_at_the_same_time_get_their_own_answers(runtime: Any, endpoint: str) -> None:
    def ask(number: int) -> Any:
        return json.loads(invoke(runtime, endpoint, {"number": number})["Body"].read())["got"]["number"]

    with ThreadPoolExecutor(8) as callers:
        assert list(callers.map(ask, range(64))) == list(range(64))


def test_a_models_own_failure_is_a_model_error_with_its_words(runtime: Any, endpoint: str) -> None:
    error = refused(invoke, runtime=runtime, endpoint=endpoint, body={"fail": "no such penguin"})
    assert type(error).__name__ == "ModelError"
    assert error.response["ResponseMetadata"]["HTTPStatusCode"] == 424
    assert error.response["OriginalStatusCode"] >= 400
    assert "no such penguin" in error.response["OriginalMessage"]
    assert error.response["LogStreamArn"].startswith("arn:aws:logs:us-east-1:000000000000:log-group:/aws/sagemaker/")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"EndpointName": "nobody", "TargetModel": "a"}, "Endpoint nobody of account 000000000000 not found."),
        ({"EndpointName": ENDPOINT}, "is missing a target model header"),
        ({"EndpointName": ENDPOINT, "TargetModel": "no.tar.gz"}, "models/no.tar.gz"),
        ({"EndpointName": ENDPOINT, "TargetModel": "x" * 1025}, "Member must have length less than or equal to 1024"),
        ({"EndpointName": ENDPOINT, "TargetModel": "a", "TargetVariant": "-"}, "'targetVariant' failed to satisfy"),
        (
            {"EndpointName": ENDPOINT, "TargetModel": "echo.tar.gz", "Body": b"x" * 6_291_457},
            "'body' failed to satisfy constraint: Member must have length less than or equal to 6291456",
        ),
    ],
)
def test_a_call_that_cannot_be_made_is_a_validation_error(
    runtime: Any, endpoint: str, arguments: dict[str, Any], words: str
) -> None:
    error = refused(runtime.invoke_endpoint, **{"Body": b"{}", **arguments})
    assert type(error).__name__ == "ValidationError"
    assert error.response["ResponseMetadata"]["HTTPStatusCode"] == 400
    assert words in error.response["Error"]["Message"]


def test_a_body_of_the_greatest_size_arrives(runtime: Any, endpoint: str) -> None:
    text = "x" * (6_291_456 - len('{"x": ""}'))
    assert len(json.loads(invoke(runtime, endpoint, {"x": text})["Body"].read())["got"]["x"]) == len(text)


def test_an_endpoint_of_a_single_model_answers_whole_and_in_a_stream(sagemaker: Any, runtime: Any, model: str) -> None:
    data = f"s3://{BUCKET}/models/echo.tar.gz"
    name = "gateway-single"
    container = {"Image": "image", "ModelDataUrl": data}
    sagemaker.create_model(ModelName=name, ExecutionRoleArn=ROLE, PrimaryContainer=container)
    sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant(name)])
    sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)
    sagemaker.get_waiter("endpoint_in_service").wait(EndpointName=name, WaiterConfig=WAIT)
    call = {"EndpointName": name, "Body": b'{"x": 1}', "ContentType": "application/json"}
    assert json.loads(runtime.invoke_endpoint(**call)["Body"].read())["got"] == {"x": 1}
    streamed = runtime.invoke_endpoint_with_response_stream(**call)
    pieces = [event["PayloadPart"]["Bytes"] for event in streamed["Body"]]
    assert json.loads(b"".join(pieces))["got"] == {"x": 1}
    error = refused(runtime.invoke_endpoint, TargetModel="echo.tar.gz", **call)
    assert "is not a multi-model endpoint and does not support target model header." in str(error)
    sagemaker.delete_endpoint(EndpointName=name)
    sagemaker.get_waiter("endpoint_deleted").wait(EndpointName=name, WaiterConfig=WAIT)


def test_a_caller_who_is_gone_before_a_stream_begins_leaves_nothing_in_use(
    platform: Running, sign: Any, endpoint: str, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    body = json.dumps({"gate": str(gate)}).encode()
    target = f"/endpoints/{endpoint}/invocations-response-stream"
    headers = {"content-type": "application/json", "x-amzn-sagemaker-target-model": "echo.tar.gz"}
    headers = sign(platform, "sagemaker", "POST", target, headers, body)
    address = urlsplit(platform.url)
    head = {"Host": address.netloc, "Content-Length": str(len(body)), **headers}
    lines = [f"POST {target} HTTP/1.1", *(f"{name}: {value}" for name, value in head.items()), "", ""]
    with socket.create_connection((address.hostname, address.port)) as caller:
        caller.sendall("\r\n".join(lines).encode() + body)
        wait_until(lambda: in_use(platform, endpoint) == (1, 1))
        caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, not an end
    gate.touch()
    wait_until(lambda: in_use(platform, endpoint) == (0, 0))


def in_use(platform: Running, endpoint: str) -> tuple[int, int]:
    """How many calls are at the endpoint's only instance, and how many at its models."""
    with urlopen(f"{platform.url}/_mme/status") as answer:
        [shown] = [one for one in json.load(answer)["endpoints"] if one["name"] == endpoint]
    instance = shown["variants"][0]["instances"][0]
    return instance["in_flight"], sum(model["in_use"] for model in instance["models"])


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


VARIANT = {"ServiceNamespace": "sagemaker", "ScalableDimension": "sagemaker:variant:DesiredInstanceCount"}
SCALED = {**VARIANT, "ResourceId": f"endpoint/{ENDPOINT}/variant/AllTraffic"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"ResourceId": ENDPOINT}, "is no variant; write endpoint/NAME/variant/NAME"),
        ({"ResourceId": f"endpoint/{ENDPOINT}"}, "is no variant; write endpoint/NAME/variant/NAME"),
        ({"ResourceId": f"endpoint/{ENDPOINT}/variant/"}, "is no variant; write endpoint/NAME/variant/NAME"),
        ({"ResourceId": f"endpoint/{ENDPOINT}/variant/A/b"}, "is no variant; write endpoint/NAME/variant/NAME"),
        ({"ResourceId": f"endpoint/{ENDPOINT}/variant/No"}, 'Could not find variant "No" of endpoint "arn:aws:'),
        ({"ResourceId": "endpoint/nobody/variant/AllTraffic"}, 'Could not find endpoint "arn:aws:'),
        ({"MinCapacity": 3}, "MinCapacity 3 with MaxCapacity 2 can't be"),
        ({"MinCapacity": -1}, "MinCapacity -1 with MaxCapacity 2 can't be"),
        ({"MinCapacity": None}, "a new scalable target needs both limits"),
        ({"MinCapacity": None, "MaxCapacity": None}, "a new scalable target needs both limits"),
    ],
)
def test_a_scalable_target_that_cannot_be_is_refused(
    client: Any, endpoint: str, given: dict[str, Any], words: str
) -> None:
    scaling = client("application-autoscaling")
    parameters = {**SCALED, "MinCapacity": 1, "MaxCapacity": 2, **given}
    sent = {name: value for name, value in parameters.items() if value is not None}
    error = refused(scaling.register_scalable_target, **sent)
    assert error.response["Error"]["Code"] == "ValidationException"
    assert words in error.response["Error"]["Message"]
    assert scaling.describe_scalable_targets(ServiceNamespace="sagemaker")["ScalableTargets"] == []


def test_a_scalable_target_keeps_the_limit_that_it_is_not_given_anew(client: Any, endpoint: str) -> None:
    scaling = client("application-autoscaling")
    scaling.register_scalable_target(**SCALED, MinCapacity=1, MaxCapacity=2)
    try:
        scaling.register_scalable_target(**SCALED, MaxCapacity=3)
        error = refused(scaling.register_scalable_target, **SCALED, MinCapacity=4)
        assert "MinCapacity 4 with MaxCapacity 3 can't be" in str(error)
        [registered] = scaling.describe_scalable_targets(ServiceNamespace="sagemaker")["ScalableTargets"]
        assert (registered["MinCapacity"], registered["MaxCapacity"]) == (1, 3)
    finally:
        scaling.deregister_scalable_target(**SCALED)


@pytest.mark.parametrize(
    ("target_value", "resource_id", "words"),
    [
        (0.0, SCALED["ResourceId"], "TargetValue 0.0 can't be met; give a number above 0"),
        (-1.0, SCALED["ResourceId"], "TargetValue -1.0 can't be met; give a number above 0"),
        (1e200, SCALED["ResourceId"], "TargetValue 1e+200 can't be met; give a number above 0 and below 2^360"),
        (1.0, f"endpoint/{ENDPOINT}", "is no variant; write endpoint/NAME/variant/NAME"),
    ],
)
def test_a_scaling_policy_that_cannot_be_is_refused(
    client: Any, endpoint: str, target_value: float, resource_id: str, words: str
) -> None:
    tracking = {
        "TargetValue": target_value,
        "PredefinedMetricSpecification": {"PredefinedMetricType": "SageMakerVariantInvocationsPerInstance"},
    }
    error = refused(
        client("application-autoscaling").put_scaling_policy,
        **VARIANT,
        ResourceId=resource_id,
        PolicyName="track",
        PolicyType="TargetTrackingScaling",
        TargetTrackingScalingPolicyConfiguration=tracking,
    )
    assert error.response["Error"]["Code"] == "ValidationException"
    assert words in error.response["Error"]["Message"]


def test_a_request_that_moto_fails_at_is_an_internal_failure_in_the_protocol(client: Any) -> None:
    error = refused(
        client("application-autoscaling").register_scalable_target,
        ServiceNamespace="ecs",
        ResourceId="service/without-a-cluster",
        ScalableDimension="ecs:service:DesiredCount",
    )
    assert error.response["Error"]["Code"] == "InternalFailure"
    assert error.response["ResponseMetadata"]["HTTPStatusCode"] == 500
    assert "moto, which plays application-autoscaling here, failed at this request" in str(error)


def test_an_asynchronous_call_is_refused_by_name(runtime: Any, endpoint: str) -> None:
    error = refused(runtime.invoke_endpoint_async, EndpointName=endpoint, InputLocation="s3://bucket/input")
    assert error.response["Error"]["Code"] == "UnsupportedOperation"
    assert "InvokeEndpointAsync is not supported" in str(error)


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("InferenceComponentName", "component"),
        ("TargetContainerHostname", "host"),
        ("EnableExplanations", "`true`"),
        ("SessionId", "NEW_SESSION"),
        ("PrefixAwareId", "prefix"),
    ],
)
def test_what_a_call_may_ask_of_aws_and_not_of_this_is_refused_by_name(runtime: Any, member: str, value: str) -> None:
    error = refused(runtime.invoke_endpoint, EndpointName=ENDPOINT, TargetModel="a", Body=b"{}", **{member: value})
    assert error.response["Error"]["Code"] == "UnsupportedOperation"
    assert f"{member} of InvokeEndpoint is not supported by the local platform" in str(error)


def test_the_status_shows_where_models_are(platform: Running, runtime: Any, endpoint: str) -> None:
    invoke(runtime, endpoint, {})
    with urlopen(f"{platform.url}/_mme/status") as answer:
        status = json.load(answer)
    assert (status["url"], status["pid"]) == (platform.url, platform.pid)
    assert [service["up"] for service in status["services"]] == [True, True]
    (shown,) = [one for one in status["endpoints"] if one["name"] == endpoint]
    assert shown["variants"][0]["name"] == "AllTraffic"
    assert "echo.tar.gz" in json.dumps(shown)


def test_an_endpoint_is_described_with_what_is_set_alone(sagemaker: Any, endpoint: str) -> None:
    described = sagemaker.describe_endpoint(EndpointName=endpoint)
    described.pop("ResponseMetadata")
    assert set(described) == {
        "EndpointName",
        "EndpointArn",
        "EndpointConfigName",
        "ProductionVariants",
        "EndpointStatus",
        "CreationTime",
        "LastModifiedTime",
    }
    assert sagemaker.list_tags(ResourceArn=described["EndpointArn"])["Tags"] == [{"Key": "a", "Value": "b"}]


def test_paginators_walk_through_all_pages(sagemaker: Any, model: str) -> None:
    names = [f"paged-{number:02}" for number in range(23)]
    for name in names:
        sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant(model)])
    pages = sagemaker.get_paginator("list_endpoint_configs").paginate(
        NameContains="paged", SortBy="Name", SortOrder="Ascending", PaginationConfig={"PageSize": 5}
    )
    assert [one["EndpointConfigName"] for page in pages for one in page["EndpointConfigs"]] == names
    for name in names:
        sagemaker.delete_endpoint_config(EndpointConfigName=name)


def test_an_update_loses_no_call(sagemaker: Any, runtime: Any, model: str, endpoint: str) -> None:
    sagemaker.create_endpoint_config(EndpointConfigName="gateway-new", ProductionVariants=[variant(model)])
    sagemaker.update_endpoint(EndpointName=endpoint, EndpointConfigName="gateway-new")
    while sagemaker.describe_endpoint(EndpointName=endpoint)["EndpointStatus"] == "Updating":
        assert json.loads(invoke(runtime, endpoint, {"x": 1})["Body"].read())["got"] == {"x": 1}
    assert sagemaker.describe_endpoint(EndpointName=endpoint)["EndpointConfigName"] == "gateway-new"
    assert json.loads(invoke(runtime, endpoint, {"x": 1})["Body"].read())["got"] == {"x": 1}


def test_several_faults_of_a_request_come_in_one_answer(client: Any) -> None:
    unchecked = client("sagemaker", parameter_validation=False)
    error = refused(unchecked.create_model, ModelName="a_b", PrimaryContainer={"Mode": "Many"})
    assert error.response["Error"]["Code"] == "ValidationException"
    assert error.response["Error"]["Message"].startswith("2 validation errors detected: Value 'a_b' at 'modelName'")


@pytest.mark.parametrize("operation", ["list_training_jobs", "list_inference_components", "list_domains"])
def test_what_aws_can_and_this_cannot_is_refused_by_name(sagemaker: Any, operation: str) -> None:
    error = refused(getattr(sagemaker, operation))
    assert error.response["Error"]["Code"] == "UnsupportedOperation"
    assert operation.replace("_", "") in str(error).lower()


@pytest.mark.parametrize(
    ("service", "operation", "parameters"),
    [
        ("service-quotas", "list_service_quotas", {"ServiceCode": "sagemaker"}),
        ("ecr", "batch_get_image", {"repositoryName": "djl-inference", "imageIds": [{"imageTag": "latest"}]}),
    ],
)
def test_a_service_that_only_an_account_has_is_refused_by_name(
    client: Any, service: str, operation: str, parameters: dict[str, Any]
) -> None:
    error = refused(getattr(client(service), operation), **parameters)
    assert error.response["Error"]["Code"] == "UnsupportedOperation"
    assert service.replace("-", "") in error.response["Error"]["Message"]


@pytest.mark.parametrize(
    ("target", "body", "status", "code"),
    [
        ("SageMaker.MakeCoffee", b"{}", 400, "UnknownOperationException"),
        ("Coffee.DescribeModel", b"{}", 400, "UnknownOperationException"),
        ("SageMaker.DescribeModel", b"{", 400, "SerializationException"),
        ("SageMaker.DescribeModel", b"[]", 400, "SerializationException"),
        ("SageMaker.DescribeModel", b"\xff", 400, "SerializationException"),
        ("SageMaker.DescribeModel", b"", 400, "ValidationException"),
        ("SageMaker.CreateTrainingJob", b"{}", 501, "UnsupportedOperation"),
    ],
)
def test_a_request_no_client_would_send_is_answered_in_the_protocol(
    platform: Running, sign: Any, target: str, body: bytes, status: int, code: str
) -> None:
    headers = {"X-Amz-Target": target, "Content-Type": "application/x-amz-json-1.1"}
    with pytest.raises(HTTPError) as refusal:
        urlopen(Request(platform.url, body, sign(platform, "sagemaker", "POST", "/", headers, body), method="POST"))
    with refusal.value as answer:
        assert answer.code == status
        assert answer.headers["Content-Type"] == "application/x-amz-json-1.1"
        assert answer.headers["x-amzn-RequestId"]
        assert json.load(answer)["__type"] == code


def test_other_services_answer_for_the_account_without_a_name(client: Any) -> None:
    identity = client("sts").get_caller_identity()
    assert identity["Account"] == "000000000000"
    role = client("iam").create_role(RoleName="gateway", AssumeRolePolicyDocument="{}")["Role"]
    assert role["Arn"] == "arn:aws:iam::000000000000:role/gateway"
    client("iam").attach_role_policy(RoleName="gateway", PolicyArn="arn:aws:iam::aws:policy/AmazonSageMakerFullAccess")
    session = client("sts").assume_role(RoleArn=role["Arn"], RoleSessionName="me")
    assert session["AssumedRoleUser"]["Arn"] == "arn:aws:sts::000000000000:assumed-role/gateway/me"
    client("cloudwatch").put_metric_data(Namespace="Tests", MetricData=[{"MetricName": "calls", "Value": 1}])
    assert [one["MetricName"] for one in client("cloudwatch").list_metrics(Namespace="Tests")["Metrics"]] == ["calls"]
    client("logs").create_log_group(logGroupName="/tests")
    groups = client("logs").describe_log_groups(logGroupNamePrefix="/tests")["logGroups"]
    assert [group["logGroupName"] for group in groups] == ["/tests"]


def test_the_sagemaker_sdk_lives_a_whole_life_of_an_endpoint(platform: Running, model: str) -> None:
    """In a process of its own: the SDK reads the environment once, and warns while it is imported."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")} | {
        "AWS_ENDPOINT_URL": platform.url,
        "AWS_ACCESS_KEY_ID": platform.access_key,
        "AWS_SECRET_ACCESS_KEY": platform.secret_key,
        "AWS_DEFAULT_REGION": platform.region,
        "AWS_REGION": platform.region,
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SDK], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "gone"


SDK = f'''
import json
from sagemaker.core.resources import Endpoint, EndpointConfig, Model
from sagemaker.core.shapes import ContainerDefinition, MultiModelConfig, ProductionVariant, Tag

name = "sdk-life"
model = Model.create(
    model_name=name,
    execution_role_arn="{ROLE}",
    primary_container=ContainerDefinition(
        image="image",
        mode="MultiModel",
        model_data_url="s3://{BUCKET}/models/",
        multi_model_config=MultiModelConfig(model_cache_setting="Enabled"),
        environment={{"A": "b"}},
    ),
)
variant = ProductionVariant(
    variant_name="AllTraffic",
    model_name=name,
    instance_type="ml.c5.xlarge",
    initial_instance_count=1,
    initial_variant_weight=1.0,
)
configs = [
    EndpointConfig.create(endpoint_config_name=f"{{name}}-{{number}}", production_variants=[variant])
    for number in range(2)
]
endpoint = Endpoint.create(
    endpoint_name=name, endpoint_config_name=f"{{name}}-0", tags=[Tag(key="k", value="v")]
)
endpoint.wait_for_status("InService", timeout=120, poll=0)
for config in ("sdk-life-0", "sdk-life-1"):
    answer = endpoint.invoke(
        body=b'{{"x": 1}}', content_type="application/json", accept="application/json", target_model="echo.tar.gz"
    )
    assert json.loads(answer.body.read())["got"] == {{"x": 1}}
    endpoint.refresh()
    assert endpoint.endpoint_config_name == config
    if config == "sdk-life-0":
        endpoint.endpoint_config_name = "sdk-life-1"
        endpoint.update()
        endpoint.wait_for_status("InService", timeout=120, poll=0)
assert name in [one.endpoint_name for one in Endpoint.get_all()]
assert name in [one.model_name for one in Model.get_all(name_contains="sdk")]
endpoint.delete()
endpoint.wait_for_delete(timeout=60, poll=0)
for resource in (*configs, model):
    resource.delete()
assert [one for one in EndpointConfig.get_all(name_contains="sdk-life")] == []
print("\\ngone")
'''

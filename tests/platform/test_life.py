"""The life of an endpoint as a recorded script: some seventy calls by boto3, and what AWS answers to each of them.

Classes, codes, statuses and texts are AWS's where a public report shows them; `docs/sagemaker.md` says which are ours.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import ClientError

BUCKET = "life"
ROLE = "arn:aws:iam::000000000000:role/role"
ARN = "arn:aws:sagemaker:us-east-1:000000000000"
LOG_GROUP = "/aws/sagemaker/Endpoints/life"
CONSOLE = f"https://us-east-1.console.aws.amazon.com/cloudwatch/home?region=us-east-1#logEventViewer:group={LOG_GROUP}"
NAME_PATTERN = r"[a-zA-Z0-9]([\-a-zA-Z0-9]*[a-zA-Z0-9])?"

HANDLER = """
from djl_python import Output


def handle(inputs):
    if inputs.is_empty():
        return None
    request = inputs.get_as_json()
    if "code" in request:
        return Output(request["code"]).add(request["text"])
    return Output().add(inputs.get_as_bytes()).add_property("Content-Type", "application/json")
"""
FAULTY = "raise ImportError('no such penguin')\n"


@dataclass(frozen=True)
class Call:
    """One call, and its answer: members that it has, or an error's class, status and text."""

    operation: str
    parameters: dict[str, Any]
    answer: dict[str, Any]
    error: str = ""
    status: int = 200
    text: str = ""  # a regular expression that the whole message matches


def ok(operation: str, answer: dict[str, Any] | None = None, /, **parameters: Any) -> Call:
    return Call(operation, parameters, answer or {})


def error(operation: str, kind: str, status: int, text: str, /, **parameters: Any) -> Call:
    return Call(operation, parameters, {}, kind, status, re.escape(text).replace("<any>", ".*"))


def refused(operation: str, text: str, /, **parameters: Any) -> Call:
    """The control plane's usual answer to what can't be."""
    return error(operation, "ValidationException", 400, text, **parameters)


def invoke(answer: dict[str, Any] | None = None, /, **parameters: Any) -> Call:
    return ok("invoke_endpoint", answer, **{"EndpointName": "life", "Body": b'{"x": 1}', **parameters})


def not_invoked(kind: str, status: int, text: str, /, **parameters: Any) -> Call:
    given = {"EndpointName": "life", "TargetModel": "echo.tar.gz", "Body": b'{"x": 1}', **parameters}
    return error(
        "invoke_endpoint", kind, status, text, **{name: value for name, value in given.items() if value is not None}
    )


def model_error(code: int, side: str, text: str) -> Call:
    message = (
        f'Received {side} error ({code}) from model with message "{text}". '
        f"See {CONSOLE} in account 000000000000 for more information."
    )
    return not_invoked("ModelError", 424, message, Body=json.dumps({"code": code, "text": text}).encode())


def waited(waiter: str) -> Call:
    return ok(f"wait:{waiter}", EndpointName="life")


def container(**more: Any) -> dict[str, Any]:
    return {"Image": "image", "Mode": "MultiModel", "ModelDataUrl": f"s3://{BUCKET}/models/", **more}


def variants(name: str = "AllTraffic", model: str = "life", **more: Any) -> list[dict[str, Any]]:
    given = {"VariantName": name, "ModelName": model, "InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
    return [given | more]


IN_PROGRESS = f'Cannot update in-progress endpoint "{ARN}:endpoint/life".'
TAGS = {"Tags": [{"Key": "team", "Value": "a"}]}
DISABLED = {"ModelCacheSetting": "Disabled"}

SCRIPT = [
    # Nothing is there.
    refused("describe_model", f'Could not find model "{ARN}:model/life".', ModelName="life"),
    refused("delete_model", f'Could not find model "{ARN}:model/life".', ModelName="life"),
    refused(
        "describe_endpoint_config",
        f'Could not find endpoint configuration "{ARN}:endpoint-config/life".',
        EndpointConfigName="life",
    ),
    refused(
        "delete_endpoint_config",
        f'Could not find endpoint configuration "{ARN}:endpoint-config/life".',
        EndpointConfigName="life",
    ),
    refused("describe_endpoint", f'Could not find endpoint "{ARN}:endpoint/life".', EndpointName="life"),
    refused("delete_endpoint", f'Could not find endpoint "{ARN}:endpoint/life".', EndpointName="life"),
    refused("list_tags", f'Could not find endpoint "{ARN}:endpoint/life".', ResourceArn=f"{ARN}:endpoint/life"),
    not_invoked("ValidationError", 400, "Endpoint life of account 000000000000 not found."),
    # The model.
    refused(
        "create_model",
        "1 validation error detected: Value 'my_model' at 'modelName' failed to satisfy constraint: "
        f"Member must satisfy regular expression pattern: {NAME_PATTERN}",
        ModelName="my_model",
        PrimaryContainer=container(),
    ),
    refused(
        "create_model",
        "2 validation errors detected: Value null at 'modelName' failed to satisfy constraint: Member must not be null;"
        " Value 'Many' at 'primaryContainer.mode' failed to satisfy constraint: "
        "Member must satisfy enum value set: [SingleModel, MultiModel]",
        PrimaryContainer=container(Mode="Many"),
    ),
    error(
        "create_model",
        "UnsupportedOperation",
        501,
        "ModelPackageName of ContainerDefinition is not supported by the local platform; leave it out, or use AWS",
        ModelName="life",
        PrimaryContainer=container(ModelPackageName="package"),
    ),
    ok(
        "create_model",
        {"ModelArn": f"{ARN}:model/life"},
        ModelName="life",
        ExecutionRoleArn=ROLE,
        PrimaryContainer=container(Environment={"A": "b"}),
        **TAGS,
    ),
    refused(
        "create_model",
        f'Cannot create already existing model "{ARN}:model/life".',
        ModelName="Life",
        PrimaryContainer=container(),
    ),
    ok("create_model", ModelName="life-uncached", PrimaryContainer=container(MultiModelConfig=DISABLED)),
    ok(
        "create_model",
        ModelName="life-single",
        PrimaryContainer={"Image": "image", "ModelDataUrl": f"s3://{BUCKET}/no.tar.gz"},
    ),
    ok(
        "describe_model",
        {"ModelName": "life", "ExecutionRoleArn": ROLE, "PrimaryContainer": container(Environment={"A": "b"})},
        ModelName="life",
    ),
    ok("list_tags", TAGS, ResourceArn=f"{ARN}:model/life"),
    ok("add_tags", ResourceArn=f"{ARN}:model/life", Tags=[{"Key": "team", "Value": "b"}]),
    ok("list_tags", {"Tags": [{"Key": "team", "Value": "b"}]}, ResourceArn=f"{ARN}:model/life"),
    ok("delete_tags", ResourceArn=f"{ARN}:model/life", TagKeys=["team"]),
    ok("list_tags", {"Tags": []}, ResourceArn=f"{ARN}:model/life"),
    # The endpoint configuration.
    refused(
        "create_endpoint_config",
        f'Could not find model "{ARN}:model/nobody".',
        EndpointConfigName="life",
        ProductionVariants=variants(model="nobody"),
    ),
    error(
        "create_endpoint_config",
        "UnsupportedOperation",
        501,
        "DataCaptureConfig of CreateEndpointConfig is not supported by the local platform; leave it out, or use AWS",
        EndpointConfigName="life",
        ProductionVariants=variants(),
        DataCaptureConfig={
            "InitialSamplingPercentage": 1,
            "DestinationS3Uri": f"s3://{BUCKET}/calls",
            "CaptureOptions": [{"CaptureMode": "Input"}],
        },
    ),
    ok(
        "create_endpoint_config",
        {"EndpointConfigArn": f"{ARN}:endpoint-config/life"},
        EndpointConfigName="life",
        ProductionVariants=variants(),
    ),
    refused(
        "create_endpoint_config",
        f'Cannot create already existing endpoint configuration "{ARN}:endpoint-config/life".',
        EndpointConfigName="life",
        ProductionVariants=variants(),
    ),
    ok(
        "create_endpoint_config",
        EndpointConfigName="life-uncached",
        ProductionVariants=variants(model="life-uncached"),
    ),
    ok("create_endpoint_config", EndpointConfigName="life-single", ProductionVariants=variants(model="life-single")),
    ok("describe_endpoint_config", {"EndpointConfigName": "life"}, EndpointConfigName="life"),
    # The endpoint comes up.
    refused(
        "create_endpoint",
        f'Could not find endpoint configuration "{ARN}:endpoint-config/nobody".',
        EndpointName="life",
        EndpointConfigName="nobody",
    ),
    ok("create_endpoint", {"EndpointArn": f"{ARN}:endpoint/life"}, EndpointName="life", EndpointConfigName="life"),
    refused(
        "create_endpoint",
        f'Cannot create already existing endpoint "{ARN}:endpoint/life".',
        EndpointName="LIFE",
        EndpointConfigName="life",
    ),
    ok("describe_endpoint", {"EndpointStatus": "Creating", "EndpointConfigName": "life"}, EndpointName="life"),
    not_invoked("ValidationError", 400, "Endpoint life of account 000000000000 not found."),
    refused("update_endpoint", IN_PROGRESS, EndpointName="life", EndpointConfigName="life"),
    refused(
        "update_endpoint_weights_and_capacities",
        IN_PROGRESS,
        EndpointName="life",
        DesiredWeightsAndCapacities=[{"VariantName": "AllTraffic", "DesiredWeight": 1}],
    ),
    refused("delete_endpoint", IN_PROGRESS, EndpointName="life"),
    waited("endpoint_in_service"),
    ok("describe_endpoint", {"EndpointStatus": "InService"}, EndpointName="life"),
    # Calls.
    invoke(
        {"Body": b'{"x": 1}', "ContentType": "application/json", "InvokedProductionVariant": "AllTraffic"},
        TargetModel="echo.tar.gz",
    ),
    invoke({"Body": b'{"x": 1}'}, TargetModel="team-a/echo.tar.gz", TargetVariant="AllTraffic", InferenceId="one"),
    not_invoked(
        "ValidationError",
        400,
        "Request <any> is missing a target model header, which endpoint life needs to know the model to invoke.",
        TargetModel=None,
    ),
    not_invoked(
        "ValidationError",
        400,
        f"Failed to download model data(bucket: {BUCKET}, key: models/no.tar.gz). Please ensure that there is an "
        "object located at the URL and that the role passed to CreateModel has permissions to download the model.",
        TargetModel="no.tar.gz",
    ),
    not_invoked(
        "ValidationError",
        400,
        f"Failed to extract model data archive from URL s3://{BUCKET}/models/text.tar.gz. Please ensure that the "
        "object located at the URL is a valid tar.gz archive: <any>",
        TargetModel="text.tar.gz",
    ),
    not_invoked(
        "ValidationError",
        400,
        "Variant B was not found in endpoint life; there are: AllTraffic.",
        TargetVariant="B",
    ),
    not_invoked(
        "ValidationError",
        400,
        f"1 validation error detected: Value '{'x' * 1025}' at 'targetModel' failed to satisfy constraint: "
        "Member must have length less than or equal to 1024",
        TargetModel="x" * 1025,
    ),
    not_invoked(
        "ValidationError",
        400,
        "1 validation error detected: Value at 'body' failed to satisfy constraint: "
        "Member must have length less than or equal to 6291456",
        Body=b"x" * 6_291_457,
    ),
    model_error(400, "client", "a feature is missing"),
    model_error(500, "server", "no such penguin"),
    not_invoked(
        "ModelError",
        424,
        f'Received server error (500) from model with message "<any>". '
        f"See {CONSOLE} in account 000000000000 for more information.",
        TargetModel="faulty.tar.gz",
    ),
    error(
        "invoke_endpoint_with_response_stream",
        "ValidationError",
        400,
        "Request <any> is missing a target model header, which endpoint life needs to know the model to invoke.",
        EndpointName="life",
        Body=b"{}",
    ),
    error(
        "invoke_endpoint_async",
        "UnsupportedOperation",
        501,
        "InvokeEndpointAsync is not supported by the local platform; use InvokeEndpoint",
        EndpointName="life",
        InputLocation=f"s3://{BUCKET}/calls",
    ),
    # Changes.
    refused(
        "update_endpoint_weights_and_capacities",
        f'Could not find variant "B" of endpoint "{ARN}:endpoint/life"; there are: AllTraffic',
        EndpointName="life",
        DesiredWeightsAndCapacities=[{"VariantName": "B", "DesiredWeight": 1}],
    ),
    ok(
        "update_endpoint_weights_and_capacities",
        {"EndpointArn": f"{ARN}:endpoint/life"},
        EndpointName="life",
        DesiredWeightsAndCapacities=[{"VariantName": "AllTraffic", "DesiredWeight": 2}],
    ),
    waited("endpoint_in_service"),
    ok("update_endpoint", EndpointName="life", EndpointConfigName="life-uncached"),
    ok("describe_endpoint", {"EndpointStatus": "Updating", "EndpointConfigName": "life"}, EndpointName="life"),
    invoke({"Body": b'{"x": 1}'}, TargetModel="echo.tar.gz"),
    refused("delete_endpoint", IN_PROGRESS, EndpointName="life"),
    waited("endpoint_in_service"),
    ok("describe_endpoint", {"EndpointConfigName": "life-uncached"}, EndpointName="life"),
    ok("update_endpoint", EndpointName="life", EndpointConfigName="life-single"),
    waited("endpoint_in_service"),
    ok(
        "describe_endpoint",
        {
            "EndpointStatus": "InService",
            "EndpointConfigName": "life-uncached",
            "FailureReason": "Failed to download model data for production variant AllTraffic: "
            f"no object 'no.tar.gz' in bucket '{BUCKET}'",
        },
        EndpointName="life",
    ),
    invoke({"Body": b'{"x": 1}'}, TargetModel="echo.tar.gz"),
    # The end.
    ok("delete_model", ModelName="life-uncached"),
    ok("delete_endpoint_config", EndpointConfigName="life-uncached"),
    refused(
        "update_endpoint",
        f'Could not find endpoint configuration "{ARN}:endpoint-config/life-uncached".',
        EndpointName="life",
        EndpointConfigName="life",
    ),
    invoke({"Body": b'{"x": 1}'}, TargetModel="echo.tar.gz"),
    ok("delete_endpoint", EndpointName="life"),
    waited("endpoint_deleted"),
    not_invoked("ValidationError", 400, "Endpoint life of account 000000000000 not found."),
    ok("create_endpoint", EndpointName="life", EndpointConfigName="life-single"),
    ok("wait:failed", EndpointName="life"),
    ok(
        "describe_endpoint",
        {
            "EndpointStatus": "Failed",
            "FailureReason": "Failed to download model data for production variant AllTraffic: "
            f"no object 'no.tar.gz' in bucket '{BUCKET}'",
        },
        EndpointName="life",
    ),
    refused(
        "update_endpoint",
        f'Cannot update failed endpoint "{ARN}:endpoint/life"; delete it',
        EndpointName="life",
        EndpointConfigName="life",
    ),
    ok("delete_endpoint", EndpointName="life"),
    waited("endpoint_deleted"),
    ok("list_endpoints", {"Endpoints": []}, NameContains="life"),
    *(ok("delete_endpoint_config", EndpointConfigName=name) for name in ("life", "life-single")),
    *(ok("delete_model", ModelName=name) for name in ("life", "life-single")),
    error(
        "create_training_job",
        "UnsupportedOperation",
        501,
        "CreateTrainingJob is not supported by the local platform; use AWS for it",
    ),
]


def package(handler: str) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as archive:
        for name, text in (("model.py", handler), ("serving.properties", "engine=Python\n")):
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    return made.getvalue()


def difference(call: Call, clients: dict[str, Any]) -> str | None:
    """What is other than recorded, None if nothing is."""
    service = "sagemaker-runtime" if call.operation.startswith("invoke") else "sagemaker"
    if call.operation.startswith("wait:"):
        wait(clients["sagemaker"], call.operation.removeprefix("wait:"))
        return None
    operation: Callable[..., Any] = getattr(clients[service], call.operation)
    try:
        answer = operation(**call.parameters)
    except ClientError as raised:
        told, status = raised.response["Error"], raised.response["ResponseMetadata"]["HTTPStatusCode"]
        is_right = (told["Code"], status) == (call.error, call.status) and re.fullmatch(
            call.text, told["Message"], re.DOTALL
        )
        return None if is_right else f"{told['Code']} {status}: {told['Message']}"
    if call.error:
        return f"no {call.error}"
    if "Body" in call.answer:
        answer["Body"] = answer["Body"].read()
    shown = {name: answer.get(name) for name in call.answer}
    return None if shown == call.answer else f"{shown}"


def wait(sagemaker: Any, waiter: str) -> None:
    delays = {"Delay": 0.1, "MaxAttempts": 900}
    if waiter != "failed":
        sagemaker.get_waiter(waiter).wait(EndpointName="life", WaiterConfig=delays)
        return
    while sagemaker.describe_endpoint(EndpointName="life")["EndpointStatus"] == "Creating":
        continue


def test_the_life_of_an_endpoint_is_as_it_was_recorded(client: Any) -> None:
    s3 = client("s3")
    s3.create_bucket(Bucket=BUCKET)
    for key, handler in (("echo", HANDLER), ("team-a/echo", HANDLER), ("faulty", FAULTY)):
        s3.put_object(Bucket=BUCKET, Key=f"models/{key}.tar.gz", Body=package(handler))
    s3.put_object(Bucket=BUCKET, Key="models/text.tar.gz", Body=b"no archive")
    clients = {name: client(name, parameter_validation=False) for name in ("sagemaker", "sagemaker-runtime")}
    assert len(SCRIPT) > 60
    others = [
        f"{number}. {call.operation}: {found}\n    recorded: {call.error} {call.status} {call.text or call.answer}"
        for number, call in enumerate(SCRIPT, 1)
        if (found := difference(call, clients)) is not None
    ]
    assert not others, "\n".join(others)

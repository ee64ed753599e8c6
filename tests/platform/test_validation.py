from __future__ import annotations

from typing import Any

import pytest

from mme.platform import validation
from mme.platform.errors import AwsError, SerializationException

MODEL = {"ModelName": "m", "PrimaryContainer": {"Image": "i"}}


def fault(operation: str, request: Any, service: str = "sagemaker") -> str:
    model = validation.operation(service, operation)
    assert model is not None
    try:
        validation.check(model.input_shape, request)
    except AwsError as error:
        return error.message
    return ""


@pytest.mark.parametrize(
    ("request_of_a_model", "constraint"),
    [
        ({}, "Value null at 'modelName' failed to satisfy constraint: Member must not be null"),
        ({"ModelName": None}, "Value null at 'modelName' failed to satisfy constraint: Member must not be null"),
        (
            {"ModelName": "-a"},
            r"Value '-a' at 'modelName' failed to satisfy constraint: Member must satisfy regular expression pattern: "
            r"[a-zA-Z0-9]([\-a-zA-Z0-9]*[a-zA-Z0-9])?",
        ),
        (
            {"ModelName": "m", "PrimaryContainer": {"Mode": "Many"}},
            "Value 'Many' at 'primaryContainer.mode' failed to satisfy constraint: "
            "Member must satisfy enum value set: [SingleModel, MultiModel]",
        ),
        (
            {"ModelName": "m", "Tags": [{"Key": "k", "Value": "v"}, {"Key": "", "Value": "v"}]},
            "Value '' at 'tags.2.member.key' failed to satisfy constraint: "
            "Member must have length greater than or equal to 1",
        ),
        (
            {"ModelName": "m", "PrimaryContainer": {"Environment": {"a": "x" * 20_000}}},
            f"Value '{'x' * 20_000}' at 'primaryContainer.environment.a.member' failed to satisfy constraint: "
            "Member must have length less than or equal to ",
        ),
    ],
)
def test_a_fault_is_named_in_aws_words(request_of_a_model: Any, constraint: str) -> None:
    assert fault("CreateModel", request_of_a_model).startswith(f"1 validation error detected: {constraint}")


def test_a_name_that_is_too_long_breaks_its_length_alone() -> None:
    assert fault("DescribeModel", {"ModelName": "m" * 64}) == (
        f"1 validation error detected: Value '{'m' * 64}' at 'modelName' failed to satisfy constraint: "
        "Member must have length less than or equal to 63"
    )


def test_several_faults_come_in_one_answer() -> None:
    said = fault("ListModels", {"SortBy": "Size", "MaxResults": 101})
    assert said.startswith("2 validation errors detected: Value 'Size' at 'sortBy'")
    assert said.endswith(
        "; Value '101' at 'maxResults' failed to satisfy constraint: Member must have value less than or equal to 100"
    )


def test_a_caller_who_sends_thousands_of_faults_reads_ten() -> None:
    tags = [{"Key": "", "Value": "v"}] * 50
    assert fault("CreateModel", {**MODEL, "Tags": tags}).startswith("10 validation errors detected: ")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"ModelName": 5}, "'5' at 'modelName' is no string"),
        ({"ModelName": "m", "PrimaryContainer": []}, "'[]' at 'primaryContainer' is no structure"),
        ({"ModelName": "m", "EnableNetworkIsolation": "yes"}, "'yes' at 'enableNetworkIsolation' is no boolean"),
        ([], "'[]' at 'request' is no structure"),
    ],
)
def test_a_value_of_another_type_is_refused_before_its_constraints(wrong: Any, said: str) -> None:
    model = validation.operation("sagemaker", "CreateModel")
    assert model is not None
    with pytest.raises(SerializationException) as refused:
        validation.check(model.input_shape, wrong)
    assert refused.value.message.startswith(said)


@pytest.mark.parametrize("value", ["team-a/model.tar.gz", "a", "ä b" * 3, "x" * 1024])
def test_a_java_pattern_means_what_it_means_in_java(value: str) -> None:
    request = {"EndpointName": "e", "Body": "", "TargetModel": value}
    said = fault("InvokeEndpoint", request, "sagemaker-runtime")
    assert said == "" if value.isascii() else r"pattern: \A\S[\p{Print}]*\z" in said


def test_tags_may_be_written_in_any_script() -> None:
    assert fault("CreateModel", {**MODEL, "Tags": [{"Key": "größe 大", "Value": "9 @ x=y"}]}) == ""
    assert "tags.1.member.key" in fault("CreateModel", {**MODEL, "Tags": [{"Key": "a;b", "Value": ""}]})


def patterns(shape: Any, seen: set[str]) -> set[str]:
    if shape.name in seen:
        return set()
    seen.add(shape.name)
    inner = {"structure": lambda: shape.members.values(), "list": lambda: [shape.member], "map": lambda: [shape.value]}
    found = {shape.metadata["pattern"]} if "pattern" in shape.metadata else set()
    return found.union(*(patterns(one, seen) for one in inner.get(shape.type_name, list)()))


@pytest.mark.parametrize(
    ("service", "name"),
    [
        ("sagemaker", "CreateModel"),
        ("sagemaker", "CreateEndpointConfig"),
        ("sagemaker", "CreateEndpoint"),
        ("sagemaker", "UpdateEndpoint"),
        ("sagemaker", "AddTags"),
        ("sagemaker-runtime", "InvokeEndpoint"),
        ("sagemaker-runtime", "InvokeEndpointWithResponseStream"),
    ],
)
def test_every_pattern_of_an_operation_can_be_compiled(service: str, name: str) -> None:
    model = validation.operation(service, name)
    assert model is not None
    found = patterns(model.input_shape, set())
    assert found
    for pattern in found:
        validation._compiled(pattern)


def test_an_operation_that_aws_does_not_have_has_no_model() -> None:
    assert validation.operation("sagemaker", "MakeCoffee") is None

"""A template's resources, created through boto3 as CloudFormation would: in the order of their references."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import boto3
from cfnlint.decode import decode

SCALED = {"ServiceNamespace": "sagemaker", "ScalableDimension": "sagemaker:variant:DesiredInstanceCount"}
POLL = {"Delay": 1, "MaxAttempts": 60}


@dataclass(frozen=True)
class Made:
    """A resource that is there: what `Ref` and `GetAtt` give of it, and how it is deleted."""

    ref: str
    attributes: dict[str, str]
    delete: Callable[[], object]


@dataclass
class Stack:
    """One template, its parameters, and what was made of it."""

    file: Path
    parameters: dict[str, Any]
    made: dict[str, Made] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.template, faults = decode(str(self.file))
        assert not faults, faults
        given = {name: told.get("Default") for name, told in self.template["Parameters"].items()} | self.parameters
        pseudo = {"Region": "us-east-1", "AccountId": "000000000000", "Partition": "aws", "URLSuffix": "amazonaws.com"}
        self.values = given | {f"AWS::{name}": value for name, value in pseudo.items()}

    def create(self) -> None:
        resources = self.template["Resources"]
        needs = {name: self._needs(resource) & resources.keys() for name, resource in resources.items()}
        for name in TopologicalSorter(needs).static_order():
            resource = resources[name]
            make = MAKE[resource["Type"]]
            self.made[name] = make(name, self.resolve(resource["Properties"]))

    def delete(self) -> None:
        for name in reversed(self.made):
            self.made[name].delete()

    def outputs(self) -> dict[str, Any]:
        return {name: self.resolve(output["Value"]) for name, output in self.template["Outputs"].items()}

    def resolve(self, value: Any, local: dict[str, Any] | None = None) -> Any:
        """A value without functions: Ref, GetAtt, Sub, Select and Split are what the templates use."""
        if isinstance(value, list):
            return [self.resolve(one, local) for one in value]
        if not isinstance(value, dict):
            return value
        [(function, argument), *others] = value.items()
        if others or not (function == "Ref" or function.startswith("Fn::")):
            return {key: self.resolve(one, local) for key, one in value.items()}
        if function == "Ref":
            return self._named(argument, local)
        if function == "Fn::GetAtt":
            resource, attribute = argument if isinstance(argument, list) else argument.split(".")
            return self.made[resource].attributes[attribute]
        if function == "Fn::Sub":
            text, names = argument if isinstance(argument, list) else (argument, {})
            values = {name: self.resolve(one) for name, one in names.items()}
            return re.sub(r"\$\{([^}]+)\}", lambda found: str(self._named(found[1], values)), text)
        if function == "Fn::Select":
            return self.resolve(argument[1])[int(argument[0])]
        if function == "Fn::Split":
            return self.resolve(argument[1]).split(argument[0])
        raise ValueError(f"{function} is not resolved here")

    def _named(self, name: str, local: dict[str, Any] | None) -> Any:
        for values in (local or {}, self.values):
            if name in values:
                return values[name]
        resource, _, attribute = name.partition(".")
        return self.made[resource].attributes[attribute] if attribute else self.made[resource].ref

    def _needs(self, value: Any) -> set[str]:
        """The names that a resource speaks of."""
        return set(self._names(value))

    def _names(self, value: Any) -> Iterator[str]:
        if isinstance(value, list):
            for one in value:
                yield from self._names(one)
        if isinstance(value, dict):
            for key, one in value.items():
                if key in ("Ref", "Fn::GetAtt"):
                    yield (one if isinstance(one, list) else one.split("."))[0]
                elif key == "Fn::Sub":
                    text = one[0] if isinstance(one, list) else one
                    yield from (name.partition(".")[0] for name in re.findall(r"\$\{([^}]+)\}", text))
                yield from self._names(one)


def _bucket(name: str, given: dict[str, Any]) -> Made:
    s3, bucket = boto3.client("s3"), given["BucketName"]
    s3.create_bucket(Bucket=bucket)
    s3.put_public_access_block(Bucket=bucket, PublicAccessBlockConfiguration=given["PublicAccessBlockConfiguration"])
    return Made(bucket, {"Arn": f"arn:aws:s3:::{bucket}"}, lambda: s3.delete_bucket(Bucket=bucket))


def _bucket_policy(name: str, given: dict[str, Any]) -> Made:
    s3, bucket = boto3.client("s3"), given["Bucket"]
    s3.put_bucket_policy(Bucket=bucket, Policy=json.dumps(given["PolicyDocument"]))
    return Made(bucket, {}, lambda: s3.delete_bucket_policy(Bucket=bucket))


def _role(name: str, given: dict[str, Any]) -> Made:
    iam, role = boto3.client("iam"), f"stack-{name}"
    trust = json.dumps(given["AssumeRolePolicyDocument"])
    arn = iam.create_role(RoleName=role, AssumeRolePolicyDocument=trust)["Role"]["Arn"]
    for policy in given["Policies"]:
        document = json.dumps(policy["PolicyDocument"])
        iam.put_role_policy(RoleName=role, PolicyName=policy["PolicyName"], PolicyDocument=document)

    def delete() -> None:
        for policy in given["Policies"]:
            iam.delete_role_policy(RoleName=role, PolicyName=policy["PolicyName"])
        iam.delete_role(RoleName=role)

    return Made(role, {"Arn": arn}, delete)


def _managed_policy(name: str, given: dict[str, Any]) -> Made:
    iam = boto3.client("iam")
    document = json.dumps(given["PolicyDocument"])
    arn = iam.create_policy(PolicyName=f"stack-{name}", PolicyDocument=document)["Policy"]["Arn"]
    return Made(arn, {}, lambda: iam.delete_policy(PolicyArn=arn))


def _model(name: str, given: dict[str, Any]) -> Made:
    sagemaker, model = boto3.client("sagemaker"), f"stack-{name}"
    arn = sagemaker.create_model(ModelName=model, **given)["ModelArn"]
    return Made(arn, {"ModelName": model}, lambda: sagemaker.delete_model(ModelName=model))


def _endpoint_config(name: str, given: dict[str, Any]) -> Made:
    sagemaker, config = boto3.client("sagemaker"), f"stack-{name}"
    arn = sagemaker.create_endpoint_config(EndpointConfigName=config, **given)["EndpointConfigArn"]
    return Made(
        arn, {"EndpointConfigName": config}, lambda: sagemaker.delete_endpoint_config(EndpointConfigName=config)
    )


def _endpoint(name: str, given: dict[str, Any]) -> Made:
    sagemaker, endpoint = boto3.client("sagemaker"), given["EndpointName"]
    arn = sagemaker.create_endpoint(**given)["EndpointArn"]
    sagemaker.get_waiter("endpoint_in_service").wait(EndpointName=endpoint, WaiterConfig=POLL)

    def delete() -> None:
        sagemaker.delete_endpoint(EndpointName=endpoint)
        sagemaker.get_waiter("endpoint_deleted").wait(EndpointName=endpoint, WaiterConfig=POLL)

    return Made(arn, {"EndpointName": endpoint}, delete)


def _target(name: str, given: dict[str, Any]) -> Made:
    scaling, resource = boto3.client("application-autoscaling"), given["ResourceId"]
    scaling.register_scalable_target(**given)
    return Made(resource, {}, lambda: scaling.deregister_scalable_target(ResourceId=resource, **SCALED))


def _scaling_policy(name: str, given: dict[str, Any]) -> Made:
    scaling, policy = boto3.client("application-autoscaling"), dict(given)
    of = {"PolicyName": policy["PolicyName"], "ResourceId": policy.pop("ScalingTargetId"), **SCALED}
    scaling.put_scaling_policy(**policy | of)
    return Made(policy["PolicyName"], {}, lambda: scaling.delete_scaling_policy(**of))


def _topic(name: str, given: dict[str, Any]) -> Made:
    sns = boto3.client("sns")
    arn = sns.create_topic(Name=f"stack-{name}")["TopicArn"]
    for one in given["Subscription"]:
        sns.subscribe(TopicArn=arn, **one)
    return Made(arn, {}, lambda: sns.delete_topic(TopicArn=arn))


def _alarm(name: str, given: dict[str, Any]) -> Made:
    cloudwatch, alarm = boto3.client("cloudwatch"), f"stack-{name}"
    cloudwatch.put_metric_alarm(AlarmName=alarm, **given)
    return Made(alarm, {}, lambda: cloudwatch.delete_alarms(AlarmNames=[alarm]))


def _budget(name: str, given: dict[str, Any]) -> Made:
    budgets, told = boto3.client("budgets"), given["Budget"]
    limit = {**told["BudgetLimit"], "Amount": str(told["BudgetLimit"]["Amount"])}
    of = {"AccountId": "000000000000"}
    subscribers = given["NotificationsWithSubscribers"]
    budgets.create_budget(**of, Budget=told | {"BudgetLimit": limit}, NotificationsWithSubscribers=subscribers)
    return Made(told["BudgetName"], {}, lambda: budgets.delete_budget(**of, BudgetName=told["BudgetName"]))


MAKE: dict[str, Callable[[str, dict[str, Any]], Made]] = {
    "AWS::S3::Bucket": _bucket,
    "AWS::S3::BucketPolicy": _bucket_policy,
    "AWS::IAM::Role": _role,
    "AWS::IAM::ManagedPolicy": _managed_policy,
    "AWS::SageMaker::Model": _model,
    "AWS::SageMaker::EndpointConfig": _endpoint_config,
    "AWS::SageMaker::Endpoint": _endpoint,
    "AWS::ApplicationAutoScaling::ScalableTarget": _target,
    "AWS::ApplicationAutoScaling::ScalingPolicy": _scaling_policy,
    "AWS::SNS::Topic": _topic,
    "AWS::CloudWatch::Alarm": _alarm,
    "AWS::Budgets::Budget": _budget,
}

"""What a project left behind is found by its tags, and goes, however often the deleting is broken off."""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import boto3
import pytest
from recording import Sent, recording

from mme import cleaning, cli, session
from mme.cleaning import CleaningError
from mme.settings import Settings

VARIANT = {"ServiceNamespace": "sagemaker", "ScalableDimension": cleaning.SCALED}


def create(settings: Settings, name: str, tags: list[dict[str, str]]) -> None:
    """A model, its configuration and an alarm, with these tags."""
    sagemaker = boto3.client("sagemaker")
    container = {"Image": "image", "Mode": "MultiModel", "ModelDataUrl": f"s3://{session.bucket(settings)}/p/"}
    role = "arn:aws:iam::000000000000:role/any"
    sagemaker.create_model(ModelName=name, ExecutionRoleArn=role, PrimaryContainer=container, Tags=tags)
    variant = {"VariantName": "AllTraffic", "ModelName": name, "InstanceType": "ml.m5.large"}
    variants = [{**variant, "InitialInstanceCount": 1}]
    sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=variants, Tags=tags)
    boto3.client("cloudwatch").put_metric_alarm(
        AlarmName=name,
        Namespace="AWS/SageMaker",
        MetricName="InvocationModelErrors",
        Statistic="Sum",
        Period=60,
        EvaluationPeriods=1,
        Threshold=1,
        ComparisonOperator="GreaterThanThreshold",
        Tags=tags,
    )


def create_all(settings: Settings) -> None:
    """One thing of each kind at least, as notebooks, template and users make them."""
    name, tags = settings.endpoint_name, session.tags(settings)
    create(settings, name, tags)
    sagemaker, s3 = boto3.client("sagemaker"), boto3.client("s3")
    sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name, Tags=tags)
    sagemaker.get_waiter("endpoint_in_service").wait(EndpointName=name, WaiterConfig={"Delay": 1})
    target = {**VARIANT, "ResourceId": f"endpoint/{name}/variant/AllTraffic"}
    scaling = boto3.client("application-autoscaling")
    scaling.register_scalable_target(**target, MinCapacity=1, MaxCapacity=2)
    scaling.put_scaling_policy(
        **target,
        PolicyName="calls",
        PolicyType="TargetTrackingScaling",
        TargetTrackingScalingPolicyConfiguration={
            "TargetValue": 1000,
            "PredefinedMetricSpecification": {"PredefinedMetricType": "SageMakerVariantInvocationsPerInstance"},
        },
    )
    for number in (1, 2):
        key = f"{settings.prefix}/{number}.tar.gz"
        s3.put_object(Bucket=session.bucket(settings), Key=key, Body=b"a package")
    iam, role = boto3.client("iam"), f"{settings.project}-role"
    iam.create_role(RoleName=role, AssumeRolePolicyDocument=json.dumps(session.TRUST_SAGEMAKER), Tags=tags)
    policy = session.reading_packages(settings, session.bucket(settings))
    iam.put_role_policy(RoleName=role, PolicyName="one", PolicyDocument=json.dumps(policy))
    iam.attach_role_policy(RoleName=role, PolicyArn="arn:aws:iam::aws:policy/AmazonSageMakerFullAccess")
    logs, group = boto3.client("logs"), f"/aws/sagemaker/Endpoints/{name}"
    with contextlib.suppress(logs.exceptions.ResourceAlreadyExistsException):
        logs.create_log_group(logGroupName=group)
    while not logs.filter_log_events(logGroupName=group)["events"]:  # which, if they came later, would make it anew
        time.sleep(0.1)


def stop_after(writes: int) -> Callable[[Sent], None]:
    """Breaks off, as Ctrl-C does, at the write after so many."""
    left = [writes]

    def before(sent: Sent) -> None:
        if not sent.is_read:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt

    return before


def test_all_kinds_are_found_and_deleting_that_breaks_off_anywhere_goes_on(aws):
    settings = aws(yes=True)
    create_all(settings)
    with recording() as sent:
        things = cleaning.find(settings)
    assert [thing.kind for thing in things] == [
        *(
            "scaling",
            "endpoint",
            "endpoint-config",
            "model",
            "alarm",
            "log group",
            "object",
            "object",
            "bucket",
            "role",
        ),
    ]
    assert all(call.is_read for call in sent)

    for writes in (1, 4, 6):  # amid the scaling, between two kinds, amid the role's policies
        with pytest.raises(KeyboardInterrupt), recording(stop_after(writes)):
            list(cleaning.delete(settings, things))
        things = cleaning.find(settings)
    assert [thing.kind for thing in things] == ["role"]
    assert [str(thing) for thing in cleaning.delete(settings, things)] == [f"role {settings.project}-role"]
    assert cleaning.find(settings) == []
    assert not boto3.client("application-autoscaling").describe_scaling_policies(ServiceNamespace="sagemaker")[
        "ScalingPolicies"
    ]


def test_what_was_deleted_meanwhile_is_no_error(aws):
    settings = aws(yes=True)
    create(settings, settings.endpoint_name, session.tags(settings))
    things = cleaning.find(settings)
    assert len(list(cleaning.delete(settings, things))) == len(things) == 4
    assert len(list(cleaning.delete(settings, things))) == 4


def test_others_things_with_names_like_ours_stay(aws):
    settings = aws(yes=True)
    theirs = f"{settings.project}-theirs"
    create(settings, theirs, [{"Key": "mme:project", "Value": "another"}])
    ours = [tag for tag in session.tags(settings) if tag["Key"] != "mme:expiry"]
    create(settings, f"{settings.project}-stack", [*ours, {"Key": "aws:cloudformation:stack-name", "Value": "x"}])
    boto3.client("s3").put_object(Bucket=session.bucket(settings), Key="elsewhere/theirs", Body=b"")
    things = cleaning.find(settings)
    assert [thing.kind for thing in things] == ["bucket"]
    with pytest.raises(CleaningError, match="bucket .* can't be deleted: .*BucketNotEmpty"):
        list(cleaning.delete(settings, things))


def test_only_what_is_past_its_date_has_expired(aws):
    settings = aws(yes=True)
    create(settings, f"{settings.project}-new", session.tags(settings))
    yesterday = f"{datetime.now(UTC) - timedelta(days=1):%Y-%m-%dT%H:%MZ}"
    for name, expiry in (("old", yesterday), ("unreadable", "tomorrow")):
        tags = [{"Key": "mme:project", "Value": settings.project}, {"Key": "mme:expiry", "Value": expiry}]
        create(settings, f"{settings.project}-{name}", tags)
    expired = {thing.name for thing in cleaning.find(settings) if thing.is_expired}
    assert expired == {f"{settings.project}-old"}


def test_a_bucket_waits_for_the_last_object_in_it(aws):
    settings = aws(yes=True, keep_days=1)
    name = session.bucket(settings)
    boto3.client("s3").put_object(Bucket=name, Key=f"{settings.prefix}/a.tar.gz", Body=b"")
    stale = [{"Key": "mme:project", "Value": settings.project}, {"Key": "mme:expiry", "Value": "2020-01-01T00:00Z"}]
    boto3.client("s3").put_bucket_tagging(Bucket=name, Tagging={"TagSet": stale})
    assert [thing.is_expired for thing in cleaning.find(settings)] == [False, False]


def test_an_account_that_cannot_be_looked_at_is_told(aws, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(CleaningError, match="can't be looked at: .*credentials.*docs/aws.md"):
        cleaning.find(aws())


@pytest.mark.parametrize("backend", ["aws", "local"])
def test_clean_lists_asks_and_deletes_on_both_backends(aws, home, backend, monkeypatch, capsys):
    settings = aws(yes=True)
    create(settings, settings.endpoint_name, session.tags(settings))
    for name, value in (("BACKEND", "local"), ("PROJECT", settings.project), ("HOME", str(home))):
        monkeypatch.setenv(f"MME_{name}", value)

    def clean(*arguments: str, answer: str = "") -> str:
        monkeypatch.setattr(sys, "argv", ["mme", "clean", "--backend", backend, *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
        with contextlib.suppress(SystemExit):
            cli.main()
        return capsys.readouterr().out

    assert re.search(r"account 000000000000, region us-east-1: 0 to delete", clean("--expired"))
    said = clean(answer="n\n")
    assert "4 to delete" in said and f"model {settings.endpoint_name}, until" in said and "deleted" not in said
    assert len(re.findall(r"\bdeleted ", clean(answer="y\n"))) == 4
    assert "0 to delete" in clean("--yes")

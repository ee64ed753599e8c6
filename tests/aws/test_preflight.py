"""What is checked before a run, what each fault says, and that looking is all it does."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import boto3
import pytest
import typer
from recording import recording

from mme import preflight, session
from mme.settings import ROOT, Settings

SPEC = importlib.util.spec_from_file_location("notebooks_tool", ROOT / "tools" / "notebooks.py")
assert SPEC is not None and SPEC.loader is not None
tool = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(tool)
Answer = dict[str, Any]


class Account:
    """Service Quotas and ECR of an account: answers each operation with what it was told."""

    def __init__(self) -> None:
        self.quotas: Answer = {"Quotas": [{"QuotaName": "ml.m5.large for endpoint usage", "Value": 2.0}]}
        self.images: Answer = {"images": [{"imageId": {"imageTag": "0.36.0-cpu-full"}}], "failures": []}
        self.denies = False

    def answer(self, operation: str) -> tuple[int, Answer]:
        if self.denies:
            return 400, {"__type": "AccessDeniedException", "message": f"not authorized to perform: {operation}"}
        return 200, {"ListServiceQuotas": self.quotas, "BatchGetImage": self.images}[operation]


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> Iterator[Account]:
    account = Account()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            status, answer = account.answer(self.headers["x-amz-target"].rpartition(".")[2])
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        for service in ("SERVICE_QUOTAS", "ECR"):
            monkeypatch.setenv(f"AWS_ENDPOINT_URL_{service}", f"http://127.0.0.1:{server.server_port}")
        yield account
        server.shutdown()
        thread.join()


@pytest.fixture
def role(aws: Callable[..., Settings]) -> str:
    """The user's execution role, as docs/aws.md makes it."""
    return a_role(aws())


def a_role(settings: Settings, trust: Any = session.TRUST_SAGEMAKER, reads: bool = True) -> str:
    iam = boto3.client("iam")
    name = f"{settings.project}-mine"
    arn: str = iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(trust))["Role"]["Arn"]
    if reads:
        bucket = session.bucket_name(settings, boto3.Session())
        policy = json.dumps(session.reading_packages(settings, bucket))
        iam.put_role_policy(RoleName=name, PolicyName="reads", PolicyDocument=policy)
    return arn


def found(settings: Settings) -> dict[str, preflight.Check]:
    return {check.what: check for check in preflight.checks(settings)}


def test_an_account_that_is_ready_gets_no_cure_and_is_only_read(aws, role, account):
    with recording() as sent:
        checks = preflight.checks(aws(role=role))
    assert [check.what for check in checks] == [
        *("identity", "region", "role", "packages", "bucket", "quota", "image", "egress"),
    ]
    assert {(check.outcome, check.cure) for check in checks} == {("ok", "")}
    assert sent and all(call.is_read for call in sent)


def test_the_local_platform_says_what_only_an_account_has(home):
    checks = found(Settings(home=home))
    assert [what for what, check in checks.items() if check.outcome == "not here"] == ["quota", "image"]
    assert {check.outcome for check in checks.values()} == {"ok", "not here"}


def test_without_credentials_only_the_way_to_sign_in_is_told(aws, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    [check] = preflight.checks(aws())
    assert (check.what, check.outcome) == ("identity", "wrong") and "aws sso login" in check.cure


def test_a_region_without_sagemaker_and_images_is_told(aws, role, account):
    checks = found(aws(role=role, region="us-east-9"))
    assert checks["region"].outcome == checks["image"].outcome == "wrong"
    assert "us-east-1" in checks["region"].cure and "no DJL images in us-east-9" in checks["image"].found


def test_a_role_that_is_not_named_or_not_there_is_told(aws, account):
    assert "set role in config.ipynb" in found(aws())["role"].found
    check = found(aws(role="arn:aws:iam::000000000000:role/nobodys"))["role"]
    assert check.outcome == "wrong" and "there is no role" in check.found and "docs/aws.md" in check.cure


def test_a_role_that_sagemaker_may_not_assume_or_that_reads_nothing_is_told(aws, account):
    settings = aws()
    trust = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}}]}
    arn = a_role(settings, trust, reads=False)
    checks = found(aws(role=arn))
    assert checks["role"].outcome == "wrong" and "does not trust sagemaker.amazonaws.com" in checks["role"].found
    assert checks["packages"].outcome == "wrong" and "no s3:ListBucket and no s3:GetObject" in checks["packages"].found


def test_awss_own_policy_reads_our_bucket_but_not_one_without_sagemaker_in_its_name(aws, account):
    arn = a_role(aws(), reads=False)
    policy = "arn:aws:iam::aws:policy/AmazonSageMakerFullAccess"
    boto3.client("iam").attach_role_policy(RoleName=arn.rpartition("/")[2], PolicyArn=policy)
    assert found(aws(role=arn))["packages"].outcome == "ok"
    check = found(aws(role=arn, bucket="packages-of-mine"))["packages"]
    assert check.outcome == "not known" and "s3:GetObject" in check.found and "condition" in check.found


def test_a_boundary_limits_what_the_role_may_read(aws, account, role):
    iam = boto3.client("iam")
    document = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:List*", "Resource": "*"}]}
    limit = iam.create_policy(PolicyName=f"{aws().project}-limit", PolicyDocument=json.dumps(document))["Policy"]["Arn"]
    iam.put_role_permissions_boundary(RoleName=role.rpartition("/")[2], PermissionsBoundary=limit)
    assert found(aws(role=role))["packages"].found.startswith("the role has no s3:GetObject for")


def test_a_bucket_is_there_or_will_be_or_is_elsewhere(aws, role, account):
    assert "will be created" in found(aws(role=role))["bucket"].found
    s3, name = boto3.client("s3"), f"{aws().project}-of-mine"
    s3.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    check = found(aws(role=role, bucket=name))["bucket"]
    assert check.outcome == "wrong" and "is in eu-west-1" in check.found and "`region`" in check.cure
    assert found(aws(role=role, bucket=name, region="eu-west-1"))["bucket"].outcome == "ok"


@pytest.mark.parametrize(
    ("quotas", "told"),
    [
        ([{"QuotaName": "ml.m5.large for endpoint usage", "Value": 0.0}], "0 ml.m5.large for endpoint usage, and"),
        ([{"QuotaName": "ml.m5.large for training job usage", "Value": 9.0}], "no quota"),
    ],
)
def test_a_quota_that_is_too_small_is_told_with_the_way_to_a_larger_one(aws, role, account, quotas, told):
    account.quotas = {"Quotas": quotas}
    check = found(aws(role=role))["quota"]
    assert check.outcome == "wrong" and check.found.startswith(told) and "Service Quotas" in check.cure


def test_an_image_that_is_not_in_the_region_is_told(aws, role, account):
    account.images = {"images": [], "failures": [{"failureCode": "ImageNotFound"}]}
    check = found(aws(role=role))["image"]
    assert check.outcome == "wrong" and "0.36.0-cpu-full" in check.found


def test_what_may_not_be_looked_at_is_not_known_and_the_permission_is_named(aws, role, account):
    account.denies = True
    checks = found(aws(role=role))
    assert checks["quota"].outcome == checks["image"].outcome == "not known"
    assert "ListServiceQuotas" in checks["quota"].cure and "BatchGetImage" in checks["image"].cure


def test_egress_is_the_users_word(aws, role, account):
    assert "bring all that they import" in found(aws(role=role))["egress"].found
    assert "requirements.txt" in found(aws(role=role, container_egress=True))["egress"].found


def test_the_plan_names_what_is_created_and_the_price_is_the_users(aws):
    plan = preflight.plan(aws(instance_count=2))
    assert [planned.what for planned in plan][-2:] == ["endpoint", "log group"]
    assert plan[-2].billed == "2 x the price of ml.m5.large per hour"
    assert preflight.cost(aws(instance_count=2, instance_price_per_hour=0.25)) == "2 x 0.25 = 0.5 per hour"


@pytest.mark.parametrize("answer", ["n\n", ""])
def test_a_run_on_aws_shows_what_it_creates_and_ends_without_a_yes(aws, role, account, monkeypatch, capsys, answer):
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))
    with recording() as sent, pytest.raises(typer.Abort):
        tool.ask(aws(role=role))
    assert "ok  bucket: " in (said := capsys.readouterr().out) and "1 x the price of ml.m5.large per hour" in said
    assert "MME_YES" not in os.environ and all(call.is_read for call in sent)


def test_a_run_on_aws_goes_on_after_a_yes(aws, role, account, monkeypatch):
    settings = aws(role=role)
    monkeypatch.setenv("MME_YES", "")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    tool.ask(settings)
    assert os.environ["MME_YES"] == "1"


def test_a_run_on_aws_does_not_ask_when_something_is_wrong(aws, account, capsys):
    with pytest.raises(typer.Exit):
        tool.ask(aws(role="arn:aws:iam::000000000000:role/nobodys"))
    assert "to do: name another as `role`" in capsys.readouterr().out

"""Deploy and invoke, as typed: what is created, where a package goes, what AWS is asked, how mistakes are told."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import boto3
import pytest
from recording import recording

from mme import deploy, new, packages, session
from mme.deploy import DeployError, Plan
from mme.settings import Settings

NAMES = ["mme:expiry", "mme:owner", "mme:project", "mme:run"]


@pytest.fixture
def settings(aws: Callable[..., Settings], home: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A project of this test's own, on the local backend, that is the command line's too."""
    settings = aws(backend="local")
    for name, value in (("PROJECT", settings.project), ("HOME", str(home)), ("IAM", "enforce")):
        monkeypatch.setenv(f"MME_{name}", value)
    return settings


@pytest.fixture
def echo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that answers what it is sent, in the current folder."""
    monkeypatch.chdir(tmp_path)
    new.create(tmp_path / "echo")
    packages.build(tmp_path / "echo", tmp_path / "echo.tar.gz")
    return Path("echo.tar.gz")


def said(text: str) -> str:
    """What was said, without the frame that errors of usage have."""
    return " ".join(text.replace("│", " ").split())


def test_a_package_comes_onto_an_endpoint_that_is_made_for_it_and_answers(mme, settings, echo):
    code, out, err = mme("deploy", echo)
    assert code == 0, err
    assert f'EndpointName="{settings.endpoint_name}", TargetModel="echo.tar.gz"' in out
    assert err == "next: mme invoke echo --json '{\"inputs\": [1, 2]}'\n"
    sagemaker = boto3.client("sagemaker")
    arn = sagemaker.describe_endpoint(EndpointName=settings.endpoint_name)["EndpointArn"]
    assert sorted(tag["Key"] for tag in sagemaker.list_tags(ResourceArn=arn)["Tags"]) == NAMES

    code, out, err = mme("invoke", "echo", "--json", '{"inputs": [1, 2]}')
    assert code == 0 and json.loads(out) == {"echo": {"inputs": [1, 2]}}
    assert err.endswith("next: mme open\n")

    code, out, _ = mme("deploy", "echo", "--json")  # the same once more
    done = json.loads(out)
    assert (done["created"], done["replaced"]) == ([], False)
    packages.write_properties(Path("echo"), {"maxWorkers": 2})
    assert "echo has changed since echo.tar.gz was packed" in mme("deploy", "echo")[2]
    mme("pack", "echo")
    code, out, err = mme("deploy", "echo")
    assert code == 0 and "goes on answering until it is unloaded" in err and "mme deploy echo --as echo-2" in err
    assert 'TargetModel="echo-2.tar.gz"' in mme("deploy", "echo", "--as", "echo-2")[1]

    for arguments, status, message in (
        (("ecko", "--json", "1"), 1, "has no package ecko.tar.gz; did you mean echo"),
        (("echo", "--json", "1", "--endpoint", f"{settings.endpoint_name}s"), 1, f"mean {settings.endpoint_name}?"),
        (("echo", "--json", "{a}"), 2, "Invalid value for --json: {a} is no JSON"),
        (("echo",), 2, "give one of --json, --csv and --file"),
        (("echo", "--csv", "none.csv"), 2, "none.csv can't be read: No such file"),
        (("echo", "--file", "echo/model.py"), 1, "echo.tar.gz answered 400: "),
    ):
        code, out, err = mme("invoke", *arguments)
        assert (code, out) == (status, "") and message in said(err), err


def test_another_endpoint_has_packages_of_its_own_and_is_named_after_the_project(mme, settings, echo):
    code, _, err = mme("deploy", echo, "--endpoint", "shop")
    name = f"{settings.project}-shop"
    assert code == 1 and f"--endpoint {name}, or another MME_PROJECT" in err
    code, out, err = mme("deploy", echo, "--endpoint", name, "--json")
    assert json.loads(out)["uri"].endswith(f"/{settings.prefix}/{name}/echo.tar.gz")
    assert err.endswith(f"--endpoint {name}\n")
    Path("rows.csv").write_text('"a"\n')
    assert json.loads(mme("invoke", "echo", "--file", "rows.csv", "--endpoint", name)[1]) == {"echo": "a"}


def test_an_endpoint_of_one_model_takes_no_package(mme, settings, echo):
    mme("deploy", echo)
    sagemaker, name = boto3.client("sagemaker"), f"{settings.project}-single"
    container = {"Image": session.image_uri(settings), "ModelDataUrl": "s3://any/one.tar.gz"}
    role = session.role_arn(settings)
    sagemaker.create_model(ModelName=name, ExecutionRoleArn=role, PrimaryContainer=container)
    code, _, err = mme("deploy", echo, "--endpoint", name)
    assert code == 1 and f"endpoint {name} serves a single model; take another one by --endpoint" in err


def test_an_unknown_package_is_told_with_the_near_one(mme, settings, echo):
    code, out, err = mme("deploy", "eco")
    assert (code, out) == (2, "") and "neither a folder eco nor eco.tar.gz; did you mean echo" in said(err)
    code, out, err = mme("deploy", "eco.tar.gz")
    assert (code, out) == (2, "") and "there is no package eco.tar.gz; did you mean echo.tar.gz" in said(err)
    Path("broken.tar.gz").write_bytes(b"no archive")
    code, out, err = mme("deploy", "broken.tar.gz")
    assert (code, out) == (1, "") and err.startswith("error: ")


def test_aws_is_asked_before_anything_is_written_there(mme, settings, echo, monkeypatch):
    mme("deploy", echo)  # makes the role, locally
    monkeypatch.setenv("MME_ROLE", f"arn:aws:iam::000000000000:role/{settings.project}-role")
    name = f"{settings.project}-on-aws"
    typed = ("deploy", echo, "--backend", "aws", "--endpoint", name)
    monkeypatch.setattr(sys, "stdin", io.StringIO("n\n"))
    with recording() as sent:
        code, out, err = mme(*typed)
    assert (code, out.strip()) == (1, "") and sent and all(call.is_read for call in sent), err
    assert "on AWS, in us-east-1, this uploads echo.tar.gz as s3://" in err
    assert f"creates model, endpoint configuration, endpoint {name}: 1 ml.m5.large, billed until" in err
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    code, _, err = mme(*typed)
    assert code == 0 and err.endswith(f"--endpoint {name} --backend aws\n"), err
    code, out, err = mme("invoke", "echo", "--json", "[1]", *typed[2:])
    assert json.loads(out) == {"echo": [1]} and err.endswith("next: mme clean --backend aws\n")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    code, _, err = mme(*typed)
    way_out = "Unable to locate credentials; docs/aws.md, steps 1 and 2, say how\n"
    assert code == 1 and err.endswith(f"the endpoint can't be looked at: {way_out}")
    code, _, err = mme("logs", "--backend", "aws")
    assert code == 1 and err == f"error: the logs can't be read: {way_out}"


@pytest.mark.parametrize("backend", ["local", "aws"])
def test_an_endpoint_that_failed_is_told_with_commands_that_act_where_it_is(mme, aws, echo, monkeypatch, backend):
    settings = aws(backend=backend, yes=True, region="us-east-1")
    for name, value in (("PROJECT", settings.project), ("HOME", str(settings.home)), ("IAM", "enforce")):
        monkeypatch.setenv(f"MME_{name}", value)
    boto, name = session.connect(settings), f"{settings.project}-failing"
    bucket, sagemaker = session.bucket(settings), boto.client("sagemaker")
    trust = json.dumps(session.TRUST_SAGEMAKER)
    role = boto.client("iam").create_role(RoleName=name, AssumeRolePolicyDocument=trust)["Role"]["Arn"]
    sagemaker.create_model(
        ModelName=name,
        ExecutionRoleArn=role,
        PrimaryContainer={"Image": session.image_uri(settings), "ModelDataUrl": f"s3://{bucket}/none.tar.gz"},
    )
    variant = {"VariantName": "a", "ModelName": name, "InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
    sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant])
    options = " --backend aws" if backend == "aws" else ""
    plan = Plan(echo, name, "echo.tar.gz", f"s3://{bucket}/{settings.prefix}/", ("endpoint",), replaces=False)
    with pytest.raises(DeployError, match=f"`mme logs {name}{options}` shows .*, and `mme clean{options}` removes it"):
        deploy.carry_out(settings, plan)
    code, _, err = mme("deploy", echo, "--endpoint", name, "--backend", backend)
    assert code == 1 and f"endpoint {name} is Failed: " in err and f"remove it with `mme clean{options}`, or" in err
    code, out, err = mme("clean", "--yes", "--backend", backend)
    assert code == 0 and f"deleted endpoint {name}" in out, err


def test_a_package_whose_examples_cannot_be_read_is_deployed_all_the_same(mme, settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = new.create(tmp_path / "echo")
    (made.folder / "examples.json").write_text("[")
    code, out, err = mme("deploy", "echo")
    assert code == 0 and 'TargetModel="echo.tar.gz"' in out
    assert "no example of a call is shown: examples.json in echo.tar.gz is not a list of examples" in said(err)
    assert err.endswith("next: mme invoke echo --json '{\"inputs\": [[1, 2]]}'\n")


def test_a_package_is_deployed_from_within_its_folder_as_from_beside_it(mme, settings, tmp_path, monkeypatch):
    made = new.create(tmp_path / "echo")
    monkeypatch.chdir(made.folder)
    code, out, err = mme("deploy", ".")
    assert code == 0 and 'TargetModel="echo.tar.gz"' in out and "packed ../echo as ../echo.tar.gz" in err
    code, out, err = mme("deploy", "")
    assert (code, out) == (2, "") and "the package's name is empty; give its archive or its folder" in said(err)

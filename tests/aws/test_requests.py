"""The notebooks send the same on both backends, and on AWS nothing but reads before the user's yes."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest
from recording import Sent, recording

from mme import cleaning, packages, session
from mme.packages import Example
from mme.settings import ROOT, Settings

RUNNER = Path(__file__).with_name("run_notebooks.py")
SLUGS = ("linear-regression", "extra-trees-classifier", "multi-output-classifier", "setfit-classifier")
ALL = [path.name for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))]
USERS_POLICY = re.search(r"<!-- the user's policy -->\n```json\n(.*?)```", (ROOT / "docs" / "aws.md").read_text(), re.S)
# Where IAM calls an operation otherwise, or asks for nothing.
ACTIONS = {
    "sts:GetCallerIdentity": None,
    "s3:HeadBucket": "s3:ListBucket",
    "s3:ListObjectsV2": "s3:ListBucket",
    "s3:HeadObject": "s3:GetObject",
    "s3:DeleteObjects": "s3:DeleteObject",
    "s3:PutPublicAccessBlock": "s3:PutBucketPublicAccessBlock",
    "s3:CopyObject": "s3:PutObject",
    "s3:CreateMultipartUpload": "s3:PutObject",
    "s3:UploadPart": "s3:PutObject",
    "s3:CompleteMultipartUpload": "s3:PutObject",
}
SERVICES = {"service-quotas": "servicequotas", "sagemaker-runtime": "sagemaker"}
EXPIRY = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}Z")
HANDLER = """
from djl_python import Output


def handle(inputs):
    if inputs.is_empty():
        return None
    return Output().add_as_json({"predictions": [2 * row[0] + 1 for row in inputs.get_as_json()["inputs"]]})
"""

Run = Callable[..., tuple[list[Sent], str]]


@pytest.fixture
def run(tmp_path: Path, home: Path, role: str) -> Run:
    """Run notebooks on a backend: what they sent, and their error if one failed."""

    def run_them(backend: str, *notebooks: str, **settings: str) -> tuple[list[Sent], str]:
        given = {"HOME": str(home), "BACKEND": backend, "ROLE": role, "RUN": "one", "CONTAINER_EGRESS": "1", **settings}
        environment = os.environ | {f"MME_{name}": value for name, value in given.items()}
        environment |= {
            "MPLBACKEND": "agg",
            "PYTHONHASHSEED": "0",
            "PYTHONPATH": str(RUNNER.parent),
            "PYTHONWARNINGS": "ignore",
        }
        out = tmp_path / f"{backend}.json"
        command = [sys.executable, str(RUNNER), str(out), *notebooks]
        ended = subprocess.run(command, env=environment, cwd=ROOT / "notebooks", capture_output=True, text=True)
        sent = [Sent(**call) for call in json.loads(out.read_text())] if out.exists() else []
        return sent, "" if ended.returncode == 0 else ended.stdout + ended.stderr

    return run_them


@pytest.fixture
def role(home: Path) -> Iterator[str]:
    """A role that is there already, under the name that the local platform would give it."""
    settings = Settings(home=home)
    iam, name = boto3.client("iam"), f"{settings.project}-role"
    arn: str = iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(session.TRUST_SAGEMAKER))["Role"][
        "Arn"
    ]
    reads = session.reading_packages(settings, session.bucket_name(settings, boto3.Session()))
    iam.put_role_policy(RoleName=name, PolicyName="reads", PolicyDocument=json.dumps(reads))
    yield arn
    iam.delete_role_policy(RoleName=name, PolicyName="reads")
    iam.delete_role(RoleName=name)


def fill_the_shelf(settings: Settings, folder: Path) -> None:
    """Packages under the names of the tutorial's, light ones, so that notebook 05 needs none of the others."""
    folder.mkdir()
    (folder / "model.py").write_text(HANDLER)
    packages.write_examples(folder, [Example.of_json("one", {"inputs": [[10]]}, {"predictions": [21]})])
    packages.build(folder, folder.with_suffix(".tar.gz"))
    for slug in (*SLUGS, "setfit-classifier-lean"):
        key = f"{settings.prefix}/{slug}.tar.gz"
        boto3.client("s3").upload_file(str(folder.with_suffix(".tar.gz")), session.bucket(settings), key)


def compared(sent: list[Sent]) -> list[tuple[str, str, str]]:
    """The calls as they are compared: one that is repeated until something happens counts once, the moment in a tag is
    any, and looking up the role, which on AWS is named, doesn't count."""
    calls = [
        (call.service, call.operation, EXPIRY.sub("a moment", json.dumps(call.parameters, sort_keys=True)))
        for call in sent
    ]
    return [call for call, _ in itertools.groupby(calls) if call[1] != "GetRole"]


def actions_of(sent: list[Sent]) -> set[str]:
    """What IAM is asked for by these calls."""
    called = {f"{SERVICES.get(call.service, call.service)}:{call.operation}" for call in sent}
    return {action for action in (ACTIONS.get(call, call) for call in called) if action is not None}


def documented() -> set[str]:
    """The actions of the policy in docs/aws.md."""
    assert USERS_POLICY is not None
    given = [statement["Action"] for statement in json.loads(USERS_POLICY[1])["Statement"]]
    return {action for actions in given for action in ([actions] if isinstance(actions, str) else actions)}


def test_before_the_yes_the_notebooks_send_reads_alone(run):
    sent, error = run("aws", "00_setup.ipynb")
    assert "SessionError: nothing has been created on AWS yet" in error
    assert {"GetCallerIdentity", "HeadBucket", "ListServiceQuotas", "BatchGetImage"} <= {
        call.operation for call in sent
    }
    assert all(call.is_read for call in sent)


def test_the_same_is_sent_on_aws_as_locally(run, home, tmp_path, aws):
    shelf, told = aws(project="mme-djl", yes=True), {}
    for backend in ("local", "aws"):
        setting_up, error = run(backend, "00_setup.ipynb", YES="1")
        assert not error, error[-3000:]
        fill_the_shelf(shelf, tmp_path / backend)
        serving, error = run(backend, "05_deploy_multi_model_endpoint.ipynb:1,2,3,10", YES="1")
        assert not error, error[-3000:]
        told[backend] = compared(setting_up + serving)
        with recording() as tidying:
            list(cleaning.delete(shelf, cleaning.find(shelf)))
        assert actions_of(setting_up + serving + tidying) <= documented()
    assert {"CreateBucket", "CreateModel", "CreateEndpoint", "DeleteEndpoint"} <= {call[1] for call in told["aws"]}
    assert told["aws"] == told["local"]


@pytest.mark.soak
def test_all_notebooks_send_the_same_on_aws_as_locally(run, aws):
    shelf, told = aws(project="mme-djl", yes=True), {}
    for backend in ("local", "aws"):
        sent, error = run(backend, *ALL, YES="1")
        assert not error, error[-3000:]
        told[backend] = {call for call in compared(sent) if call[1] not in ("UploadPart", "CompleteMultipartUpload")}
        assert actions_of(sent) <= documented()
        list(cleaning.delete(shelf, cleaning.find(shelf)))
    assert told["aws"] == told["local"]

"""docs/aws.md: its policies are those that are needed, and what it names is there."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from stack import Stack
from typer.main import get_command

from mme import session
from mme.cli import app
from mme.images import image_uri
from mme.platform.policy import Call, Effect, Policy, evaluate
from mme.settings import ROOT, Settings

PAGE = (ROOT / "docs" / "aws.md").read_text(encoding="utf-8")


def policy(title: str) -> dict[str, Any]:
    """The document below this comment, with the local account's names in it."""
    found = re.search(rf"<!-- {title} -->\n```json\n(.*?)```", PAGE, re.S)
    assert found is not None, title
    document: dict[str, Any] = json.loads(found[1].replace("REGION", "us-east-1").replace("ACCOUNT", "000000000000"))
    return document


def test_the_role_is_trusted_and_allowed_what_the_local_one_is_and_what_the_template_says():
    assert policy("the role's trust") == session.TRUST_SAGEMAKER
    settings = Settings()
    told = policy("the role's policy")["Statement"]
    bucket = "sagemaker-mme-djl-us-east-1-000000000000"
    assert told[:2] == session.reading_packages(settings, bucket)["Statement"]
    stack = Stack(ROOT / "infra" / "endpoint.yaml", {"Image": image_uri(settings)})
    [theirs] = stack.template["Resources"]["Role"]["Properties"]["Policies"]
    actions = [statement["Action"] for statement in theirs["PolicyDocument"]["Statement"]]
    assert [statement["Action"] for statement in told] == actions


@pytest.mark.parametrize(
    ("action", "resource", "is_allowed"),
    [
        ("sagemaker:CreateEndpoint", "arn:aws:sagemaker:us-east-1:000000000000:endpoint/mme-djl-endpoint", True),
        ("sagemaker:CreateEndpoint", "arn:aws:sagemaker:us-east-1:000000000000:endpoint/production", False),
        ("sagemaker:CreateTrainingJob", "*", False),
        ("s3:DeleteObject", "arn:aws:s3:::sagemaker-mme-djl-us-east-1-000000000000/model-packages/a.tar.gz", True),
        ("s3:DeleteObject", "arn:aws:s3:::somebody-elses/a.tar.gz", False),
        ("iam:PassRole", "arn:aws:iam::000000000000:role/mme-djl-role", True),
        ("iam:PassRole", "arn:aws:iam::000000000000:role/administrator", False),
        ("iam:CreateRole", "arn:aws:iam::000000000000:role/mme-djl-role", False),
    ],
)
def test_the_user_may_do_what_a_run_does_to_its_own_things_alone(action, resource, is_allowed):
    call = Call(action, resource, {"iam:passedtoservice": "sagemaker.amazonaws.com"})
    effect = evaluate([Policy("user", policy("the user's policy"))], call).effect
    assert effect is (Effect.ALLOWED if is_allowed else Effect.NOT_ALLOWED)


def test_commands_files_and_settings_that_it_names_are_there():
    assert set(re.findall(r"(?:`|bin/)mme ([a-z]+)", PAGE)) <= get_command(app).commands.keys()
    assert all((ROOT / "docs" / path).exists() for path in re.findall(r"\]\((\.\./[^)]+)\)", PAGE))
    named = set(re.findall(r"`([a-z]+_[a-z_]+)(?:=[A-Za-z]+)?`", PAGE)) - {"required_memory_mb"}
    assert named and named <= Settings.model_fields.keys()
    parameters = Stack(ROOT / "infra" / "endpoint.yaml", {}).template["Parameters"]
    assert all(name in parameters for name in ("Image", "AlarmEmail", "MonthlyBudget"))

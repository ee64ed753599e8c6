"""What the backend aws takes from the user's set-up, and that nothing is written before the user's yes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import boto3
import pytest
from recording import recording

from mme import session
from mme.images import ImageError, image_uri
from mme.session import SessionError
from mme.settings import Settings


def test_region_and_keys_come_from_the_users_set_up_and_reach_every_client(aws, monkeypatch):
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    settings = aws()
    assert settings.region == "eu-west-1"
    assert session.connect(settings).region_name == boto3.client("sts").meta.region_name == "eu-west-1"


def test_a_profile_gives_the_region(aws, monkeypatch, tmp_path):
    (tmp_path / "config").write_text("[profile work]\nregion = ap-south-1\n")
    monkeypatch.delenv("AWS_REGION")
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "work")
    assert aws().region == "ap-south-1"
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(ValueError, match="nobody"):
        aws()
    with pytest.raises(SessionError, match="list-profiles"):
        session.connect(aws(region="us-east-1"))


def test_without_a_region_in_the_set_up_one_is_asked_for(aws, monkeypatch):
    monkeypatch.delenv("AWS_REGION")
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    with pytest.raises(ValueError, match="names no region; name one in config.ipynb"):
        aws()


def test_a_process_that_was_turned_to_the_local_platform_does_not_reach_aws(aws, home):
    session.connect(Settings(home=home))
    with pytest.raises(SessionError, match="restart the kernel"):
        session.connect(aws())


def test_on_aws_nothing_is_written_before_the_yes(aws):
    with recording() as sent, pytest.raises(SessionError, match="MME_YES=1"):
        session.bucket(aws())
    assert all(call.is_read for call in sent)


def test_a_bucket_is_made_closed_to_the_public_with_tls_alone_and_tags(aws):
    settings = aws(yes=True)
    name = session.bucket(settings)
    assert name == session.bucket(settings) == f"sagemaker-{settings.project}-us-east-1-000000000000"
    s3 = boto3.client("s3")
    closed = s3.get_public_access_block(Bucket=name)["PublicAccessBlockConfiguration"]
    assert len(closed) == 4 and all(closed.values())
    [statement] = json.loads(s3.get_bucket_policy(Bucket=name)["Policy"])["Statement"]
    assert statement["Effect"] == "Deny" and statement["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
    tags = {tag["Key"]: tag["Value"] for tag in s3.get_bucket_tagging(Bucket=name)["TagSet"]}
    assert tags.keys() == {"mme:project", "mme:run", "mme:owner", "mme:expiry"}
    assert tags["mme:project"] == settings.project
    s3.delete_bucket(Bucket=name)


# The SageMaker SDK's own sources have strings that Python warns about.
importing_the_sdk = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::SyntaxWarning")


def test_the_role_is_the_one_that_is_named(aws):
    arn = "arn:aws:iam::000000000000:role/mine"
    assert session.role_arn(aws(role=arn)) == arn
    with pytest.raises(SessionError, match="set role in config.ipynb"):
        session.role_arn(aws())


@importing_the_sdk
def test_inside_sagemaker_the_role_is_the_notebooks_own(aws, monkeypatch, tmp_path: Path):
    from sagemaker.core.helper import session_helper

    metadata = tmp_path / "resource-metadata.json"
    arn = "arn:aws:iam::000000000000:role/service-role/notebooks"
    metadata.write_text(json.dumps({"ResourceName": "default", "DomainId": "d-1", "ExecutionRoleArn": arn}))
    monkeypatch.setattr(session, "SAGEMAKER_METADATA", metadata)
    monkeypatch.setattr(session_helper, "NOTEBOOK_METADATA_FILE", str(metadata))
    assert session.role_arn(aws()) == arn


@pytest.mark.parametrize(
    ("region", "uri"),
    [
        ("us-east-1", "763104351884.dkr.ecr.us-east-1.amazonaws.com/djl-inference:0.36.0-cpu-full"),
        ("eu-central-1", "763104351884.dkr.ecr.eu-central-1.amazonaws.com/djl-inference:0.36.0-cpu-full"),
    ],
)
def test_the_image_is_the_regions(region, uri):
    assert image_uri(Settings(region=region)) == uri


@importing_the_sdk
def test_regions_with_an_account_of_their_own_get_its_image_as_the_sdk_says():
    from sagemaker.core import image_uris

    for region in ("eu-south-1", "me-central-1", "cn-north-1", "us-gov-west-1"):
        theirs = image_uris.retrieve("djl-lmi", region=region, version="0.36.0")
        assert image_uri(Settings(region=region)).split(":")[0] == theirs.split(":")[0]


def test_a_region_without_images_is_named():
    with pytest.raises(ImageError, match="no DJL images in mars-north-1; it has some in af-south-1"):
        image_uri(Settings(region="ma-north-1").model_copy(update={"region": "mars-north-1"}))


def test_the_local_role_may_read_its_packages_and_no_more(home):
    settings = Settings(home=home, project="local-role")
    arn = session.role_arn(settings)
    iam = boto3.client("iam")
    [policy] = iam.list_role_policies(RoleName="local-role-role")["PolicyNames"]
    document = iam.get_role_policy(RoleName="local-role-role", PolicyName=policy)["PolicyDocument"]
    assert {statement["Action"] for statement in document["Statement"]} == {"s3:GetObject", "s3:ListBucket"}
    assert session.role_arn(settings) == arn and os.environ["AWS_CONFIG_FILE"] == os.devnull

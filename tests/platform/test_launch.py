from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from botocore.exceptions import ClientError

from mme.platform import launch
from mme.processes import marked
from mme.settings import Settings

POLICY = json.dumps(
    {
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", "Action": "sagemaker:InvokeEndpoint", "Resource": "*"}],
    }
)


def wait_until(is_so: Callable[[], bool], timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_platform_that_runs_is_found_and_not_started_again(platform: launch.Running) -> None:
    assert launch.find(platform.home) == platform
    assert launch.up(Settings(home=platform.home)) == platform


def test_a_running_platform_refuses_to_be_another_one(platform: launch.Running) -> None:
    with pytest.raises(launch.LaunchError, match="runs with region=us-east-1, not eu-west-1; `mme down` stops it"):
        launch.up(Settings(home=platform.home, region="eu-west-1"))


def test_everything_listens_on_loopback_only(platform: launch.Running, listening: Any) -> None:
    assert {address for address, _ in listening(platform.home)} == {"127.0.0.1"}


def test_nothing_in_a_home_is_for_anybody_but_its_owner(start_platform: Any, connect: Any, tmp_path: Path) -> None:
    """What is unpacked is as a container needs it, in folders that are."""
    home = tmp_path / "home"
    home.mkdir(mode=0o755)
    with start_platform(home) as running:
        s3 = connect(running)("s3")
        s3.create_bucket(Bucket="private")
        s3.put_object(Bucket="private", Key="folder/object", Body=b"secret")
        found = [home, *(path for path in home.rglob("*") if "models" not in path.relative_to(home).parts)]
        assert {path.name for path in found} >= {"credentials.json", "platform.json", "platform.log", "object"}
        assert [path for path in found if path.stat().st_mode & 0o077] == []


def test_a_home_that_others_can_write_to_is_none(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(launch.LaunchError, match=f"{tmp_path} isn't this user's alone"):
        launch.up(Settings(home=tmp_path))


def test_two_homes_run_side_by_side_and_down_leaves_nothing_of_one(
    platform: launch.Running, start_platform: Any, tmp_path: Path
) -> None:
    with start_platform(tmp_path) as other:
        assert other.url != platform.url and other.access_key != platform.access_key
        # What a handler leaves behind carries the mark too.
        left = subprocess.Popen(["sleep", "600"], env=os.environ | {"MME_MARK": str(tmp_path)}, start_new_session=True)
        assert launch.down(tmp_path)
        left.wait(60)
        assert marked("MME_MARK", str(tmp_path)) == []
        assert launch.find(tmp_path) is None
        assert not launch.down(tmp_path)
    assert launch.find(platform.home) == platform


def test_a_killed_platform_leaves_nothing_running_and_what_it_kept_comes_back(
    start_platform: Any, connect: Any, tmp_path: Path
) -> None:
    with start_platform(tmp_path) as first:
        s3, sagemaker, iam = (connect(first)(name) for name in ("s3", "sagemaker", "iam"))
        s3.create_bucket(Bucket="kept")
        s3.put_object(Bucket="kept", Key="folder/object", Body=b"its bytes", ContentType="a/b", Metadata={"team": "a"})
        s3.put_bucket_tagging(Bucket="kept", Tagging={"TagSet": [{"Key": "owner", "Value": "shop"}]})
        container = {"Image": "image", "ModelDataUrl": "s3://kept/models/"}
        sagemaker.create_model(ModelName="kept", PrimaryContainer=container, Tags=[{"Key": "a", "Value": "b"}])
        role_arn = iam.create_role(RoleName="kept", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
        iam.put_role_policy(RoleName="kept", PolicyName="inline", PolicyDocument=POLICY)
        iam.create_user(UserName="kept")
        key = iam.create_access_key(UserName="kept")["AccessKey"]
        iam.create_role(RoleName="gone", AssumeRolePolicyDocument="{}")
        iam.delete_role(RoleName="gone")

        os.kill(first.pid, signal.SIGKILL)
        wait_until(lambda: marked("MME_MARK", str(tmp_path)) == [])

        second = launch.up(Settings(home=tmp_path))
        s3, sagemaker, iam = (connect(second)(name) for name in ("s3", "sagemaker", "iam"))
        assert (second.access_key, second.secret_key) == (first.access_key, first.secret_key)
        kept = s3.get_object(Bucket="kept", Key="folder/object")
        assert (kept["Body"].read(), kept["ContentType"], kept["Metadata"]) == (b"its bytes", "a/b", {"team": "a"})
        assert s3.get_bucket_tagging(Bucket="kept")["TagSet"] == [{"Key": "owner", "Value": "shop"}]
        model_arn = sagemaker.describe_model(ModelName="kept")["ModelArn"]
        assert sagemaker.list_tags(ResourceArn=model_arn)["Tags"] == [{"Key": "a", "Value": "b"}]
        assert [role["Arn"] for role in iam.list_roles()["Roles"]] == [role_arn]
        assert iam.list_role_policies(RoleName="kept")["PolicyNames"] == ["inline"]
        (kept_key,) = iam.list_access_keys(UserName="kept")["AccessKeyMetadata"]
        assert kept_key["AccessKeyId"] == key["AccessKeyId"]


def test_a_second_process_cannot_own_the_home(platform: launch.Running) -> None:
    argv = [sys.executable, "-m", "mme.platform", "--home", str(platform.home)]
    second = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert second.returncode == 1
    assert f"another platform owns {platform.home}; stop it with `mme down`" in second.stderr


def test_a_start_that_fails_shows_its_last_words(tmp_path: Path) -> None:
    (tmp_path / "state.db").write_text("no database, but long enough to be taken for one" * 100)
    with pytest.raises(
        launch.LaunchError, match="did not start; the last lines of .*platform.log:(.|\n)*not a database"
    ):
        launch.up(Settings(home=tmp_path))


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", ""])
def test_only_loopback_names_are_answered(platform: launch.Running, host: str) -> None:
    with pytest.raises(HTTPError) as refused:
        urlopen(Request(f"{platform.url}/_mme/status", headers={"Host": host}))
    with refused.value as answer:
        assert answer.code == 403
        assert b"does not answer for the host" in answer.read()


def test_a_process_that_is_killed_behind_the_gateway_is_started_again(
    start_platform: Any, connect: Any, tmp_path: Path
) -> None:
    with start_platform(tmp_path) as there:
        s3, iam = connect(there)("s3"), connect(there)("iam")
        s3.create_bucket(Bucket="kept")
        s3.put_object(Bucket="kept", Key="object", Body=b"its bytes", Metadata={"team": "a"})
        iam.create_role(RoleName="kept", AssumeRolePolicyDocument="{}")
        for process in marked("MME_MARK", str(tmp_path)):
            if process.pid != there.pid:
                process.kill()
        wait_until(lambda: len(marked("MME_MARK", str(tmp_path))) >= 3)
        wait_until(
            lambda: is_answered(lambda: s3.get_object(Bucket="kept", Key="object")["Body"].read() == b"its bytes")
        )
        assert s3.head_object(Bucket="kept", Key="object")["Metadata"] == {"team": "a"}
        wait_until(lambda: is_answered(lambda: iam.get_role(RoleName="kept")["Role"]["RoleName"] == "kept"))


def is_answered(call: Callable[[], bool]) -> bool:
    try:
        return call()
    except ClientError as error:
        assert error.response["Error"]["Code"] == "ServiceUnavailable"
        return False

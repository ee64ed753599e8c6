"""A lab has a platform of its own, and nothing is left of it afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from botocore.exceptions import ClientError

from mme import packages, session
from mme.labs import stage
from mme.labs.usage import usage
from mme.settings import Settings


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Settings]:
    before = dict(os.environ)
    found = stage.own(Settings(home=tmp_path), "a-lab", instance_memory_mb=1024)
    yield found
    stage.strike(found)
    os.environ.clear()
    os.environ.update(before)


def test_a_lab_is_deployed_called_and_gone(lab: Settings, tmp_path: Path) -> None:
    archive = tmp_path / "tenant.tar.gz"
    packages.build(packages.prepare(tmp_path / "tenant", lab.scripts_dir / "tenant"), archive)
    session.connect(lab).client("s3").upload_file(str(archive), session.bucket(lab), f"{lab.prefix}/tenant.tar.gz")
    stage.deploy(lab)
    runtime = stage.runtime(lab)

    def is_cold() -> bool:
        sent = time.time()
        answer = runtime.invoke_endpoint(EndpointName=lab.endpoint_name, TargetModel="tenant.tar.gz", Body=b"{}")
        return bool(json.load(answer["Body"])["loaded_at"] > sent)

    assert [is_cold(), is_cold()] == [True, False]
    (instance,) = stage.instances(lab)
    assert [model["target_model"] for model in instance["models"]] == ["tenant.tar.gz"]
    assert instance["memory_budget_mb"] == 1024
    stage.deploy(lab, instances=2, is_cached=False, environment={"MME_FORK": "off"})
    assert [is_cold(), is_cold()] == [True, True] and len(stage.instances(lab)) == 2
    environments = [psutil.Process(one["pid"]).environ() for one in stage.instances(lab)]
    assert [one["MME_FORK"] for one in environments] == ["off", "off"]
    stage.remove(lab)
    with pytest.raises(ClientError, match="not found"):
        is_cold()
    assert any("process" in what for what in stage.left(lab))
    stage.strike(lab)
    assert stage.left(lab) == []


def test_a_labs_own_settings_win_over_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MME_INSTANCE_MEMORY_MB", "4096")
    found = stage.own(Settings(home=tmp_path), "a-lab", instance_memory_mb=600)
    assert found.instance_memory_mb == 600 and found.home == tmp_path / "labs" / "a-lab"


def test_a_lab_begins_with_nothing_of_an_earlier_run(tmp_path: Path) -> None:
    (tmp_path / "labs" / "a-lab").mkdir(parents=True)
    (tmp_path / "labs" / "a-lab" / "state.db").write_text("old")
    assert stage.left(stage.own(Settings(home=tmp_path), "a-lab")) == []


def test_what_is_no_setting_and_what_is_not_local_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="instance_memory is not one of the settings"):
        stage.own(Settings(home=tmp_path), "a-lab", instance_memory=1)
    with pytest.raises(stage.LabError, match="MME_BACKEND"):
        stage.own(Settings(home=tmp_path, backend="aws", region="us-east-1"), "a-lab")


def test_usage_counts_descendants_and_those_that_have_ended() -> None:
    burn = "import time; end = time.process_time() + 0.3\nwhile time.process_time() < end: pass"
    child = "import time; time.sleep(600)"
    program = (
        "import subprocess, sys\n"
        f"subprocess.run([sys.executable, '-c', {burn!r}])\n"
        f"left = subprocess.Popen([sys.executable, '-c', {child!r}])\n"
        "print('ready', flush=True); sys.stdin.read(); left.kill()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        found = usage(process.pid)
        process.communicate()
    assert found.cpu_s >= 0.3 and found.processes == 2 and found.memory_mb > 1

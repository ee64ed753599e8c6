"""The command line: each command, as a person types it."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import boto3
import pytest
from sklearn.ensemble import ExtraTreesClassifier

from mme import checking, cli, packages
from mme.cli import console
from mme.packages import Example
from mme.platform import launch
from mme.server.worker import box
from mme.settings import Settings

# Ctrl-C is ignored by what a shell without a terminal starts in the background, and by its children.
COMMAND = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from mme.cli import main; main()"
LIGHT = """
from djl_python import Output

def handle(inputs):
    if inputs.is_empty():
        return None
    return Output().add_as_json({"predictions": [2 * row[0] + 1 for row in inputs.get_as_json()["inputs"]]})
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("home")
    yield home
    launch.down(home)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a good package beside the folder it was built from, and one whose handler fails."""
    shelf = tmp_path_factory.mktemp("shelf")
    for name, handler in (("line", LIGHT), ("broken", "def handle(inputs):\n    raise ValueError('no [weights]')\n")):
        (shelf / name).mkdir()
        (shelf / name / "model.py").write_text(handler)
        (shelf / name / "serving.properties").write_text("engine=Python\nrequired_memory_mb=50\n")
    packages.write_examples(shelf / "line", [Example.of_json("one", {"inputs": [[10]]}, {"predictions": [21]})])
    packages.build(shelf / "line", shelf / "line.tar.gz")
    yield shelf
    checking.close()


def start(*arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
    """Start a command that goes on, in a group of its own as a shell does, so that Ctrl-C can be sent to it."""
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *map(str, arguments)],
        env=os.environ | {"PYTHONUNBUFFERED": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def line_with(process: subprocess.Popen[str], pattern: str) -> str:
    """What a process prints next that matches, its first group."""
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if match := re.search(pattern, line):
            return match[1]
    raise AssertionError("".join(said))


def post(url: str, body: str) -> bytes:
    request = urllib.request.Request(url, body.encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        read: bytes = answer.read()
        return read


def refuses_connections(url: str) -> bool:
    host, port = url.removeprefix("http://").partition("/")[0].split(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


def test_help_names_every_command(mme):
    code, out, _ = mme("--help")
    assert code == 0
    assert all(name in out for name in ("up", "down", "env", "status", "logs", "check", "serve", "container"))


@pytest.mark.parametrize("command", ["env", "open", "status", "top", "logs"])
def test_a_home_without_a_platform_says_how_to_start_one(mme, monkeypatch, tmp_path, command):
    monkeypatch.setenv("MME_HOME", str(tmp_path))
    assert mme(command) == (1, "", f"error: no platform runs in {tmp_path}; `mme up` starts it\n")


@pytest.mark.parametrize("command", ["env", "open", "status", "top", "logs --backend local"])
def test_the_home_of_the_config_notebook_is_every_commands_and_no_backend_changes_that(
    mme, config, monkeypatch, tmp_path, command
):
    monkeypatch.delenv("MME_HOME", raising=False)
    config(f"from mme.settings import Settings\nsettings = Settings(home={str(tmp_path)!r}, backend='aws')")
    assert mme(*command.split()) == (1, "", f"error: no platform runs in {tmp_path}; `mme up` starts it\n")


def test_the_settings_of_the_config_notebook_are_those_of_the_platform_from_its_start_to_its_end(
    mme, config, monkeypatch, tmp_path
):
    for name in ("HOME", "REGION", "INSTANCE_MEMORY_MB"):
        monkeypatch.delenv(f"MME_{name}", raising=False)
    home = tmp_path / "home"
    config(
        "from mme.settings import Settings\n"
        "print('a word')\n"
        f"settings = Settings(home={str(home)!r}, region='eu-west-1', instance_memory_mb=1024)"
    )
    try:
        code, out, _ = mme("up")
        running = launch.find(home)
        assert code == 0 and running is not None and out.startswith(running.url)
        assert (running.region, running.instance_memory_mb) == ("eu-west-1", 1024)
        code, out, err = mme("env")
        assert "export AWS_REGION=eu-west-1\n" in out and "a word" not in out and err == "a word\n"
        assert json.loads(mme("status", "--json")[1])["url"] == running.url
        code, out, err = mme("clean")  # which starts one with other settings, if it can
        assert code == 0 and "region eu-west-1: 0 to delete" in out, err
        monkeypatch.setenv("MME_REGION", "us-east-1")
        assert "export AWS_REGION=eu-west-1\n" in mme("env")[1]  # the platform's, which runs already
        assert mme("down")[:2] == (0, "stopped\n")
    finally:
        launch.down(home)


def test_down_without_a_platform_says_so(mme, monkeypatch, tmp_path):
    monkeypatch.setenv("MME_HOME", str(tmp_path))
    assert mme("down") == (0, "nothing was running\n", "")


def test_the_platform_comes_up_is_seen_turns_clients_to_it_and_goes(mme, monkeypatch, home):
    monkeypatch.setenv("MME_HOME", str(home))
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://elsewhere")
    code, out, _ = mme("up")
    running = launch.find(home)
    assert code == 0 and running is not None and out.startswith(f"{running.url} answers as AWS")

    monkeypatch.setenv("MME_REGION", "eu-west-1")
    code, _, err = mme("up")
    assert code == 1 and "runs with region=us-east-1, not eu-west-1" in err
    monkeypatch.delenv("MME_REGION")

    assert mme("status")[1].startswith(f"{running.url}, pid {running.pid}")
    assert f"box: {box.describe()}" in mme("status")[1]
    assert json.loads(mme("status", "--json")[1])["endpoints"] == []

    lines = mme("env")[1].splitlines()
    assert "unset AWS_ENDPOINT_URL_S3" in lines
    exported = dict(shlex.split(line)[1].split("=", 1) for line in lines if line.startswith("export "))
    s3 = boto3.client(
        "s3",
        endpoint_url=exported["AWS_ENDPOINT_URL"],
        region_name=exported["AWS_REGION"],
        aws_access_key_id=exported["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=exported["AWS_SECRET_ACCESS_KEY"],
    )
    assert s3.list_buckets()["Buckets"] == []
    s3.close()

    assert mme("down") == (0, "stopped\n", "")
    assert launch.find(home) is None and refuses_connections(running.url)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [("REGION", "mars", "should match pattern"), ("INSTANCE_MEMORY_MB", "1", "greater than or equal to 512")],
)
def test_a_setting_that_cannot_be_used_is_told_in_one_line(mme, monkeypatch, name, value, reason):
    monkeypatch.setenv(f"MME_{name}", value)
    code, out, err = mme("up")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith(f"error: MME_{name}={value} can't be used: ") and reason in err


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("project='My Project'", "config.ipynb: project='My Project' can't be used: String should match pattern"),
        (
            "instance_count=0",
            "config.ipynb: instance_count=0 can't be used: Input should be greater than or equal to 1",
        ),
        ("projekt='shop'", "config.ipynb: there is no setting projekt; did you mean project?"),
        ("yes=", "config.ipynb, code cell 1, line 2: invalid syntax"),
        ("yes=maybe", "config.ipynb, code cell 1, line 2: NameError: name 'maybe' is not defined"),
    ],
)
def test_a_mistake_in_the_config_notebook_is_told_as_one_of_its_own(mme, config, given, told):
    config(f"from mme.settings import Settings\nsettings = Settings({given})")
    for command in ("up", "env", "clean"):
        code, out, err = mme(command)
        assert (code, out, err.count("\n")) == (1, "", 1) and err.startswith(f"error: {told}")


def test_each_kind_of_error_that_a_command_tells_has_its_room(mme, monkeypatch, tmp_path):
    for error in cli._told_errors():

        def fail(settings: Settings, error: type[Exception] = error) -> None:
            raise error("what is [wrong], and the way out")

        monkeypatch.setattr(launch, "up", fail)
        assert mme("up") == (1, "", "error: what is [wrong], and the way out\n")


def test_an_error_of_our_own_keeps_its_traceback(mme, monkeypatch):
    def fail(settings: Settings) -> None:
        raise KeyError("a slip")

    monkeypatch.setattr(launch, "up", fail)
    with pytest.raises(KeyError, match="a slip"):
        mme("up")


def test_pack_makes_an_archive_beside_the_folder_or_where_it_is_told(mme, shelf, tmp_path):
    code, out, err = mme("pack", shelf / "line", tmp_path / "one.tar.gz")
    assert code == 0 and "model.py" in out and err == f"next: mme check {tmp_path / 'one.tar.gz'}\n"
    code, _, err = mme("pack", tmp_path / "none")
    assert code == 2 and "does not exist" in re.sub(r"[\s│]+", " ", err)


def test_a_folder_is_packed_from_within_beside_itself_and_never_into_itself(mme, shelf, tmp_path, monkeypatch):
    shutil.copytree(shelf / "line", tmp_path / "line")
    monkeypatch.chdir(tmp_path / "line")
    for _ in range(2):
        code, out, err = mme("pack", ".")
        assert code == 0 and out.startswith("../line.tar.gz: ") and err == "next: mme check ../line.tar.gz\n"
    assert "line.tar.gz" not in packages.names(tmp_path / "line.tar.gz")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["line", "line.tar.gz"]
    for archive in ("one.tar.gz", "more/one.tar.gz"):
        code, out, err = mme("pack", ".", archive)
        assert (code, out) == (1, "") and "one.tar.gz lies in the folder it is built from" in err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["pack", "line", "folder"], "folder is a folder; name the archive in it: folder/line.tar.gz"),
        (["pack", "line", "."], ". is a folder; name the archive in it: line.tar.gz"),
        (["pack", "line", "file/x.tar.gz"], "file: File exists"),
        (["pack", "line", "file/a/x.tar.gz"], "file/a: Not a directory"),
        (["pack", "line", "--lib", "file"], "file is no text; write a name==version a line into it"),
        (["new", "file/a"], "file: File exists"),
        (["new", "file/a/b"], "file/a: Not a directory"),
        (["check", "f" * 300], "File name too long"),
        (["deploy", "f" * 300], "File name too long"),
    ],
)
def test_a_slip_with_files_is_told_in_a_line_and_leaves_nothing(mme, shelf, tmp_path, monkeypatch, words, told):
    shutil.copytree(shelf / "line", tmp_path / "line")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"\x80\x04")
    monkeypatch.chdir(tmp_path)
    code, out, err = mme(*words)
    assert code in (1, 2) and out == "" and told in " ".join(err.replace("│", " ").split())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "line"]
    assert not list((tmp_path / "folder").iterdir())


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("up", "is no folder; remove it, or choose another"),
        ("status", "`mme up` starts it"),
        ("down", "Not a directory"),
    ],
)
def test_a_home_that_is_a_file_is_told(mme, monkeypatch, tmp_path, command, told):
    (tmp_path / "home").touch()
    monkeypatch.setenv("MME_HOME", str(tmp_path / "home"))
    code, out, err = mme(command)
    assert (code, out, err.count("\n")) == (1, "", 1) and f"{tmp_path / 'home'}" in err and told in err


def test_pack_writes_the_model_anew_without_a_pickle_when_its_types_are_trusted(mme, tmp_path):
    folder = packages.prepare(tmp_path / "forest", Settings().scripts_dir / "scikit_learn")
    packages.save_model(folder, ExtraTreesClassifier(2).fit([[0], [1]], [0, 1]))
    code, _, err = mme("pack", folder, "--format", "skops")
    assert code == 1 and "sklearn.tree._tree.Tree; name those that you know and trust" in err
    code, out, _ = mme("pack", folder, "--format", "skops", "--trust", "sklearn.tree._tree.Tree")
    assert code == 0 and "model.skops" in out and "model.joblib" not in out
    code, out, _ = mme("check", folder)
    assert "model.joblib would import: " in out and "sklearn.ensemble._forest.ExtraTreesClassifier" in out


def test_only_a_fault_of_the_libraries_is_told_as_one(mme, tmp_path):
    folder = packages.prepare(tmp_path / "forest", Settings().scripts_dir / "scikit_learn")
    packages.save_model(folder, ExtraTreesClassifier(2).fit([[0], [1]], [0, 1]))
    trusted = ["--trust", "sklearn.tree._tree.Tree", "--trust", "ä"]
    code, _, err = mme("pack", folder, "--format", "skops", *trusted)
    assert code == 2 and "use ASCII" in err and "--lib" not in err


def test_what_a_package_says_is_told_without_what_a_terminal_would_obey(mme, tmp_path):
    (tmp_path / "forged").mkdir()
    (tmp_path / "forged" / "model.py").write_text(f"# no handler\n{LIGHT}")
    said = b"\x1b[2Kx\nforged: no faults, 1 golden call equal"
    name = b"\x8c\x07sklearn\x8c" + bytes([len(said)]) + said + b"\x93."
    (tmp_path / "forged" / "model.joblib").write_bytes(b"\x80\x04" + name)
    _, out, err = mme("check", tmp_path / "forged")
    assert "model.joblib would import: sklearn.\\x1b[2Kx\n    forged: no faults" in out
    assert "\x1b" not in out + err and "\nforged: no faults" not in out


def test_an_error_and_a_note_are_one_record_each(capsys):
    console.tell("a\x1b[2Jb\nc")
    console.note("a\x1b[2Jb\nc")
    assert capsys.readouterr().err == "error: a\\x1b[2Jb\n    c\na\\x1b[2Jb\n    c\n"


def test_pack_brings_libraries_along(mme, shelf, tmp_path):
    (tmp_path / "lib.txt").write_text(f"# pure Python\niniconfig=={metadata.version('iniconfig')}\n")
    code, _, _ = mme("pack", shelf / "line", tmp_path / "line.tar.gz", "--lib", tmp_path / "lib.txt")
    assert code == 0 and "lib/iniconfig/__init__.py" in packages.names(tmp_path / "line.tar.gz")
    (tmp_path / "lib.txt").write_text("iniconfig\n")
    code, _, err = mme("pack", shelf / "line", tmp_path / "line.tar.gz", "--lib", tmp_path / "lib.txt")
    assert code == 2 and "iniconfig==<version>" in err


def test_check_passes_a_sound_package_and_names_the_fault_of_another(mme, shelf):
    said = "line: no faults, 1 golden call equal\n"
    assert mme("check", shelf / "line.tar.gz") == (0, said, f"next: mme deploy {shelf / 'line.tar.gz'}\n")
    report = json.loads(mme("check", "--json", shelf / "line.tar.gz")[1])
    assert report["ok"] and report["findings"] == [] and report["golden_calls"] == 1
    code, out, _ = mme("check", shelf / "broken")
    assert code == 1 and "ValueError: no [weights]" in out
    code, out, _ = mme("check", "--container", "0.29.0", shelf / "line.tar.gz")
    assert code == 0 and out.startswith("line: ")
    code, _, err = mme("check", "--container", "0.1", shelf / "line.tar.gz")
    assert code == 2 and "0.29.0" in err
    code, _, err = mme("check", shelf / "nothing")
    assert code == 2 and "does not exist" in re.sub(r"[\s│]+", " ", err)


def test_serve_answers_for_each_sound_package_until_ctrl_c(shelf):
    process = start("serve", shelf, "--port", "0")
    url = line_with(process, r"POST (\S+/models/line/invoke)")
    assert line_with(process, r"not served: (.*)").startswith("broken: ")
    assert json.loads(post(url, '{"inputs": [[1]]}')) == {"predictions": [3]}
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 0 and refuses_connections(url)


def test_serve_goes_on_to_show_what_a_handler_prints_as_plain_text(tmp_path):
    (tmp_path / "line").mkdir()
    (tmp_path / "line" / "model.py").write_text(
        LIGHT.replace(
            "return Output", "print('printed \\x1b[2J', inputs.get_as_json()['inputs'][0][0])\n    return Output"
        )
    )
    process = start("serve", tmp_path, "--port", "0")
    url = line_with(process, r"POST (\S+/models/line/invoke)")
    for number in range(3):
        post(url, f'{{"inputs": [[{number}]]}}')
        assert line_with(process, rf"printed (\S+) {number}$") == "\\x1b[2J"
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=60)


@pytest.mark.parametrize("text", ["{", "[1]", '[{"name": "a", "body": "{", "answer": 1}]'])
def test_a_folder_is_served_whatever_its_examples_are(shelf, tmp_path, text):
    shutil.copytree(shelf / "line", tmp_path / "line")
    (tmp_path / "line" / "examples.json").write_text(text)
    process = start("serve", tmp_path, "--port", "0")
    url = line_with(process, r"POST (\S+/models/line/invoke)")
    assert line_with(process, "no example of a call is shown: (.*)")
    assert json.loads(post(url, '{"inputs": [[1]]}')) == {"predictions": [3]}
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 0


def test_a_server_of_a_folder_ends_with_its_command_however_that_ends(shelf):
    process = start("serve", shelf, "--port", "0")
    url = line_with(process, r"POST (\S+/models/line/invoke)")
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 60
    while not refuses_connections(url):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_serve_says_why_it_cannot(mme, shelf, tmp_path):
    code, _, err = mme("serve", tmp_path)
    assert code == 1 and "holds no packages" in err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, err = mme("serve", shelf, "--port", str(port))
    assert code == 1 and f"cannot listen on 127.0.0.1:{port}" in err and "choose another port" in err


def test_container_is_the_model_server_alone_configured_by_its_environment(shelf):
    process = start("container", "--port", "0", SAGEMAKER_MULTI_MODEL="true")
    url = line_with(process, r"listening on (\S+)")
    load = json.dumps({"model_name": "a", "url": str(shelf / "line")})
    assert b"registered" in post(f"{url}/models", load)
    assert json.loads(post(f"{url}/models/a/invoke", '{"inputs": [[1]]}')) == {"predictions": [3]}
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 0

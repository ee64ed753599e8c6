"""The page and the README's part on your own model: code and commands run in their order, as they stand there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from mme.platform import launch
from mme.settings import ROOT

PAGE = (ROOT / "docs" / "your-own-model.md").read_text(encoding="utf-8")
PART = re.search(r"^## Your own model$(.*?)^## ", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
BLOCK = re.compile(r"^```(python|sh|)\n(.*?)^```", re.M | re.S)


def run(language: str, code: str, place: Path, home: Path) -> str:
    """What a block of the page says, on stdout and then on stderr."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = [sys.executable, "-c", code] if language == "python" else ["bash", "-euc", code]
    environment = os.environ | {"MME_HOME": str(home), "PATH": path}
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{code}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def test_the_readmes_five_lines_are_the_pages() -> None:
    assert PART is not None
    [(_, block)] = BLOCK.findall(PART[1])
    lines = [re.sub(r"\s+#.*", "", line) for line in block.splitlines()]
    for theirs, ours in ((".venv/bin/", ""), ("mine/", ""), ("my-model", "iris"), (" model.joblib", " iris.joblib")):
        lines = [line.replace(theirs, ours) for line in lines]
    commands = [line for language, code in BLOCK.findall(PAGE) if language == "sh" for line in code.splitlines()]
    assert lines[:4] == commands[:4]
    assert [line.partition(" '")[0] for line in (lines[4], commands[4])] == ["mme invoke iris --json"] * 2


def test_the_page_goes_from_a_file_to_a_model_that_answers(tmp_path: Path) -> None:
    home = tmp_path / "home"
    try:
        said = "".join(run(language, code, tmp_path, home) for language, code in BLOCK.findall(PAGE) if language)
    finally:
        launch.down(home)
    assert [line for line in said.splitlines() if line.startswith("next: mme")][:4] == [
        "next: mme pack iris",
        "next: mme check iris.tar.gz",
        "next: mme deploy iris.tar.gz",
        "next: mme invoke iris --json '{\"inputs\": [[1, 2, 3, 4]]}'",
    ]
    answers = re.findall(r'"predictions":\["(\w+)"\]', re.sub(r"\s", "", said))
    assert answers == ["setosa", "setosa", "virginica"]
    assert 'TargetModel="iris-2.tar.gz"' in said and "\nstopped\n" in said

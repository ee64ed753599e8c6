from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mme.discretion import discreet, within
from mme.private import NotPrivate, private

NOBODY = 65534


def test_a_folder_is_made_or_closed_to_everybody_else(tmp_path: Path) -> None:
    new = private(tmp_path / "a" / "b")
    opened = tmp_path / "opened"
    opened.mkdir(mode=0o755)
    (opened / "kept").touch()
    private(opened)
    assert [place.stat().st_mode & 0o777 for place in (new, opened)] == [0o700] * 2
    assert (opened / "kept").exists()


def writable(folder: Path) -> Path:
    folder.mkdir()
    folder.chmod(0o777)
    return folder


def link(folder: Path) -> Path:
    folder.symlink_to(folder.parent)
    return folder


def file(folder: Path) -> Path:
    folder.touch()
    return folder


def of_another_user(folder: Path) -> Path:
    if os.geteuid():
        return Path("/")
    folder.mkdir()
    os.chown(folder, NOBODY, NOBODY)
    return folder


@pytest.mark.parametrize("plant", [writable, link, file, of_another_user])
def test_what_another_user_could_have_planted_is_refused(plant: Callable[[Path], Path], tmp_path: Path) -> None:
    planted = plant(tmp_path / "planted")
    with pytest.raises(NotPrivate, match=f"^{planted} is"):
        private(planted)


@pytest.mark.parametrize(
    "text, told",
    [
        ("no file '{home}/notes/x.csv'", "no file 'notes/x.csv'"),
        ("{home}/a: {home}/b", "a: b"),
        ("file://{home}/a", "file://a"),
        ("(/opt/one/model/x)", "(/opt/ml/x)"),
        ("s3://bucket{home}/a and {home}-old/a", "s3://bucket{home}/a and {home}-old/a"),
    ],
)
def test_a_path_is_told_from_a_known_folder_on(text: str, told: str) -> None:
    home = os.path.expanduser("~")
    assert discreet(text.format(home=home), {within("/opt/one/model"): "/opt/ml/"}) == told.format(home=home)

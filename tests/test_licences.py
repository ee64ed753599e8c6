"""What is installed is named, hashed, and has its licence in docs/licences.md."""

from __future__ import annotations

import re

from mme.settings import ROOT
from tools import licences

PIN = re.compile(r"^([\w.-]+==\S+(?: ; [^\\\n]+)?)", re.MULTILINE)


def test_every_locked_pin_has_hashes_and_nothing_else_has() -> None:
    hashed = (ROOT / "requirements.hashes.txt").read_text()
    pins = {pin.strip() for pin in PIN.findall(hashed)}
    assert pins == {pin.strip() for pin in PIN.findall((ROOT / "requirements.txt").read_text())}, "run `make lock`"
    assert len(re.findall(r"^\S.*(?:\n    --hash=sha256:[0-9a-f]{64}(?: \\)?)+$", hashed, re.MULTILINE)) == len(pins)


def test_every_locked_distribution_has_its_licence_on_the_page() -> None:
    assert sorted(licences.rows(licences.PAGE.read_text())) == licences.locked(), "run `make lock`"


def test_each_copyleft_licence_is_explained() -> None:
    page = licences.PAGE.read_text()
    explained = page.partition("## Copyleft")[2].partition("## What is locked")[0]
    names = [name for name, licence in licences.rows(page).items() if re.search("GPL|MPL|Mozilla|EPL|CDDL", licence)]
    assert "paramiko" in names
    assert [name for name in names if not re.search(rf"\b{name}\b", explained)] == []


def test_what_is_vendored_brings_its_licence() -> None:
    static = ROOT / "src/mme/platform/page/static"
    assert "MIT License" in (static / "uplot" / "LICENSE").read_text()
    assert "SIL OPEN FONT LICENSE Version 1.1" in (static / "inter" / "LICENSE").read_text()
    vendored = [file.parent for pattern in ("*.min.*", "*.woff2") for file in (ROOT / "src").rglob(pattern)]
    assert set(vendored) == {static / "uplot", static / "inter"}

"""Decides what a recorded case means: its scene (cases that share one run), its files, and the request it sends."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import joblib
from sklearn.linear_model import LinearRegression

HERE = Path(__file__).parent

# Scenes that span several first words of names, by the case that begins them; after the last case of one, the first
# word of a name (up to "/") is its scene.
_SPANS = {
    "ping-empty": ("first", "invoke-unloaded"),
    "page-0/load": ("pages", "workflows"),
    "big/load": ("big", "big-reply-19MiB"),
    "url-relative": ("urls", "ping-trailing-slash"),
}
# Recorded handlers slept where the replay holds them at a gate.
_GATES = {
    'time.sleep(q["s"])': '__import__("gate").wait(q["s"])',
    "time.sleep(float(b[1:]))": '__import__("gate").wait(bytes(b[1:]).decode())',
    "import time; time.sleep(6)": '__import__("gate").wait("never")',
    'if q == "raise"': 'if q == "hold": __import__("gate").wait("hold")\n        if q == "raise"',
    "option.model_loading_timeout=2": "option.model_loading_timeout=1",
}
# Time limits that pass are short; those that must not pass are long, however slow the machine.
_TIME_LIMITS = {"timeout": 2, "queued-long": 2}
_LONG_S = 60

# Files that were there but not recorded.
_UNRECORDED = {"memory-estimate-30MiB-file": {"model.py": "def handle(inputs):\n    return None\n"}}


@dataclass(frozen=True)
class Case:
    """One recorded request and answer."""

    name: str
    scene: str
    setup: Mapping[str, str]
    request: Any
    response: Any
    notes: str

    @property
    def model(self) -> str:
        """The model that the request names, or ""."""
        if not isinstance(self.request, dict) or "path" not in self.request:
            return ""
        named = re.match(r"/(?:models|predictions)/([^/?]+)", self.request["path"])
        if named:
            return named[1]
        in_body = re.search(r'"model_name": "([^"]*)"', str(self.request["body"]))
        return in_body[1] if in_body else ""

    def files(self) -> dict[str, bytes]:
        """The files of the case's models by their path under the models' folder."""
        files = {}
        for path, text in {**self.setup, **_UNRECORDED.get(self.name, {})}.items():
            place = path.removeprefix("models/") if path.startswith("models/") else f"{self.model}/model/{path}"
            files[place] = self._content(text)
        return files

    def _content(self, text: str) -> bytes:
        if text == "<16 bytes>":
            return b"engine=\\u00zz\n\n\n"
        if text == "<601 bytes>":
            return linear_regression()
        if text == "<30 MiB>":
            return bytes(30 * 2**20)
        if text.startswith("<the kitchen-sink"):
            text = kitchen_sink()
        for slept, held in _GATES.items():
            text = text.replace(slept, held)
        limit_s = _TIME_LIMITS.get(self.scene, _LONG_S)
        return text.replace("option.predict_timeout=3", f"option.predict_timeout={limit_s}").encode()

    def body(self, models: str) -> bytes | None:
        """The body to send."""
        content = self.request["body"]
        if content is None:
            return None
        if isinstance(content, str):
            return content.replace("{models}", models).encode()
        if "head_hex" in content:
            return bytes.fromhex(content["head_hex"])
        return content["head"][:1].encode() * int(content["length"])


@cache
def cases() -> dict[str, Case]:
    """All cases by name, in the order in which they were recorded."""
    read: dict[str, Case] = {}
    span: tuple[str, str] | None = None
    for raw in json.loads((HERE / "transcript.json").read_text()):
        name = raw["name"]
        span = _SPANS.get(name, span)
        scene = span[0] if span else name.split("/")[0]
        read[name] = Case(name, scene, raw["setup"], raw["request"], raw["response"], raw["notes"])
        if span and name == span[1]:
            span = None
    return read


@cache
def scenes() -> dict[str, list[Case]]:
    """The cases of each scene, in recorded order."""
    grouped: dict[str, list[Case]] = {}
    for case in cases().values():
        grouped.setdefault(case.scene, []).append(case)
    return grouped


def kitchen_sink() -> str:
    """The handler that does whatever a request asks for."""
    return cases()["register-ok"].setup["models/a1b2c3d4e5f60718293a4b5c6d7e8f90/model/model.py"]


@cache
def linear_regression() -> bytes:
    """The small model of the sklearn cases, y = first column, as joblib writes it."""
    written = io.BytesIO()
    joblib.dump(LinearRegression().fit([[1, 2], [3, 4]], [1, 3]), written)
    return written.getvalue()

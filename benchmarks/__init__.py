"""Measures the embedded server and the platform, and other model servers beside them: see README.md in this folder."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent
BUILD = ROOT / "build" / "benchmarks"

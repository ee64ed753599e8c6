"""A scikit-learn model: rows as JSON in, predictions as JSON out."""

from __future__ import annotations

import json
from typing import Any

import joblib


def load(folder: str) -> Any:
    return joblib.load(f"{folder}/model.joblib")


def answer(model: Any, body: bytes) -> str:
    return json.dumps(model.predict(json.loads(body)).tolist())

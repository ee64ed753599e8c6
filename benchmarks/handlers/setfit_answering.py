"""A SetFit classifier: sentences as JSON in, labels as JSON out."""

from __future__ import annotations

import json
import os
from typing import Any

# Read by the libraries when they are imported.
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TQDM_DISABLE="1")

from setfit import SetFitModel  # noqa: E402


def load(folder: str) -> Any:
    return SetFitModel.from_pretrained(f"{folder}/model", device="cpu")


def answer(model: Any, body: bytes) -> str:
    return json.dumps([str(label) for label in model.predict(json.loads(body), show_progress_bar=False)])

"""Decides how a trained SetFit model becomes files that are served without torch and SetFit: ONNX, arrays, JSON."""

from __future__ import annotations

import platform
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from mme.packages import CONTAINER
from mme.settings import Settings

NATIVE, LEAN = "setfit-classifier", "setfit-classifier-lean"

_OPSET = 17  # of 2022: every onnxruntime that runs on Python 3.11 knows it


def export(model: Any, folder: Path) -> None:
    """Write a SetFit model's encoder (encoder.onnx), tokenizer (tokenizer.json) and head (head.npz) into a folder.

    The encoder must be a transformer whose token embeddings are averaged and normalised, as all-MiniLM's are, and the
    head scikit-learn's LogisticRegression; ValueError for others, since what is served would answer otherwise.
    `serving_scripts/setfit_lean/classifier.py` reads the files.
    """
    import torch

    parts = [type(part).__name__ for part in model.model_body]
    if parts != ["Transformer", "Pooling", "Normalize"] or model.model_body[1].pooling_mode != "mean":
        raise ValueError(
            f"the encoder consists of {parts}; only a mean over a Transformer's tokens, normalised, is known"
        )
    if type(model.model_head).__name__ != "LogisticRegression":
        raise ValueError(f"the head is a {type(model.model_head).__name__}, not a LogisticRegression")
    folder.mkdir(parents=True, exist_ok=True)

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.transformer = model.model_body[0].auto_model.eval()

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            tokens = self.transformer(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            weights = attention_mask.unsqueeze(-1).to(tokens.dtype)
            return torch.nn.functional.normalize((tokens * weights).sum(1) / weights.sum(1), dim=1)

    tokenizer = model.model_body.tokenizer
    traced = tokenizer(["a short one", "a somewhat longer sentence"], padding=True, return_tensors="pt")
    batch, words = {0: "sentences"}, {0: "sentences", 1: "tokens"}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's old name, and that a trace holds constants
        torch.onnx.export(
            Encoder(),
            (traced["input_ids"], traced["attention_mask"]),
            str(folder / "encoder.onnx"),
            input_names=["input_ids", "attention_mask"],
            output_names=["embedding"],
            dynamic_axes={"input_ids": words, "attention_mask": words, "embedding": batch},
            opset_version=_OPSET,
            dynamo=False,
        )
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    head = model.model_head
    np.savez(
        folder / "head.npz",
        weights=head.coef_,
        bias=head.intercept_,
        labels=np.array([str(label) for label in head.classes_]),
        max_tokens=model.model_body.max_seq_length,
    )


def served(settings: Settings) -> list[str]:
    """Which of SetFit's two packages an endpoint can serve: both locally, the lean one alone on AWS.

    The native one is there only where containers reach a package index (`container_egress`), the lean one everywhere
    but behind the embedded server of a machine that can't import what is built for the container.
    """
    here = (sys.platform, platform.machine(), f"{sys.version_info.major}.{sys.version_info.minor}")
    has_lean = settings.backend == "aws" or here == ("linux", CONTAINER.machine, CONTAINER.python)
    has_native = settings.backend == "local" or settings.container_egress
    return [slug for slug, is_there in ((NATIVE, has_native), (LEAN, has_lean)) if is_there]

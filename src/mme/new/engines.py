"""Decides how models of SetFit, XGBoost, ONNX and TorchScript are loaded and asked, and how their answers are put."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

from mme.new.loaded import GIVE_ONE, WRITE_IT, Loaded, Unfit, counted, listed, memory_mb, rows_of
from mme.new.probe import Question


def setfit(question: Question) -> Loaded:
    """Sentences; the answer is the likeliest label of each, and how likely it is."""
    texts = question.example
    if texts is None:
        texts = ["Everything was perfect, thank you.", "It broke on the first day."]
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise Unfit("it takes sentences; give one, such as --example '\"It broke on the first day.\"'")
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TQDM_DISABLE="1")
    logging.disable(logging.WARNING)
    from setfit import SetFitModel  # reads the environment

    before_mb = memory_mb()
    model = SetFitModel.from_pretrained(question.file, device="cpu")
    labels = model.model_head.classes_

    def answer(texts: list[Any]) -> dict[str, Any]:
        probabilities = model.predict_proba(texts, as_numpy=True)
        likeliest = labels[probabilities.argmax(axis=1)].tolist()
        return {"predictions": likeliest, "probabilities": probabilities.max(axis=1).round(2).tolist()}

    what = f"a classifier of sentences; it answers one of{listed([str(label) for label in labels])}"
    return Loaded(what, texts, answer, before_mb, tolerance=0.011)


def xgboost(question: Question) -> Loaded:
    """Rows of numbers. The file is written anew, in the format of its package, without names of columns."""
    import numpy as np
    import xgboost

    before_mb = memory_mb()
    booster = xgboost.Booster({"nthread": 1})
    booster.load_model(question.file)
    names = booster.feature_names or []
    booster.feature_names = booster.feature_types = None  # the rows that come have none, and XGBoost insists
    booster.save_model(Path(question.file).with_name("model.ubj"))
    width = int(booster.num_features())
    objective = json.loads(booster.save_config())["learner"]["objective"]["name"]
    what = f"trees of XGBoost ({objective}) of {counted(width, 'number')} a record{listed(names)}"

    def answer(rows: list[Any]) -> dict[str, Any]:
        return {"predictions": booster.predict(xgboost.DMatrix(np.array(rows, dtype=np.float32))).tolist()}

    return Loaded(what, rows_of(question.example, width), answer, before_mb)


def onnx(question: Question) -> Loaded:
    """Rows of numbers, as wide as the one input says, or as the user's record is."""
    import numpy as np
    import onnxruntime  # type: ignore[import-untyped]

    before_mb = memory_mb()
    session = onnxruntime.InferenceSession(question.file, providers=["CPUExecutionProvider"])
    takes = [f"{each.name}: {each.type} {each.shape}" for each in session.get_inputs()]
    first = session.get_inputs()[0]
    if len(takes) > 1 or first.type != "tensor(float)" or len(first.shape) != 2:
        raise Unfit(
            f"it takes {'; '.join(takes)}, and JSON or CSV become one array of rows of 32-bit numbers; export it with "
            f"such an input, or {WRITE_IT}"
        )
    if odd := [each.name for each in session.get_outputs() if not each.type.startswith("tensor(")]:
        raise Unfit(f"its output {odd[0]} is no array, which can't be answered; skl2onnx writes one with zipmap=False")
    count, width = first.shape
    rows = rows_of(question.example, width if isinstance(width, int) else None)
    rows = rows[:count] if isinstance(count, int) else rows
    names = [each.name for each in session.get_outputs()]
    what = f"a graph of {counted(len(rows[0]), 'number')} a record, whose outputs are{listed(names)}"

    def answer(rows: list[Any]) -> dict[str, Any]:
        answered = session.run(None, {first.name: np.array(rows, dtype=np.float32)})
        return _predictions(list(zip(names, answered, strict=True)))

    return Loaded(what, rows, answer, before_mb)


def torchscript(question: Question) -> Loaded:
    """Rows like the user's record: the file doesn't say what it takes."""
    import torch

    if question.example is None:
        raise Unfit(f"a TorchScript file doesn't say what it takes: {GIVE_ONE}")
    before_mb = memory_mb()
    torch.set_num_threads(1)
    try:
        module = torch.jit.load(question.file, map_location="cpu").eval()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise Unfit(
            f"it is no TorchScript ({str(error).strip().splitlines()[0]}); torch.jit.script(network).save writes it, "
            "and a state_dict is no model"
        ) from None
    rows = rows_of(question.example, None)

    def answer(rows: list[Any]) -> dict[str, Any]:
        with torch.inference_mode():
            return _predictions(list(_tensors(module(torch.tensor(rows, dtype=torch.float32)), None)))

    return Loaded(f"a network of {counted(len(rows[0]), 'number')} a record", rows, answer, before_mb)


def _tensors(value: Any, name: str | None) -> Any:
    """The arrays in what a network answers, each with its key."""
    if isinstance(value, dict):
        for key, one in value.items():
            yield from _tensors(one, str(key))
    elif isinstance(value, tuple | list):
        for one in value:
            yield from _tensors(one, None)
    else:
        yield name, value.numpy()


def _predictions(outputs: list[tuple[str | None, Any]]) -> dict[str, Any]:
    """Arrays as the engines that need no handler answer them in JSON (docs/other-models.md)."""
    import numpy as np

    arrays = [(name, np.atleast_1d(array.astype(int) if array.dtype == bool else array)) for name, array in outputs]
    if len(arrays) == 1:
        return {"predictions": arrays[0][1].tolist()}
    return {"predictions": [({"key": name} if name else {}) | {"value": array.tolist()} for name, array in arrays]}

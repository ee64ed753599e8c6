"""What DJL Serving runs for a SetFit classifier: sentences in, a label and its probability for each out.

DJL Serving executes this file several times when a worker starts, so it only imports and defines; the model is loaded
by the first call, which is empty, and stays for those that follow.
"""

import json
import logging
import os
from pathlib import Path

from djl_python import Input, Output

# Read by the libraries when they are imported: the weights are in the package, nothing is to be looked up.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["TQDM_DISABLE"] = "1"
for name in ("setfit", "sentence_transformers", "transformers"):
    logging.getLogger(name).setLevel(logging.ERROR)  # they log paths, and hints for training

from setfit import SetFitModel  # noqa: E402

model = None


def load(model_dir):
    """The model that the package holds."""
    folder = Path(model_dir) / "model"
    if not folder.is_dir():
        raise FileNotFoundError('the package has no folder "model"; save_pretrained writes it')
    return SetFitModel.from_pretrained(str(folder), device="cpu")


def sentences_of(inputs):
    """The sentences that a call holds: plain text is one; JSON has one or a list, alone or as {"inputs": ...}."""
    content_type = (inputs.get_property("content-type") or "application/json").partition(";")[0].strip().lower()
    if content_type == "text/plain":
        body = inputs.get_as_string()
    elif content_type == "application/json":
        body = inputs.get_as_json()
    else:
        raise ValueError(f"content type {content_type}: expected application/json or text/plain")
    if isinstance(body, dict):
        if "inputs" not in body:
            raise ValueError(f'expected {{"inputs": [...]}}, given an object with the keys {sorted(body)}')
        body = body["inputs"]
    sentences = [body] if isinstance(body, str) else body
    expected = "expected shape (records,), one sentence per record"
    if not isinstance(sentences, list) or not sentences:
        raise ValueError(f"{expected}; given {json.dumps(sentences)[:80]}")
    for number, sentence in enumerate(sentences, start=1):
        if isinstance(sentence, list):
            raise ValueError(f"{expected}; given ({len(sentences)}, {len(sentence)}) by record {number}")
        if not isinstance(sentence, str):
            raise ValueError(f"{expected}; record {number} is {json.dumps(sentence)[:80]}, not a text")
    return sentences


def handle(inputs: Input) -> Output | None:
    """Answer {"predictions": [...], "probabilities": [...]}: the likeliest label, and how likely, to 2 decimals."""
    global model
    if model is None:
        model = load(inputs.get_property("model_dir"))
    if inputs.is_empty():
        return None
    try:
        sentences = sentences_of(inputs)
    except ValueError as error:
        return Output().error(str(error), code=400, message="invalid input")
    probabilities = model.predict_proba(sentences, as_numpy=True, show_progress_bar=False)
    labels = model.model_head.classes_[probabilities.argmax(axis=1)]
    answer = {"predictions": labels.tolist(), "probabilities": probabilities.max(axis=1).round(2).tolist()}
    return Output().add_property("content-type", "application/json").add_as_json(answer)

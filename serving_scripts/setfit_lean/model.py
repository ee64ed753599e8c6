"""What DJL Serving runs for a SetFit classifier without SetFit: sentences in, a label and its probability for each out.

DJL Serving executes this file several times when a worker starts, so it only imports and defines; the model is loaded
by the first call, which is empty, and stays for those that follow.
"""

import json
import sys
from pathlib import Path

from djl_python import Input, Output

# The package brings its libraries along, so that nothing is installed when it is loaded.
LIB = str(Path(__file__).parent / "lib")
if LIB not in sys.path:
    sys.path.insert(0, LIB)

from classifier import Classifier  # noqa: E402

model = None


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
        sentence.encode()  # a ValueError where half a character, such as "\ud83d", makes it no text for the tokenizer
    return sentences


def handle(inputs: Input) -> Output | None:
    """Answer {"predictions": [...], "probabilities": [...]}: the likeliest label, and how likely, to 2 decimals."""
    global model
    if model is None:
        model = Classifier(Path(inputs.get_property("model_dir")) / "model")
    if inputs.is_empty():
        return None
    try:
        sentences = sentences_of(inputs)
    except (ValueError, RecursionError) as error:
        return Output().error(str(error), code=400, message="invalid input")
    probabilities = model.probabilities(sentences)
    labels = model.labels[probabilities.argmax(axis=1)]
    answer = {"predictions": labels.tolist(), "probabilities": probabilities.max(axis=1).round(2).tolist()}
    return Output().add_property("content-type", "application/json").add_as_json(answer)

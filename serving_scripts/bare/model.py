"""What DJL Serving runs for this package: JSON in, JSON out. Load your model in `load` and ask it in `predict`.

DJL Serving executes this file several times when a worker starts, so it only imports and defines; the model is loaded
by the first call, which is empty, and stays for those that follow.
"""

from pathlib import Path

from djl_python import Input, Output

model = None


def load(folder: Path):
    """The model, from a file that lies beside this one."""
    return {"name": folder.name}


def predict(model, body):
    """The answer to a call's JSON."""
    return {"echo": body}


def handle(inputs: Input) -> Output | None:
    """Answer a call with JSON; 400 with the reason for a call that can't be read."""
    global model
    if model is None:
        model = load(Path(inputs.get_property("model_dir")))
    if inputs.is_empty():
        return None
    try:
        body = inputs.get_as_json()
    except ValueError as error:
        return Output().error(f"expected JSON: {error}", code=400, message="invalid input")
    return Output().add_property("content-type", "application/json").add_as_json(predict(model, body))

"""Decides in which format a scikit-learn model lies in a package: joblib, which runs whatever is in it, or skops."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal, get_args

from mme.packages.errors import CannotBuild
from mme.packages.layout import write_properties

Format = Literal["joblib", "skops"]

# The name that DJL Serving's own handler has for it: types separated by commas.
TRUSTED_TYPES = "option.skops_trusted_types"


def save_model(folder: Path, model: Any, format: Format = "joblib", trusted: Collection[str] = ()) -> Path:
    """Write a scikit-learn model into a package's folder, as model.joblib or model.skops, and return its path.

    A file of the other format is removed. Of a skops file, types that skops doesn't trust by itself must be named by
    `trusted`, which goes into serving.properties: nothing else is made when the file is read.
    Raises CannotBuild with the names that are missing; ValueError for another format.
    """
    if format not in get_args(Format):
        raise ValueError(f"format={format!r} is none of {', '.join(get_args(Format))}")
    path = folder / f"model.{format}"
    if format == "skops":
        _dump_skops(model, path, trusted)
        write_properties(folder, {TRUSTED_TYPES: ",".join(sorted(trusted))} if trusted else {})
    else:
        import joblib

        joblib.dump(model, path)
    for other in get_args(Format):
        if other != format:
            (folder / f"model.{other}").unlink(missing_ok=True)
    return path


def convert_model(folder: Path, format: Format, trusted: Collection[str] = ()) -> Path:
    """Save the model of a package's folder in another format, by `save_model`.

    What is there is loaded for it: do this with models of your own alone. Raises CannotBuild where there is none.
    """
    saved = folder / "model.joblib"
    if not saved.is_file():
        raise CannotBuild(f"{folder.name} holds no model.joblib to write as {format}; save the model with joblib first")
    import joblib

    return save_model(folder, joblib.load(saved), format, trusted)


def _dump_skops(model: Any, path: Path, trusted: Collection[str]) -> None:
    import skops.io

    data = skops.io.dumps(model)
    if unknown := sorted(set(skops.io.get_untrusted_types(data=data)) - set(trusted)):
        raise CannotBuild(
            f"the model holds types that skops doesn't trust by itself: {', '.join(unknown)}; "
            "name those that you know and trust (trusted=[...], mme pack --trust)"
        )
    path.write_bytes(data)

"""Decides when the exercises of the six notebooks are done."""

from __future__ import annotations

import json
from pathlib import Path

from mme import checking, packages
from mme.exercises.work import NotYet, Work
from mme.lean import NATIVE


def half_in_use(work: Work) -> str:
    """Notebook 00: half of the models are in use at once."""
    share, bill = work["SHARE_IN_USE"], work["bill"]
    if share != 0.5:
        raise NotYet(f"of the models {share:.0%} are in use at once; let it be half of them, in step 2")
    most = bill.iloc[-1]
    if most["multi-model"] * work["LOADED_PER_INSTANCE"] < share * most["tenants"]:
        raise NotYet("the table is of before; run the cells of step 2 again")
    return f"{most['tenants']:.0f} tenants need {most['multi-model']:.0f} instances, and not one each"


def two_columns(work: Work) -> str:
    """Notebook 01: the packed model guesses from two measurements."""
    width = len(json.loads(_example(work, "linear-regression").body)["inputs"][0])
    if width == 1:
        raise NotYet("the packed model takes one number per penguin; train on two columns and pack it again")
    return f"a penguin is {width} numbers now, and {_sound(work, 'linear-regression')}"


def smaller_forest(work: Work) -> str:
    """Notebook 02: the packed forest has a tenth of the trees."""
    import joblib

    name = "extra-trees-classifier"
    saved = _archive(work, name).parent / name / "model.joblib"
    trees = len(joblib.load(saved).estimators_)
    if trees > 50:
        raise NotYet(f"the packed forest has {trees} trees; train one with fewer, down to step 6")
    return f"{trees} trees take {saved.stat().st_size / 1e6:.1f} MB, and {_sound(work, name)}"


def sunglasses(work: Work) -> str:
    """Notebook 03: the packed model answers a fourth question, and the package says which."""
    name = "multi-output-classifier"
    answers = len(_example(work, name).answer["predictions"][0])
    named = json.loads(packages.read(_archive(work, name), ["outputs.json"])["outputs.json"])["predictions"]
    if answers == 3:
        raise NotYet(f"the packed model answers three questions: {', '.join(named)}; a fourth is missing")
    return f"the package answers {', '.join(named)}, and {_sound(work, name)}"


def two_more_sentences(work: Work) -> str:
    """Notebook 04: SetFit has learned from two sentences more, of those that it got wrong."""
    train, test, predicted = work["train"], work["test"], work["predicted"]
    added = test["text"].isin(train["text"])
    if len(train) < 18:
        raise NotYet(f"SetFit has {len(train)} sentences to learn from; add two that it got wrong")
    if added.sum() < 2:
        raise NotYet("what you added isn't among the test sentences; take two that the model got wrong")
    right = (predicted == test["label"])[~added]
    return (
        f"from {len(train)} sentences SetFit gets {right.sum()} of the other {len(right)} right; {_sound(work, NATIVE)}"
    )


def two_instances(work: Work) -> str:
    """Notebook 05: the ballast went to an endpoint of two instances."""
    count = work.settings.instance_count
    if count == 1:
        raise NotYet("the endpoint had one instance; config.ipynb says how many it gets")
    copies, steps = work["copies"], work["steps"]
    there = [copy for copy in copies if copy in steps[copies[-1]]]
    return f"on {count} instances {len(there)} of {len(copies)} ballast copies are in memory at the end"


def _archive(work: Work, name: str) -> Path:
    archive: Path = work.settings.packages_dir / f"{name}.tar.gz"
    if not archive.is_file():
        raise NotYet(f"there is no package {archive.name}; run the notebook from its first cell")
    return archive


def _example(work: Work, name: str) -> packages.Example:
    """The first golden call of a package."""
    examples = packages.examples(_archive(work, name))
    if not examples:
        raise NotYet(f"{name}.tar.gz holds no golden calls; write them before you build it")
    return examples[0]


def _sound(work: Work, name: str) -> str:
    """That the package serves, in words; NotYet with the first fault where it doesn't."""
    report = checking.check(_archive(work, name))
    if not report.ok:
        raise NotYet(f"the package would not serve: {report.findings[0].what}")
    return f"{report.golden_calls} golden calls are answered as before"

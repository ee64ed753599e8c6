"""The exercises of the labs, undone and done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mme import exercises
from mme.labs import costs, traffic

HANDLER = "def handle(inputs):\n    return None\n"
SETTINGS = "engine=Python\nrequired_memory_mb=50\n"


def test_a_patient_with_faults_is_told_their_names_and_not_their_cures():
    patient = {"serving.properties": "engine=Python\nmax_workers=2\n", "model.py": HANDLER.replace("handle", "predict")}
    verdict = exercises.judged("error_clinic", {"patient": patient})
    assert repr(verdict) == "Not yet: the check still finds no-function, misspelt-setting"


def test_a_patient_without_faults_would_serve():
    patient = {"serving.properties": SETTINGS, "model.py": HANDLER}
    assert repr(exercises.judged("error_clinic", {"patient": patient})) == "Done: the package would serve"


MEASURED = {
    "service_s": 0.05,
    "prices": costs.Prices.read(Path(__file__).parents[2] / "notebooks" / "labs" / "prices.toml"),
}


@pytest.mark.parametrize(
    "most_per_s,verdict",
    [
        (None, "Not yet: nothing says yet what `most_per_s` is"),
        (40, "Not yet: for 40 calls a second the plan asks for 2 instances"),
        (20, "Not yet: with 20 calls a second one instance has room for more"),
        (28, "Done: one instance is planned for up to 28 calls a second"),
    ],
)
def test_the_most_that_an_instance_is_planned_for_is_found_to_a_twentieth(most_per_s: float | None, verdict: str):
    found = {} if most_per_s is None else {"most_per_s": most_per_s}
    assert repr(exercises.judged("what_it_costs", MEASURED | found)) == verdict


@pytest.mark.parametrize(
    "safe,hint",
    [
        (lambda old, new: True, "lets a model pass that answers a thousandth"),
        (lambda old, new: False, "refuses a model whose answers differ by a fifth"),
        (
            lambda old, new: 0.75 * sum(old) < sum(new) < 1.25 * sum(old),
            "lets a model pass that is far off in a single",
        ),
        (
            lambda old, new: all(b < 1.25 * a for a, b in zip(old, new, strict=True)) and sum(new) > 0.75 * sum(old),
            "lets a model pass that differs most where it answers least",
        ),
    ],
)
def test_a_rule_that_lets_too_much_or_too_little_pass_is_told_what(safe: Any, hint: str):
    assert hint in exercises.judged("roll_out_and_roll_back", {"safe": safe}).says


def test_a_rule_that_looks_at_every_answer_is_done():
    def safe(old: list[float], new: list[float]) -> bool:
        return all(abs(b - a) <= a / 4 for a, b in zip(old, new, strict=True))

    assert repr(exercises.judged("roll_out_and_roll_back", {})) == "Not yet: nothing defines `safe` yet"
    assert exercises.judged("roll_out_and_roll_back", {"safe": safe}).is_done


POPULAR = {"RATE_PER_S": 48, "SHAPES": {"one": traffic.favouring(60, few=1, share=0.9)}, "ANSWER_MS": 50}


@pytest.mark.parametrize(
    "done,verdict",
    [
        ({}, "Not yet: nothing says yet what `needed` is"),
        ({"needed": 2}, "Not yet: with 2 workers the queue of the popular model grows"),
        ({"needed": 4}, "Not yet: 4 workers are more than it needs"),
        ({"needed": 3}, "Done: 3 workers keep up with 43 calls a second"),
    ],
)
def test_the_workers_that_keep_up_are_the_fewest(done: dict[str, int], verdict: str):
    assert repr(exercises.judged("spiky_traffic", POPULAR | done)) == verdict


@pytest.mark.parametrize(
    "done,verdict",
    [
        ({}, "Not yet: nothing says yet what `enough` is"),
        ({"enough": 0}, "Not yet: with 0 models in memory, more than half of the calls are cold"),
        ({"enough": 3}, "Not yet: with 3 models in memory, more than half of the calls are cold"),
        ({"enough": 5}, "Not yet: fewer than 5 models do it too"),
        ({"enough": 4}, "Done: 4 models in memory make 50 % of the calls warm"),
    ],
)
def test_the_models_that_must_fit_are_the_fewest(done: dict[str, int], verdict: str):
    assert repr(exercises.judged("thousand_tenants", {"trace": [0, 1, 2, 3] * 2} | done)) == verdict

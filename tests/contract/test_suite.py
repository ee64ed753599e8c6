"""The suite itself: what it compares, how it holds handlers, and that its list of differences is the published one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import comparison
import container
import differences
import pytest
import transcript
from container import Answer, Gate


def answer(body: str, status: int = 200, reason: str = "OK", content_type: str = "application/json") -> Answer:
    return Answer(status, reason, (("content-type", content_type), ("x-request-id", "1")), body.encode())


def recording(body: str) -> dict[str, object]:
    return {"status": 200, "reason": "OK", "headers": {"content-type": "application/json"}, "body": body}


SAME = {
    "JSON by value": ('{"a": 1,\n "b": [2]}', '{"b":[2],"a":1}'),
    "folders": ('{"url": "{models}/m"}', '{"url": "/srv/m"}'),
    "identifiers": (
        '{"requestId": "17e84243-95cb-43e4-8eba-edfcf98153ad"}',
        '{"requestId": "00000000-95cb-43e4-8eba-edfcf98153ad"}',
    ),
    "worker numbers": ('[{"id": 35}]', '[{"id": 1}]'),
    "process numbers": ("11562", "7"),
    "the last digit of a prediction": ('{"p": [2.9999999999999996]}', '{"p": [3.0]}'),
    "what Java says of itself": (
        '{"type": "NullPointerException", "message": "a"}',
        '{"type": "NullPointerException"}',
    ),
}
OTHER = {
    "a value": ('{"a": 1}', '{"a": 2}'),
    "a type": ('{"a": 1}', '{"a": "1"}'),
    "true for one": ('{"a": 1}', '{"a": true}'),
    "a key more": ('{"a": 1}', '{"a": 1, "b": 1}'),
    "a key less": ('{"a": 1, "b": 1}', '{"a": 1}'),
    "an order": ("[1, 2]", "[2, 1]"),
    "a text's blank": ("plain", "plain "),
    "a prediction": ('{"p": [2.999]}', '{"p": [3.0]}'),
}


@pytest.mark.parametrize("name", SAME)
def test_what_a_run_may_change_is_not_compared(name: str) -> None:
    recorded, came = SAME[name]
    assert comparison.faults(comparison.recorded(recording(recorded)), comparison.seen(answer(came), "/srv")) == []


@pytest.mark.parametrize("name", OTHER)
def test_everything_else_in_a_body_is_compared(name: str) -> None:
    recorded, came = OTHER[name]
    faults = comparison.faults(comparison.recorded(recording(recorded)), comparison.seen(answer(came), "/srv"))
    assert faults and all(fault.startswith("/body") for fault in faults)


def test_status_reason_and_content_type_are_compared() -> None:
    came = comparison.seen(answer("{}", 201, "Created", "text/plain"), "/srv")
    faults = comparison.faults(comparison.recorded(recording("{}")), came)
    assert [fault.split(":")[0] for fault in faults] == ["/status", "/reason", "/headers/content-type"]


def test_a_gate_holds_a_process_until_it_is_opened_and_shows_its_end(tmp_path: Path) -> None:
    (tmp_path / "gate.py").write_text((transcript.HERE / "gate.py").read_text())
    gate = Gate(tmp_path, "go")
    held = [subprocess.Popen([sys.executable, "-c", "import gate; gate.wait('go')"], cwd=tmp_path) for _ in range(2)]
    gate.expect(2)
    assert not gate.is_deserted()
    gate.let_one_go()
    container.until(lambda: any(process.poll() is not None for process in held), "one went")
    assert [process.poll() for process in held].count(None) == 1
    gate.open()
    assert [process.wait(container.DEADLINE_S) for process in held] == [0, 0]
    gate.expect_deaths()
    gate.close()


def test_a_process_told_to_die_at_a_gate_is_killed(tmp_path: Path) -> None:
    (tmp_path / "gate.py").write_text((transcript.HERE / "gate.py").read_text())
    gate = Gate(tmp_path, "doom")
    doomed = subprocess.Popen(
        [sys.executable, "-c", "import gate; gate.die_at('doom'); input()"], cwd=tmp_path, stdin=subprocess.PIPE
    )
    gate.expect(1)
    gate.open()
    assert doomed.wait(container.DEADLINE_S) == -9
    assert doomed.stdin
    doomed.stdin.close()
    gate.close()


def test_every_recorded_case_has_a_place() -> None:
    assert len(transcript.cases()) == 311
    assert sum(len(cases) for cases in transcript.scenes().values()) == 311


def test_no_recorded_handler_sleeps_in_the_replay() -> None:
    sources = [content for case in transcript.cases().values() for content in case.files().values()]
    assert not [source for source in sources if b"time.sleep" in source]


@pytest.mark.parametrize("difference", differences.differences(), ids=lambda each: each.cases[0])
def test_a_listed_difference_names_cases_and_gives_its_reason(difference: differences.Difference) -> None:
    names = list(transcript.cases())
    for pattern in difference.cases:
        assert any(
            differences.Difference((pattern,), "", "", "", {}).covers(transcript.cases()[name]) for name in names
        )
    assert difference.djl and difference.here and difference.why and difference.answer


def test_the_published_table_is_up_to_date() -> None:
    assert differences.PAGE.read_text() == differences.page()

from __future__ import annotations

import resource
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mme.platform.state import VERSION, HomeInUse, State, StateUnwritable, StateVersion, owner_pid


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    opened = State(tmp_path)
    yield opened
    opened.close()


def test_a_document_is_found_whatever_the_case_of_its_name(state: State) -> None:
    state.put("model", "Penguins", {"a": 1})
    assert state.get("model", "penguins") == {"a": 1}
    assert state.get("endpoint", "penguins") is None
    state.put("model", "PENGUINS", {"a": 2})
    assert state.all("model") == [{"a": 2}]
    state.delete("model", "penguins")
    state.delete("model", "penguins")
    assert state.all("model") == []


def test_changes_made_together_are_made_all_or_not_at_all(state: State) -> None:
    with pytest.raises(ZeroDivisionError), state.together():
        state.put("model", "one", {})
        raise ZeroDivisionError
    assert state.all("model") == []
    with state.together():
        state.put("model", "one", {})
        state.put("tags", "one", {"a": "b"})
    assert state.get("tags", "one") == {"a": "b"}


def test_a_full_disk_refuses_a_change_as_a_whole_and_takes_it_when_there_is_room(state: State) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    state.put("model", "before", {})
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        for change in (lambda: state.put("model", "one", {}), lambda: state.record("iam/one", {"call": 1})):
            with pytest.raises(StateUnwritable, match="make room on its disk"):
                change()
        with pytest.raises(StateUnwritable), state.together():
            state.put("model", "one", {})
            state.put("tags", "one", {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (state.all("model"), state.journal()) == ([{}], [])
    with state.together():
        state.put("model", "one", {})
    assert len(state.all("model")) == 2


def test_a_process_that_is_killed_loses_nothing_and_gives_the_home_back(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys, pathlib; from mme.platform.state import State; "
        "state = State(pathlib.Path(sys.argv[1])); state.put('model', 'one', {'a': 1}); "
        "print('written', flush=True); signal.pause()"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "written\n"
        assert owner_pid(tmp_path) == owner.pid
        with pytest.raises(HomeInUse, match=f"another platform owns {tmp_path}; stop it with `mme down`"):
            State(tmp_path)
        owner.kill()
    assert owner_pid(tmp_path) is None
    state = State(tmp_path)
    assert state.get("model", "one") == {"a": 1}
    state.close()


def test_a_newer_state_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    State(tmp_path).close()
    with sqlite3.connect(tmp_path / "state.db") as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    for _ in range(2):
        with pytest.raises(StateVersion, match=f"state.db has version 99, and this platform understands {VERSION}"):
            State(tmp_path)


def test_an_older_state_gets_what_it_lacks_and_keeps_what_it_has(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "state.db") as database:
        database.executescript(
            """
            CREATE TABLE resource (
                kind TEXT NOT NULL, name TEXT NOT NULL COLLATE NOCASE, document TEXT NOT NULL, PRIMARY KEY (kind, name)
            );
            CREATE TABLE journal (number INTEGER PRIMARY KEY, subject TEXT NOT NULL, call TEXT NOT NULL);
            CREATE INDEX journal_subject ON journal (subject);
            INSERT INTO resource VALUES ('model', 'one', '{"a": 1}');
            INSERT INTO journal (subject, call) VALUES ('role/one', '{"call": "create"}');
            PRAGMA user_version = 1;
            """
        )
    database.close()
    for _ in range(2):
        state = State(tmp_path)
        assert state.get("model", "one") == {"a": 1}
        assert state.journal() == [{"call": "create"}]
        state.describe("bucket", "key", "etag", {"content-type": "text/csv"})
        assert state.description("bucket", "key", "etag") == {"content-type": "text/csv"}
        state.close()


def test_what_is_said_of_an_object_is_said_of_these_bytes_under_this_key_only(state: State) -> None:
    state.describe("bucket", "key", "etag", {"content-type": "text/csv"})
    for bucket, key, etag in (("other", "key", "etag"), ("bucket", "KEY", "etag"), ("bucket", "key", "other")):
        assert state.description(bucket, key, etag) is None
    state.describe("bucket", "key", "other", {})
    assert state.description("bucket", "key", "etag") is None
    assert state.description("bucket", "key", "other") == {}
    state.forget_objects("bucket", ["key", "missing"])
    assert state.description("bucket", "key", "other") is None


def test_a_home_that_was_never_used_has_no_owner(tmp_path: Path) -> None:
    assert owner_pid(tmp_path / "nowhere") is None


def test_of_identical_calls_the_journal_keeps_the_first_and_the_last(state: State) -> None:
    for call in ("create", "put", "create", "delete", "create"):
        state.record("role/one", {"call": call})
    state.record("role/two", {"call": "create"})
    assert [call["call"] for call in state.journal()] == ["create", "put", "delete", "create", "create"]
    state.forget("role/one")
    assert state.journal() == [{"call": "create"}]

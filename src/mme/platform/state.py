"""Decides what survives a restart, and that one process owns a home: a SQLite file beside a lock.

StateError
    HomeInUse           another process owns the home
    HomeNotPrivate      others can write into it
    StateVersion        the file was written by a newer version
    StateUnwritable     the disk takes nothing more
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mme.private import NotPrivate, private

_LOCK = "owner.lock"
_LOCK_PATIENCE_S = 0.5  # somebody who looks whether the home is owned holds the lock for a moment
_FILE = "state.db"

# What each version adds to the one before; an older file gets what it lacks, and nothing here is ever changed.
_VERSIONS = (
    """
    CREATE TABLE resource (
        kind TEXT NOT NULL,
        name TEXT NOT NULL COLLATE NOCASE,
        document TEXT NOT NULL,
        PRIMARY KEY (kind, name)
    );
    CREATE TABLE journal (
        number INTEGER PRIMARY KEY,
        subject TEXT NOT NULL,
        call TEXT NOT NULL
    );
    CREATE INDEX journal_subject ON journal (subject);
    """,
    """
    CREATE TABLE object (
        bucket TEXT NOT NULL,
        key TEXT NOT NULL,
        etag TEXT NOT NULL,
        headers TEXT NOT NULL,
        PRIMARY KEY (bucket, key)
    );
    """,
)
VERSION = len(_VERSIONS)


class StateError(Exception):
    """The state of a home can't be opened; the message says what to do."""


class HomeInUse(StateError):
    pass


class HomeNotPrivate(StateError):
    pass


class StateVersion(StateError):
    pass


class StateUnwritable(StateError):
    """The change was not made; it can be made again."""


def owner_pid(home: Path) -> int | None:
    """The process that owns this home at this moment, None if there is none: the lock goes with its process."""
    try:
        with open(home / _LOCK) as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except BlockingIOError:
        pid = (home / _LOCK).read_text()
        return int(pid) if pid else None  # it is empty for as long as the owner needs to write into it
    return None


def _lock(home: Path) -> int:
    """Take the lock and write this process's id into its file; returns the descriptor that holds it."""
    descriptor = os.open(home / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + _LOCK_PATIENCE_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(descriptor)
                raise HomeInUse(
                    f"another platform owns {home}; stop it with `mme down`, or choose another home"
                ) from None
            time.sleep(0.01)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    return descriptor


class State:
    """Named JSON documents by kind, a journal of calls to repeat, and what is said of objects in S3.

    Each change is on disk when its method returns, or not made at all where it raises StateUnwritable.

    Names are compared without regard to case, as SageMaker compares them. One owner per home: opening raises
    HomeInUse while another process has it, StateVersion for a file that this version does not understand.
    """

    def __init__(self, home: Path) -> None:
        try:
            private(home)
        except NotPrivate as error:
            raise HomeNotPrivate(str(error)) from None
        self._lock = _lock(home)
        try:
            self._database = self._open(home / _FILE)
        except BaseException:
            os.close(self._lock)
            raise

    def _open(self, file: Path) -> sqlite3.Connection:
        # Every statement is its own transaction, unless one is begun.
        database = sqlite3.connect(file, isolation_level=None)
        os.chmod(file, 0o600)
        database.execute("PRAGMA journal_mode = WAL")
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version < VERSION:
            steps = "".join(_VERSIONS[version:])
            database.executescript(f"BEGIN; {steps} PRAGMA user_version = {VERSION}; COMMIT;")
        elif version > VERSION:
            database.close()
            raise StateVersion(
                f"{file} has version {version}, and this platform understands {VERSION}; "
                "use the version that wrote it, or move the file away and begin anew"
            )
        return database

    def close(self) -> None:
        self._database.close()
        os.close(self._lock)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Make the changes inside happen all or, when an exception leaves the block, not at all."""
        self._change("BEGIN IMMEDIATE")
        try:
            yield
            self._change("COMMIT")
        except BaseException:
            if self._database.in_transaction:  # SQLite has rolled back by itself where its disk was full
                self._database.execute("ROLLBACK")
            raise

    def _change(self, statement: str, *values: object) -> None:
        try:
            self._database.execute(statement, values)
        except sqlite3.OperationalError as error:
            raise StateUnwritable(f"the platform's state can't be written ({error}); make room on its disk") from error

    def put(self, kind: str, name: str, document: dict[str, Any]) -> None:
        self._change(
            "INSERT INTO resource (kind, name, document) VALUES (?, ?, ?) "
            "ON CONFLICT (kind, name) DO UPDATE SET document = excluded.document",
            *(kind, name, json.dumps(document)),
        )

    def get(self, kind: str, name: str) -> dict[str, Any] | None:
        row = self._database.execute(
            "SELECT document FROM resource WHERE kind = ? AND name = ?", (kind, name)
        ).fetchone()
        return None if row is None else json.loads(row[0])

    def delete(self, kind: str, name: str) -> None:
        """Forget it; one that isn't there is as good as forgotten."""
        self._change("DELETE FROM resource WHERE kind = ? AND name = ?", kind, name)

    def all(self, kind: str) -> list[dict[str, Any]]:
        rows = self._database.execute("SELECT document FROM resource WHERE kind = ? ORDER BY name", (kind,))
        return [json.loads(document) for (document,) in rows]

    def record(self, subject: str, call: dict[str, Any]) -> None:
        """Add a call to the journal. Of identical calls the first and the last are kept: others may build on either.

        `subject` names what the call configures, so that `forget` can drop all calls about it at once.
        """
        text = json.dumps(call, sort_keys=True)
        with self.together():
            self._change(
                "DELETE FROM journal WHERE subject = ?1 AND call = ?2 "
                "AND number > (SELECT min(number) FROM journal WHERE subject = ?1 AND call = ?2)",
                *(subject, text),
            )
            self._change("INSERT INTO journal (subject, call) VALUES (?, ?)", subject, text)

    def forget(self, subject: str) -> None:
        self._change("DELETE FROM journal WHERE subject = ?", subject)

    def journal(self) -> list[dict[str, Any]]:
        """The recorded calls in their order."""
        return [json.loads(call) for (call,) in self._database.execute("SELECT call FROM journal ORDER BY number")]

    def describe(self, bucket: str, key: str, etag: str, headers: Mapping[str, str]) -> None:
        """Keep what is said of an object, for as long as its bytes have this ETag."""
        self._change(
            "INSERT INTO object (bucket, key, etag, headers) VALUES (?, ?, ?, ?) "
            "ON CONFLICT (bucket, key) DO UPDATE SET etag = excluded.etag, headers = excluded.headers",
            *(bucket, key, etag, json.dumps(headers)),
        )

    def description(self, bucket: str, key: str, etag: str) -> dict[str, str] | None:
        """What is said of the object, None if nothing is known of one with these bytes."""
        row = self._database.execute(
            "SELECT headers FROM object WHERE bucket = ? AND key = ? AND etag = ?", (bucket, key, etag)
        ).fetchone()
        return None if row is None else json.loads(row[0])

    def forget_objects(self, bucket: str, keys: Iterable[str]) -> None:
        with self.together():
            for key in keys:
                self._change("DELETE FROM object WHERE bucket = ? AND key = ?", bucket, key)

    def forget_bucket(self, bucket: str) -> None:
        self._change("DELETE FROM object WHERE bucket = ?", bucket)

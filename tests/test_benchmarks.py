"""The benchmarks' own rules: what counts as an error, what a table shows, when the guard fails."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from benchmarks import guard, load, plots, results, table
from benchmarks.results import Record, Results


class Sometimes(BaseHTTPRequestHandler):
    """Answers what the path says: `/ok`, `/wrong`, `/busy`, or `/gone`, which ends the connection."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/gone":
            self.close_connection = True
            return
        answer = body if self.path != "/wrong" else b"[0]"
        self.send_response(503 if self.path == "/busy" else 200)
        self.send_header("Content-Length", str(len(answer)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@contextmanager
def answering() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Sometimes)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def ask(port: int, *paths: str, calls: int, callers: int = 1) -> load.Result:
    requests = [load.request("POST", path, b"[42]") for path in paths]
    return load.run(port, requests, concurrency=callers, seconds=20, calls=calls, expect=b"42")


def test_every_right_answer_is_counted() -> None:
    with answering() as port:
        result = ask(port, "/ok", calls=30, callers=3)
    assert (result.calls, result.errors, result.first_error) == (30, 0, None)
    assert 0 < (result.p50_ms or 0) <= (result.p99_ms or 0)


def test_a_connection_is_kept_for_the_next_call_unless_the_server_closes_it() -> None:
    with answering() as port:
        connection = load.Connection(port)
        assert connection.ask(load.request("POST", "/ok", b"[42]")) == (200, b"[42]")
        assert connection.stays
        assert connection.ask(load.request("POST", "/ok", b"[42]", [("Connection", "close")])) == (200, b"[42]")
        assert not connection.stays
        connection.close()


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/wrong", "200 [0]"),
        ("/busy", "503 [42]"),
        ("/gone", "the server closed the connection"),
    ],
)
def test_what_is_no_right_answer_is_an_error_and_has_no_latency(path: str, told: str) -> None:
    with answering() as port:
        result = ask(port, "/ok", path, calls=10)
    assert (result.calls, result.errors, result.first_error) == (5, 5, told)


def test_a_server_that_refuses_all_calls_is_given_up() -> None:
    with answering() as port:
        assert ask(port, "/busy", calls=100_000).errors == 100


def speed(peer: str, round: int, p50_ms: float, rps: float) -> Record:
    return {"figure": "speed", "peer": peer, "round": round, "model": "lr", "callers": 1, "p50_ms": p50_ms, "rps": rps}


MEASURED = [
    results.machine(),
    *(speed("ours", number, p50_ms, 5000) for number, p50_ms in enumerate((0.19, 0.17, 0.21), start=1)),
    speed("fastapi", 1, 0.38, 2500),
    {"figure": "memory", "peer": "ours", "round": 1, "model": "lr", "pss_mb": 1234.5},
    {"figure": "not run", "peer": "ray", "round": 1, "parts": ["speed"], "reason": "ray: no wheel for this Python"},
]


def test_the_table_shows_medians_with_machine_and_date_and_a_dash_for_what_was_not_run() -> None:
    lines = table.markdown(Results(MEASURED)).splitlines()
    assert lines[0].startswith("|  | mme | FastAPI | MLServer |")
    row = next(line for line in lines if line.startswith("| warm call, 1 caller"))
    assert row.split(" | ")[1:4] == ["0.19", "0.38", "–"]
    assert any("1,234" in line for line in lines)
    text = "\n".join(lines)
    assert "- not measured: Ray Serve (speed): ray: no wheel for this Python" in text
    assert str(MEASURED[0]["date"]) in text and str(MEASURED[0]["cpu"]) in text and "medians of 3 rounds" in text


def test_the_brief_table_has_the_rows_and_servers_that_compare() -> None:
    lean = {"figure": "cold", "peer": "ours-lean", "round": 1, "model": "lr", "ms": 15}
    private = {"figure": "memory", "peer": "ours", "round": 1, "model": "lr", "pss_mb": 6.7, "private_mb": 6.5}
    whole, brief = (table.markdown(Results([*MEASURED, lean, private]), is_brief) for is_brief in (False, True))
    assert "mme, no pandas" in whole and "of it private" in whole and "not measured" in whole
    assert "mme, no pandas" not in brief and "of it private" not in brief and "not measured" not in brief
    assert "| warm call, 1 caller, LinearRegression: p50, ms | 0.19 | 0.38 |" in brief


def test_the_table_takes_its_place_between_the_marks_and_nothing_else_changes(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    table.write(Results(MEASURED), readme)
    first = readme.read_text()
    table.write(Results(MEASURED), readme)
    assert readme.read_text() == first
    assert first.startswith(f"before\n{table.BEGIN}\n") and first.endswith(f"{table.END}\nafter\n")
    assert "old" not in first
    readme.write_text("no marks\n")
    with pytest.raises(table.NoMarks, match=r"README\.md has no place for the table"):
        table.write(Results(MEASURED), readme)


def test_what_was_written_is_read_again_without_what_has_no_value(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    results.write({"figure": "memory", "peer": "ours", "private_mb": None, "pss_mb": 7.5}, path)
    assert results.read(path).records == [{"figure": "memory", "peer": "ours", "pss_mb": 7.5}]


@pytest.mark.parametrize(
    ("p50_ms", "rps", "slipped"),
    [
        (0.19, 5000, []),
        (0.22, 4200, []),
        (0.30, 5000, ["p50"]),
        (0.19, 3500, ["calls/s"]),
    ],
)
def test_the_guard_fails_when_a_ratio_is_worse_by_more_than_the_margin(
    p50_ms: float, rps: float, slipped: list[str]
) -> None:
    def run(p50_ms: float, rps: float) -> Results:
        one = [speed("ours", 1, p50_ms, rps), speed("fastapi", 1, 0.38, 2500)]
        return Results([*one, *({**record, "callers": 8} for record in one)])

    comparisons = guard.compare(run(0.19, 5000), run(p50_ms, rps), margin=0.25)
    assert [each.ratio.title.rpartition(", ")[2] for each in comparisons if each.has_slipped] == slipped


def test_the_guard_fails_when_a_ratio_can_not_be_measured_any_more() -> None:
    comparisons = guard.compare(Results(MEASURED), Results(MEASURED[:4]), margin=0.25)
    assert [str(each) for each in comparisons if each.has_slipped] == [
        "slipped  LinearRegression, 1 caller, p50: -, kept 0.50"
    ]


def test_a_plot_is_drawn_for_what_there_are_results_of(tmp_path: Path) -> None:
    drawn = plots.draw(Results(MEASURED), tmp_path)
    assert [path.name for path in drawn] == ["warm-calls.png"]
    assert drawn[0].read_bytes().startswith(b"\x89PNG")

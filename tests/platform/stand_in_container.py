"""A small real container for tests: speaks the MME container contract, and fails where a model's `behaviour.json` says.

    python stand_in_container.py FOLDER [--port N] [--mount FROM:TO] [--model-store STORE]

With a port it says nothing about it. A mount is where the container has a folder of the machine. FOLDER is where it
meets the test: `events.jsonl` gets a line for each load, unload and call, gates are files in it.
`behaviour.json` in a model's folder may hold:
    answer          what a call answers
    load_status     the status of a load, with `load_message`; 200 is the default
    load_gate       a load writes FOLDER/<gate>.reached and goes on when FOLDER/<gate> exists
    invoke_gate     the same for calls
    unload_gate     the same for unloads
    invoke_status   the status of a call, with the body `invoke_body`
    exit_in         "load" or "invoke": the container ends there, with os._exit
    size            how much of STAND_IN_CAPACITY it takes; 1 is the default
    pieces          a streamed answer, piece by piece, with `break_off` after them
    frees_after_s   so long after its unload it still takes its size of the capacity
    leaks           an unload leaves a process that nobody owns

Two files in FOLDER play the faults of DJL Serving 0.36: with `fail_<answer>` the model's next call loses its worker,
and the model is FAILED until it is loaded again; with `stop_<answer>` its worker has been killed while idle, which the
container never notices.
"""

import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FOLDER = Path(sys.argv[1])
CAPACITY = int(os.environ.get("STAND_IN_CAPACITY", "1000"))


def option(name: str, default: str = "") -> str:
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else default


def on_disk(path: str) -> Path:
    """Where the machine has a path that the container was told."""
    folder, _, mounted = option("--mount", ":").partition(":")
    return Path(folder) / Path(path).relative_to(mounted) if folder else Path(path)


lock = threading.Lock()
loaded: dict[str, dict] = {}
failed: set[str] = set()
stopped: set[str] = set()
leaving: list[tuple[float, int]] = []  # until when, and how much


def note(**event: object) -> None:
    with lock, (FOLDER / "events.jsonl").open("a") as file:
        file.write(json.dumps(event | {"pid": os.getpid()}) + "\n")


def wait_for_gate(name: str | None) -> None:
    if name:
        (FOLDER / f"{name}.reached").touch()
        while not (FOLDER / name).exists():
            time.sleep(0.01)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        if self.path == "/ping":
            ill = failed or (FOLDER / "ping_fails").exists()
            self.answer(500 if ill else 200, b"{}")
        elif self.path == "/models":
            models = [
                {"modelName": name, "modelUrl": "", "status": "FAILED" if name in failed else "READY"}
                for name in loaded
            ]
            self.answer(200, json.dumps({"models": models}).encode())
        elif (name := self.path.removeprefix("/models/")) in loaded:
            workers = [{"id": 1, "status": "READY"}, {"id": 2, "status": "UNLOADING"}]
            described = {"modelName": name, "workerGroups": [{"workers": workers}]}
            self.answer(200, json.dumps([{"workflowName": name, "models": [described]}]).encode())
        else:
            self.refuse(404, "ResourceNotFoundException", "no such resource")

    def do_DELETE(self) -> None:
        name = self.path.removeprefix("/models/")
        wait_for_gate(loaded.get(name, {}).get("unload_gate"))
        with lock:
            known = loaded.pop(name, None)
            if known is not None and "frees_after_s" in known:
                leaving.append((time.monotonic() + known["frees_after_s"], known.get("size", 1)))
            failed.discard(name)
        note(event="unload", id=name)
        if known is not None and known.get("leaks"):
            leaked = subprocess.Popen(["sleep", "600"])
            note(event="leak", leaked=leaked.pid)
        if known is None:
            self.refuse(404, "ModelNotFoundException", f"Model or workflow not found: {name}")
        else:
            self.answer(200, b'{"status": "unregistered"}')

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/models":
            self.load(json.loads(body))
        elif self.path == "/invocations":
            store = on_disk(option("--model-store", os.environ.get("SERVING_MODEL_STORE", "/opt/ml/model")))
            self.invoke("", json.loads((store / "behaviour.json").read_text()), body)
        else:
            name = self.path.split("/")[2]
            if name not in loaded:
                self.refuse(404, "ModelNotFoundException", f"Model or workflow not found: {name}")
            elif name in failed:
                self.refuse(503, "WlmException", f"Model is not ready: {name}")
            else:
                self.invoke(name, loaded[name], body)

    def load(self, request: dict) -> None:
        name = request["model_name"]
        behaviour = json.loads((on_disk(request["url"]) / "behaviour.json").read_text())
        note(event="load", id=name, answer=behaviour.get("answer"), url=request["url"])
        stopped.discard(name)
        wait_for_gate(behaviour.get("load_gate"))
        if behaviour.get("exit_in") == "load":
            os._exit(3)
        status = behaviour.get("load_status", 200)
        with lock:
            if name in loaded:
                return self.refuse(409, "BadRequestException", f"Workflow {name} is already registered.")
            used = sum(model.get("size", 1) for model in loaded.values())
            used += sum(size for until, size in leaving if time.monotonic() < until)
            if used + behaviour.get("size", 1) > CAPACITY:
                return self.refuse(507, "WlmOutOfMemoryException", "No enough memory to load the model.")
            if status == 200:
                loaded[name] = behaviour
        if status != 200:
            return self.refuse(status, "EngineException", behaviour.get("load_message", ""))
        self.answer(200, json.dumps({"status": f'Model "{name}" registered.'}).encode())

    def invoke(self, name: str, behaviour: dict, body: bytes) -> None:
        note(event="invoke", id=name)
        wait_for_gate(behaviour.get("invoke_gate"))
        if behaviour.get("exit_in") == "invoke":
            os._exit(3)
        if (FOLDER / f"fail_{behaviour.get('answer')}").exists():
            (FOLDER / f"fail_{behaviour.get('answer')}").unlink()
            failed.add(name)
            return self.refuse(503, "WlmException", "Python worker disconnected.")
        if (FOLDER / f"stop_{behaviour.get('answer')}").exists():
            (FOLDER / f"stop_{behaviour.get('answer')}").unlink()
            stopped.add(name)
        if name in stopped:
            return self.refuse(400, "TranslateException", "Backend Python process is stopped.")
        if "pieces" in behaviour:
            return self.stream(behaviour)
        if "invoke_status" in behaviour:
            return self.answer(behaviour["invoke_status"], behaviour.get("invoke_body", "").encode())
        seen = {key.lower(): value for key, value in self.headers.items()}
        said = {"answer": behaviour.get("answer"), "headers": seen, "body": body.decode(), "pid": os.getpid()}
        self.answer(200, json.dumps(said).encode(), {"X-Amzn-SageMaker-Custom-Attributes": "seen=yes"})

    def stream(self, behaviour: dict) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/jsonlines")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for piece in behaviour["pieces"]:
            self.wfile.write(f"{len(piece):x}\r\n{piece}\r\n".encode())
            self.wfile.flush()
        if behaviour.get("break_off"):
            self.close_connection = True
            return
        self.wfile.write(b"0\r\n\r\n")

    def refuse(self, status: int, kind: str, message: str) -> None:
        self.answer(status, json.dumps({"code": status, "type": kind, "message": message}).encode())

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


if __name__ == "__main__":
    if (FOLDER / "start_fails").exists():
        sys.exit("the stand-in was told not to start")
    ThreadingHTTPServer.request_queue_size = 128  # of 5, a burst's connections beyond them wait for seconds
    server = ThreadingHTTPServer(("127.0.0.1", int(option("--port", "0"))), Handler)
    server.daemon_threads = True
    if not option("--port"):
        print(f"listening on http://127.0.0.1:{server.server_port}", flush=True)
    print("a line of the container", flush=True)
    server.serve_forever()

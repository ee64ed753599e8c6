"""What runs as `djl-serving` and `docker` in tests: notes how it was started, and serves the contract on its port.

    python stand_in_programs.py PROGRAM FOLDER ARGUMENT…

FOLDER is where it meets the test: `started.jsonl` gets a line for each start, `docker/` a file for each container.
Like Docker's own, `docker run` is not the container: that has an environment of its own, and outlives a killed `run`.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

PROGRAM, FOLDER, WORDS = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
CONTAINERS = FOLDER / "docker"


def server(port: str, *more: str) -> list[str]:
    program = Path(__file__).with_name("stand_in_container.py")
    return [sys.executable, "-S", str(program), str(FOLDER), "--port", port, *more]


def djl_serving() -> None:
    argv = server(os.environ["SERVING_INFERENCE_ADDRESS"].rpartition(":")[2])
    os.execv(argv[0], argv)


def docker() -> None:
    CONTAINERS.mkdir(exist_ok=True)
    match WORDS[0]:
        case "version":
            if (FOLDER / "no_engine").exists():
                sys.exit("Cannot connect to the Docker daemon")
            print("28.0.0")
        case "ps":
            wanted = WORDS[WORDS.index("--filter") + 1].removeprefix("label=")
            print("\n".join(file.name for file in CONTAINERS.iterdir() if said(file)["label"] == wanted))
        case "rm":
            for file in [CONTAINERS / word for word in WORDS[1:] if (CONTAINERS / word).exists()]:
                end(said(file)["pid"])
                file.unlink()
        case "run":
            options = dict(zip(WORDS, WORDS[1:], strict=False))
            pairs = [pair.partition("=") for name, pair in zip(WORDS, WORDS[1:], strict=False) if name == "--env"]
            given = {name: value if equals else os.environ[name] for name, equals, value in pairs}
            argv = server(options["--publish"].split(":")[1], "--mount", options["--volume"])
            # It begins when it is noted, so that who finds it serving finds its note.
            waiting = ["/bin/sh", "-c", 'read _ && exec "$@"', "sh", *argv]
            child = subprocess.Popen(waiting, env=given, start_new_session=True, stdin=subprocess.PIPE)
            signal.signal(signal.SIGTERM, lambda *_: child.terminate())
            noted = {"label": options["--label"], "pid": child.pid}
            (CONTAINERS / options["--name"]).write_text(json.dumps(noted))
            child.stdin.write(b"\n")
            child.stdin.flush()
            sys.exit(child.wait())


def said(file: Path) -> dict:
    return json.loads(file.read_text())


def end(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # it has ended by itself


if __name__ == "__main__":
    with (FOLDER / "started.jsonl").open("a") as started:
        noted = {"program": PROGRAM, "argv": WORDS, "environment": dict(os.environ)}
        started.write(json.dumps(noted) + "\n")
    djl_serving() if PROGRAM == "djl-serving" else docker()

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import joblib
import numpy as np
import psutil
import pytest
from container import until
from ended import is_gone
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.linear_model import LinearRegression

from mme import checking, packages
from mme.packages import Example

SCRIPTS = Path(__file__).parents[1] / "serving_scripts"


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[None]:
    yield
    checking.close()


@pytest.fixture(autouse=True)
def no_package_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A package's folder without faults: y = 2x + 1."""
    folder = packages.prepare(tmp_path / "line", SCRIPTS / "scikit_learn")
    joblib.dump(LinearRegression().fit(np.array([[0.0], [1.0], [2.0]]), [1.0, 3.0, 5.0]), folder / "model.joblib")
    packages.write_examples(folder, [Example.of_json("one", {"inputs": [[10]]}, {"predictions": [21]})])
    return folder


# Without scikit-learn, whose import takes longer than everything else that a check does.
LIGHT = """
from djl_python import Output

def handle(inputs):
    if inputs.is_empty():
        return None
    return Output().add_as_json({"predictions": [2 * row[0] + 1 for row in inputs.get_as_json()["inputs"]]})
"""


@pytest.fixture
def light(tmp_path: Path) -> Path:
    """The same package, with a handler that needs no library."""
    folder = packages.prepare(tmp_path / "line", SCRIPTS / "scikit_learn")
    (folder / "model.py").write_text(LIGHT)
    packages.write_examples(folder, [Example.of_json("one", {"inputs": [[10]]}, {"predictions": [21]})])
    return folder


def properties(text: str) -> Callable[[Path], None]:
    """Add lines to serving.properties."""

    def spoil(folder: Path) -> None:
        path = folder / "serving.properties"
        path.write_text(path.read_text() + text)

    return spoil


def handler(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "model.py").write_text(text) and None


def requirements(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "requirements.txt").write_text(text) and None


def remove(*names: str) -> Callable[[Path], None]:
    return lambda folder: [(folder / name).unlink() for name in names] and None


def nest(folder: Path) -> None:
    inner = folder / "line"
    inner.mkdir()
    for path in list(folder.iterdir()):
        if path != inner:
            path.rename(inner / path.name)


# The lines of the handler's own serving.properties come before those that a case adds.
LINES = len((SCRIPTS / "scikit_learn" / "serving.properties").read_text().splitlines())
FIRST, SECOND = LINES + 1, LINES + 2

ERRORS: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "a nested folder": (nest, 'in the folder "line" instead of the top level', "build from the folder itself"),
    "no handler": (remove("model.py"), "there is no handler: model.py is missing", "add a model.py"),
    "another handler's name": (
        properties("option.entryPoint=serve.py\n"),
        "there is no handler: serve.py is missing",
        "add a serve.py",
    ),
    "a syntax error": (handler("def handle(inputs)\n"), "model.py is not Python: expected ':' (line 1)", "py_compile"),
    "a source that is nested too deeply": (
        handler("-" * 100_000 + "1\ndef handle(inputs): ...\n"),
        "model.py is not Python: it is nested too deeply",
        "py_compile",
    ),
    "no function": (handler("def predict(inputs): ...\n"), "model.py has no function handle", "define handle(inputs)"),
    "another function's name": (
        properties("option.handler=serve\n"),
        "model.py has no function serve",
        "define serve(inputs)",
    ),
    "an unreadable line": (properties("x=\\u12\n"), f"line {FIRST}: x=\\u12 can't be read", "\\\\ for a backslash"),
    "no number": (
        properties("\n# two\nmaxWorkers=two\n"),
        f"line {LINES + 3}: maxWorkers=two is not a whole number",
        "such as maxWorkers=1",
    ),
    "a number and a blank": (properties("batch_size=1 \n"), "ends in a blank, which DJL Serving keeps", "write a"),
    "a number below the least": (properties("maxWorkers=0\n"), "maxWorkers=0 is less than 1", "write maxWorkers=1 or"),
    "more at least than at most": (
        properties("minWorkers=3\nmaxWorkers=2\n"),
        "minWorkers=3 is more than maxWorkers=2",
        "raise maxWorkers",
    ),
    "a key in another spelling": (
        properties("max_workers=2\n"),
        f"line {FIRST}: max_workers=2 is no setting",
        "write maxWorkers=2",
    ),
    "a forgotten option.": (properties("entryPoint=model.py\n"), "is no setting", "write option.entryPoint=model.py"),
    "an unknown engine": (properties("engine=Pyhton\n"), "engine not found: Pyhton", "write engine=Python"),
    "an engine for large models": (properties("option.rolling_batch=vllm\n"), "large-model engines", "serving_scripts"),
    "a missing requirement": (
        handler("import pandas\ndef handle(inputs):\n    from no_such_module import x\n"),
        "model.py imports no_such_module, which neither the container 0.36.0-cpu-full nor requirements.txt brings",
        "add no_such_module==<version> to requirements.txt",
    ),
    "a missing requirement that is installed here": (
        handler("import pandas\ndef handle(inputs): ...\n"),
        "imports pandas, which neither",
        "add pandas==",
    ),
    "a requirement that is none": (requirements("numpy==\n"), "requirements.txt line 1: numpy== is no req", "PEP 508"),
    "requirements in UTF-16": (
        lambda folder: (folder / "requirements.txt").write_text("joblib==1.5.2\n", "utf-16") and None,
        "requirements.txt is no text in UTF-8; save it as such",
        "PEP 508",
    ),
    "another version required": (
        requirements("scikit-learn==1.5.0\n"),
        "built with scikit-learn 1.7.2, but requirements.txt installs 1.5.0",
        "pip install 'scikit-learn==1.5.0'",
    ),
    "a link": (lambda folder: (folder / "x").symlink_to("model.py"), "a symbolic link", "a folder of plain files"),
    "golden calls that are nested without end": (
        lambda folder: (folder / "examples.json").write_text("[" * 100_000) and None,
        "examples.json in model is not a list of examples",
        "plain files",
    ),
    "golden calls that are none": (
        lambda folder: (folder / "examples.json").write_text("{}x") and None,
        "examples.json",
        "plain files",
    ),
}

WARNINGS: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "a line without =": (properties("oops this\n"), "oops this has no =, and sets oops to 'this'", "write key=value"),
    "no settings": (remove("serving.properties"), "so DJL Serving guesses", "engine=Python"),
    "a setting twice": (properties("engine=Python\n"), "engine was set in line 2 already", "keep one"),
    "no memory": (
        lambda folder: (folder / "serving.properties").write_text("engine=Python\n") and None,
        "doesn't say required_memory_mb",
        "about 100",
    ),
    "a requirement without version": (requirements("joblib\n"), "line 1: joblib isn't pinned", "write joblib=="),
    "no golden calls": (remove("examples.json"), "there are no golden calls", "packages.write_examples"),
}


class Calls:
    """An object whose pickle calls a function when it is loaded."""

    def __init__(self, callee: object, *arguments: object) -> None:
        self.what = (callee, arguments)

    def __reduce__(self) -> object:
        return self.what


def pickled(value: object) -> Callable[[Path], None]:
    return lambda folder: joblib.dump(value, folder / "model.joblib") and None


def of_a_notebook(folder: Path) -> None:
    """A model of a class that was defined where it was trained."""
    (folder / "model.joblib").write_bytes(b"c__main__\nMyModel\n)\x81.")


def in_skops(folder: Path) -> None:
    model = ExtraTreesClassifier(2).fit([[0], [1]], [0, 1])
    packages.save_model(folder, model, "skops", ["sklearn.tree._tree.Tree"])
    packages.write_properties(folder, {"option.skops_trusted_types": ""})


def foreign_lib(folder: Path) -> None:
    """A library built for another system, as pip on a Mac would bring it."""
    info = folder / "lib" / "tiny-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
    (info / "WHEEL").write_text("Wheel-Version: 1.0\nTag: cp311-cp311-macosx_11_0_arm64\n")


ERRORS |= {
    "a pickle that calls the system": (
        pickled(Calls(os.system, "true")),
        "model.joblib would call posix.system when it is loaded, which no model needs",
        "ask who made it",
    ),
    "a pickle that evaluates": (pickled([Calls(eval, "1")]), "would call builtins.eval", "don't load it"),
    "a pickle of a notebook's class": (
        of_a_notebook,
        "needs __main__.MyModel, which was defined in a notebook",
        "a .py file",
    ),
    "a pickle that is none": (
        lambda folder: (folder / "model.joblib").write_bytes(b"\x80\x04 cut") and None,
        "model.joblib can't be read as a pickle",
        "save the model again",
    ),
    "a type that skops was not told to trust": (
        in_skops,
        "model.skops holds types that it isn't trusted with: sklearn.tree._tree.Tree",
        "option.skops_trusted_types=<type>",
    ),
    "a skops file that is none": (
        lambda folder: (folder / "model.skops").write_bytes(b"no zip") and None,
        "model.skops can't be read as skops",
        "save the model again",
    ),
    "a library for another system": (
        foreign_lib,
        "lib/ holds tiny 1.0 for cp311-cp311-macosx_11_0_arm64, which Python 3.11 on Linux x86_64 can't import",
        "mme pack --lib",
    ),
}
WARNINGS["a pickle of a library that the model hasn't"] = (
    lambda folder: (folder / "model.joblib").write_bytes(b"crich.table\nTable\n)\x81.") and None,
    "model.joblib would import rich.table.Table, which is of none of its model's libraries",
    "libraries=[...]",
)


@pytest.mark.parametrize("case", ERRORS)
def test_an_error_is_named_with_its_cure(folder: Path, tmp_path: Path, case: str):
    spoil, what, cure = ERRORS[case]
    spoil(folder)
    report = checking.check(folder)
    assert not report.ok
    assert [f for f in report.findings if f.level == "error" and what in f.what and cure in f.cure], str(report)
    assert str(tmp_path) not in str(report)


TRANSCRIPT = json.loads((Path(__file__).parent / "contract" / "transcript.json").read_text())

# What a running DJL Serving answered to these packages, and what is told here instead.
RECORDED = {
    "load-properties-corrupt": ("serving.properties line 1: ", "before four hexadecimal digits"),
    "load-properties-unknown-engine": ("serving.properties line 1: DJL Serving can't use it: Deep", "engine=Python"),
    "load-properties-min-gt-max": ("minWorkers=3 is more than maxWorkers=1", "raise maxWorkers"),
    "load-syntax-error": ("model.py is not Python: '(' was never closed (line 1)", "py_compile"),
    "load-import-missing": ("model.py imports not_there_xyz, which neither", "to requirements.txt"),
    "load-raise-at-import": ("model.py line 1: its import ends in raise RuntimeError('at import')", "in the handler"),
    "load-raise-at-init": ("model.py line 4: ValueError: bad model", "correct it"),
    "load-memoryerror-at-import": ("model.py line 1: its import ends in raise MemoryError('no mem')", "in the handler"),
    "load-exit-at-init": ("its process exited with code 7", "os._exit"),
    "load-init-returns-dict": ("Invalid output type: <class 'dict'>", "return an Output, or None"),
    "load-no-model-py": ("there is no handler: model.py is missing", "add a model.py"),
    "load-empty-dir": ("pkg holds no files", "folder of plain files"),
    "load-wrong-entrypoint": ("there is no handler: nope.py is missing", "add a nope.py"),
    "load-requirements-bad": (
        "requirements.txt can't be satisfied; pip says: No matching distribution found for joblib==99.99",
        "put the wheel into the folder requirements/",
    ),
    "load-not-enough-memory": ("asks for required_memory_mb=9999999", "set both to what"),
    "load-reserved-memory": ("No enough memory to load the model", "set both to what"),
    "load-slow-init-timeout": ("not loaded within 2 s", "raise option.model_loading_timeout"),
    "load-nested-dir": ('everything lies in the folder "inner"', "build from the folder itself"),
    "load-two-entries": (
        'the package lies in the folder "inner", and other files beside',
        "build from the folder itself",
    ),
    "load-rolling-batch-auto": ("serving.properties line 5: DJL Serving can't use it: option.rolling_batch", "correct"),
}


def recorded(case: str, folder: Path) -> Path:
    """The package of a recorded load; a file that isn't text was recorded by its size alone."""
    folder.mkdir()
    (setup,) = (entry["setup"] for entry in TRANSCRIPT if entry["name"] == case)
    for name, text in setup.items():
        if "/model/" in name:
            path = folder / name.partition("/model/")[2]
            path.parent.mkdir(exist_ok=True)
            path.write_text("key=\\u12\n" if text == "<16 bytes>" else text)
    return folder


@pytest.mark.parametrize("case", RECORDED)
def test_what_djl_serving_failed_at_is_named_with_its_cure(tmp_path: Path, case: str):
    what, cure = RECORDED[case]
    report = checking.check(recorded(case, tmp_path / "pkg"))
    assert not report.ok
    assert [f for f in report.findings if f.level == "error" and what in f.what and cure in f.cure], str(report)
    assert str(tmp_path) not in str(report) and "mme-scratch" not in str(report)


def test_no_recorded_failure_of_a_load_is_left_out():
    failed = {
        entry["name"]
        for entry in TRANSCRIPT
        if re.fullmatch(r"load-[\w-]+", entry["name"]) and entry["response"]["status"] >= 400
    }
    # Its cause was the recording machine's: an environment made from an environment sees neither's packages there.
    assert failed - {"load-enable-venv"} <= RECORDED.keys()


@pytest.mark.parametrize(
    ("version", "fault"),
    [
        ("0.36.0", ""),
        ("0.35.0-cpu-full", ""),
        ("0.34.0", "model.py imports sklearn, which neither the container 0.34.0-cpu-full nor"),
        ("0.29.0", "model.py imports joblib, which neither the container 0.29.0-cpu-full nor"),
    ],
)
def test_a_package_is_checked_for_the_container_it_is_to_serve_in(folder: Path, version: str, fault: str):
    (folder / "model.py").write_text("import joblib, sklearn\n" + LIGHT)
    report = checking.check(folder, checking.container(version))
    assert report.ok == (not fault) and fault in str(report)


def test_a_container_before_the_built_in_handlers_wants_one_in_the_package(folder: Path):
    (folder / "model.py").unlink()
    (folder / "serving.properties").write_text("engine=Python\n")
    report = checking.check(folder, checking.container("0.29.0"))
    assert "the container 0.29.0-cpu-full brings none for scikit-learn's files" in str(report)
    with pytest.raises(ValueError, match="'0.1' is known; there are 0.36.0, "):
        checking.container("0.1")


def test_a_handler_of_another_scikit_learn_is_an_error(folder: Path, tmp_path: Path):
    container = dataclasses.replace(checking.DJL_CPU_FULL, libraries={"scikit-learn": "==1.8.0"}, python="3.14")
    report = checking.check(folder, container)
    assert [finding.what for finding in report.findings] == [
        "the package was built with scikit-learn 1.7.2, but the container 0.36.0-cpu-full has 1.8.0",
        f"model.joblib is a pickle written by Python {packages.describe(folder).python}, "
        "and the container 0.36.0-cpu-full reads it with 3.14",
    ]
    assert "pip install 'scikit-learn==1.8.0', train and build again" in report.findings[0].cure
    assert [finding.level for finding in report.findings] == ["error", "warning"]


def test_a_pickle_is_listed_and_not_loaded(folder: Path, tmp_path: Path):
    trace = tmp_path / "trace"
    joblib.dump([LinearRegression(), Calls(os.system, f"touch {trace}")], folder / "model.joblib", compress=3)
    report = checking.check(folder)
    assert report.imports == {"model.joblib": ("posix.system", "sklearn.linear_model._base.LinearRegression")}
    assert not report.ok and not trace.exists()


def test_a_name_in_a_pickle_cannot_pass_for_a_line_of_the_report(light: Path):
    module, name = "csklearn\u001b[6A\u001b[2K\r", "x\nline: no faults, 1 golden call equal\ud83d"
    texts = [text.encode("utf-8", "surrogatepass") for text in (module, name)]
    opcodes = b"".join(b"\x8c" + bytes([len(text)]) + text for text in texts) + b"\x93."
    (light / "model.joblib").write_bytes(b"\x80\x04" + opcodes)
    report = checking.check(light)
    assert module in report.imports["model.joblib"][0]
    first, *more = str(report).split("\n")
    assert first == "line: errors: 0, warnings: 1, 1 golden call equal"
    assert "csklearn\\x1b[6A\\x1b[2K\\r.x" in more[0]
    assert more[1].startswith("    line: no faults, 1 golden call equal\\ud83d")


def test_a_manifest_whose_version_is_no_text_is_refused_with_its_name(light: Path, tmp_path: Path):
    manifest = {"python": "3.11", "libraries": {"numpy": 2}, "files": {}}
    (light / "manifest.json").write_text(json.dumps(manifest))
    with tarfile.open(tmp_path / "line.tar.gz", "w:gz") as tar:
        tar.add(light, arcname=".")
    (finding,) = checking.check(tmp_path / "line.tar.gz").findings
    assert "manifest.json is not a manifest (numpy: 2 is no text)" in finding.what


def test_a_class_of_the_packages_own_is_its_models(light: Path):
    (light / "mine.py").write_text("class Mine: ...\n")
    (light / "model.joblib").write_bytes(b"cmine\nMine\n)\x81.")
    assert str(checking.check(light)) == "line: no faults, 1 golden call equal"


def test_a_library_of_the_packages_own_is_neither_missing_nor_foreign(light: Path):
    info = light / "lib" / "tiny-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
    (info / "WHEEL").write_text("Wheel-Version: 1.0\nTag: py3-none-any\n")
    (light / "lib" / "tiny.py").write_text("")
    handler = "import sys\nsys.path.insert(0, 'lib')\nimport tiny\n" + LIGHT
    (light / "model.py").write_text(handler)
    assert str(checking.check(light)) == "line: no faults, 1 golden call equal"


def test_what_cannot_be_imported_here_is_checked_but_for_its_golden_calls(light: Path):
    foreign_lib(light)
    (finding,) = checking.checks._golden_calls(light, "line")
    assert finding.level == "warning" and "its start and its golden calls aren't tried" in finding.what


@pytest.mark.parametrize("allowed", ["true", "false"])
def test_another_scikit_learn_is_a_warning_where_the_package_allows_it(folder: Path, allowed: str):
    properties(f"option.allow_version_mismatch={allowed}\n")(folder)
    container = dataclasses.replace(checking.DJL_CPU_FULL, libraries={"scikit-learn": "==1.8.0"})
    report = checking.check(folder, container)
    assert report.ok == (allowed == "true")
    assert "built with scikit-learn 1.7.2, but the container 0.36.0-cpu-full has 1.8.0" in str(report)


def test_requirements_bring_what_they_require(folder: Path):
    (folder / "requirements.txt").write_text("pandas==3.1.1\n")
    (folder / "model.py").write_text("import pandas, dateutil, helper\ndef handle(inputs): raise ValueError(1)\n")
    (folder / "helper.py").touch()
    (folder / "examples.json").unlink()
    (folder / "serving.properties").write_text("maxWorkers=x\n")  # so that no worker is started
    assert [finding.what for finding in checking.check(folder).findings if "imports" in finding.what] == []


def test_a_missing_package_is_not_a_report(tmp_path: Path):
    with pytest.raises(packages.PackageNotFound, match="nothing"):
        checking.check(tmp_path / "nothing.tar.gz")


@pytest.mark.parametrize("case", WARNINGS)
def test_a_warning_lets_the_package_serve(light: Path, case: str):
    spoil, what, cure = WARNINGS[case]
    spoil(light)
    report = checking.check(light)
    assert report.ok, str(report)
    assert [f for f in report.findings if what in f.what and cure in f.cure], str(report)


def test_a_package_without_faults_says_so(folder: Path, tmp_path: Path):
    packages.build(folder, tmp_path / "line.tar.gz")
    reports = [checking.check(tmp_path / "line.tar.gz"), checking.check(folder)]
    assert [str(report) for report in reports] == ["line: no faults, 1 golden call equal"] * 2


def test_a_fork_served_package_is_asked_like_any_other(light: Path, tmp_path: Path):
    packages.build(light, tmp_path / "line.tar.gz", fork_server=True, preload=["numpy"])
    assert str(checking.check(tmp_path / "line.tar.gz")) == "line: no faults, 1 golden call equal"


def test_an_archive_of_other_making_is_checked_too(light: Path, tmp_path: Path):
    with tarfile.open(tmp_path / "line.tar.gz", "w:gz") as tar:
        tar.add(light, arcname=".")
    report = checking.check(tmp_path / "line.tar.gz")
    assert report.ok
    assert report.golden_calls == 1
    assert [finding.what for finding in report.findings] == [
        "there is no manifest.json, so nobody knows with which versions it was made"
    ]


def test_a_golden_call_that_fails_shows_the_difference(light: Path):
    packages.write_examples(
        light,
        [
            Example.of_json("right", {"inputs": [[10]]}, {"predictions": [21]}),
            Example.of_json("wrong", {"inputs": [[10]]}, {"predictions": [22]}),
            Example.of_json("misspelt", {"input": [[10]]}, {"predictions": [21]}),
        ],
    )
    report = checking.check(light)
    assert report.golden_calls == 1
    wrong, misspelt = (finding.what for finding in report.findings)
    assert wrong == 'golden call "wrong": predictions[0]: 21, not 22'
    assert misspelt.startswith('golden call "misspelt": answered 424')
    assert "inputs" in misspelt


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("def handle(inputs):\n    raise ValueError('no weights')\n", "ValueError: no weights"),
        ("import json\njson.nothing\ndef handle(inputs): ...\n", "AttributeError: module 'json' has no attribute"),
        ("import os\nos._exit(3)\ndef handle(inputs): ...\n", "its process exited with code 3"),
        (
            "from djl_python import Output\ndef handle(inputs):\n    return Output().error('weights missing')\n",
            "the init call answered: weights missing",
        ),
        ("import ctypes\ndef handle(inputs):\n    ctypes.string_at(0)\n", "its process was killed by SIGSEGV"),
        ("def handle(inputs):\n    open('weights')\n", "model.py line 2: FileNotFoundError: .*'weights'"),
        ("def load():\n    raise KeyError('x')\n\ndef handle(inputs):\n    load()\n", "model.py line 2: KeyError"),
    ],
)
def test_a_handler_that_cannot_be_loaded_tells_its_own_reason(light: Path, source: str, reason: str):
    (light / "model.py").write_text(source)
    (finding,) = checking.check(light).findings
    assert "its handler can't be loaded" in finding.what
    assert re.search(reason, finding.what)
    with pytest.raises(checking.CannotLoad, match=reason):
        checking.ask(light, "[[1]]")


def test_asking_gives_what_the_handler_answers(folder: Path):
    answer = checking.ask(folder, json.dumps({"inputs": [[0], [1]]}))
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert answer.json()["predictions"] == pytest.approx([1, 3])
    assert json.loads(answer.text) == json.loads(answer.body) == answer.json()


def test_nothing_is_left_when_the_asking_process_ends(light: Path):
    script = (
        "import os, signal, sys, psutil; from pathlib import Path; from mme import checking\n"
        "with checking.served(Path(sys.argv[1])) as model:\n"
        "    print(*(process.pid for process in psutil.Process().children(recursive=True)), flush=True)\n"
        "    exec(sys.argv[2])"
    )
    for ending in ("pass", "sys.exit(1)", "os.kill(os.getpid(), signal.SIGKILL)"):
        run = subprocess.run([sys.executable, "-c", script, light, ending], capture_output=True, text=True)
        pids = [int(pid) for pid in run.stdout.split()]
        assert len(pids) >= 3, run.stderr
        until(lambda pids=pids: all(is_gone(pid) for pid in pids), "all had ended")  # type: ignore[misc]


def test_a_server_that_died_is_replaced(light: Path):
    checking.close()
    before = set(psutil.Process().children(recursive=True))
    assert checking.ask(light, '{"inputs": [[1]]}').status == 200
    for process in set(psutil.Process().children()) - before:
        process.kill()
        process.wait(60)
    assert checking.ask(light, '{"inputs": [[1]]}').status == 200
    checking.close()
    assert set(psutil.Process().children(recursive=True)) <= before


def test_a_package_can_be_asked_twice_at_once(light: Path):
    with checking.served(light) as one, checking.served(light) as other:
        assert one.ask('{"inputs": [[1]]}').json() == other.ask('{"inputs": [[1]]}').json() == {"predictions": [3]}


def test_a_handler_that_does_not_answer_in_time_says_so(light: Path):
    (light / "model.py").write_text(LIGHT.replace("return None", "return None\n    import time; time.sleep(600)"))
    with pytest.raises(checking.CheckError, match="no answer within 3 s"), checking.served(light, timeout_s=3) as model:
        model.ask('{"inputs": [[1]]}')


def test_one_worker_answers_several_questions(light: Path):
    (light / "model.py").write_text(
        "import os\nfrom djl_python import Output\ndef handle(inputs):\n    return Output().add(str(os.getpid()))\n"
    )
    with checking.served(light) as model:
        pids = {model.ask("{}").text for _ in range(3)}
    (pid,) = pids
    until(lambda: is_gone(int(pid)), "the worker had ended")


def test_a_notebooks_event_loop_is_not_in_the_way(light: Path):
    import asyncio

    async def cell() -> int:
        return checking.ask(light, '{"inputs": [[1]]}').status

    assert asyncio.run(cell()) == 200


def test_the_folder_that_is_checked_stays_as_it_was(light: Path):
    before = {path: path.read_bytes() for path in light.rglob("*")}
    checking.check(light)
    assert {path: path.read_bytes() for path in light.rglob("*")} == before
    shutil.rmtree(light)

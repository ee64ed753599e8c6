from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mme.server import config, properties
from mme.server.errors import InvalidValue, JavaFailure, LoadFailed, ModelNotFound, NotANumber

HANDLER = "def handle(inputs):\n    return None\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a=1\nb=2", {"a": "1", "b": "2"}),
        ("a:1\nb 2\nc\t=\t3", {"a": "1", "b": "2", "c": "3"}),
        ("a = = 1", {"a": "= 1"}),
        ("# note\n! note\n\n  \t\na=1", {"a": "1"}),
        ("a=1  ", {"a": "1  "}),
        ("a=one,\\\n    two", {"a": "one,two"}),
        ("a=one\\\\\nb=2", {"a": "one\\", "b": "2"}),
        ("a=one\\\n# not a comment", {"a": "one# not a comment"}),
        ("a=1\\", {"a": "1"}),
        ("a=1\r\nb=2\rc=3", {"a": "1", "b": "2", "c": "3"}),
        ("k\\=e\\:y\\ s=v", {"k=e:y s": "v"}),
        ("a=\\u0041\\t\\q", {"a": "A\tq"}),
        ("key", {"key": ""}),
        ("=value", {"": "value"}),
        ("a=1\na=2", {"a": "2"}),
        ("this is not properties", {"this": "is not properties"}),
    ],
)
def test_properties_are_read_as_java_reads_them(text: str, expected: dict[str, str]) -> None:
    assert properties.parse(text) == expected


@pytest.mark.parametrize("text", ["a=\\u12", "a=\\uzzzz", "\\u=1"])
def test_a_malformed_escape_is_refused_in_javas_words(text: str) -> None:
    with pytest.raises(InvalidValue, match="Malformed"):
        properties.parse(text)


@given(st.text())
def test_no_text_does_worse_than_be_refused(text: str) -> None:
    try:
        properties.parse(text)
    except InvalidValue:
        assert "\\u" in text


def test_a_file_is_latin_1(tmp_path: Path) -> None:
    (tmp_path / "serving.properties").write_bytes(b"a=\xe9")
    assert properties.read(tmp_path / "serving.properties") == {"a": "é"}


def read(folder: Path, environ: dict[str, str] | None = None, **request: object) -> config.ModelConfig:
    container = config.ContainerConfig.from_environ(environ or {})
    return config.read(config.LoadRequest("m", str(folder), **request), container)  # type: ignore[arg-type]


def package(folder: Path, settings: str | None = None, *, handler: str | None = "model.py") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if settings is not None:
        (folder / "serving.properties").write_text(settings)
    if handler:
        (folder / handler).write_text(HANDLER)
    return folder


def test_without_settings_the_defaults_are_djls(tmp_path: Path) -> None:
    model = read(package(tmp_path))
    assert (model.min_workers, model.batch_size, model.queue_size, model.retry_threshold) == (1, 1, 1000, 0)
    assert (model.max_idle_s, model.max_batch_delay_s, model.predict_timeout_s, model.load_timeout_s) == (
        60,
        0.1,
        120,
        240,
    )
    assert (model.entry_point, model.handler, model.python, model.required_mb) == ("model.py", "handle", None, None)


def test_the_init_call_sees_options_without_their_prefix_and_without_env(tmp_path: Path) -> None:
    model = read(package(tmp_path, "engine=Python\noption.foo=bar\nminWorkers=1\noption.env=A=1,B=2,C\n"))
    assert model.properties == {"engine": "Python", "foo": "bar", "minWorkers": "1", "handler": "handle"}
    assert model.env == {"A": "1", "B": "2"}


def test_the_request_wins_over_the_file_and_the_file_over_the_environment(tmp_path: Path) -> None:
    folder = package(tmp_path, "batch_size=2\noption.foo=file\nminWorkers=2\nmaxWorkers=4\n")
    environ = {"SERVING_BATCH_SIZE": "3", "SERVING_JOB_QUEUE_SIZE": "7", "OPTION_FOO": "env", "OPTION_BAR": "env"}
    model = read(folder, environ, batch_size=5)
    assert (model.batch_size, model.queue_size) == (5, 7)
    assert (model.properties["foo"], model.properties["bar"]) == ("file", "env")
    assert read(folder, {**environ, "SAGEMAKER_NUM_MODEL_WORKERS": "3"}).max_workers == 3
    assert (model.min_workers, model.max_workers) == (2, 4)


def test_only_option_entrypoint_names_the_entry_point_in_the_environment(tmp_path: Path) -> None:
    folder = package(tmp_path)
    assert read(folder, {"OPTION_ENTRYPOINT": "serve.py"}).entry_point == "serve.py"
    assert read(folder, {"OPTION_ENTRY_POINT": "serve.py"}).entry_point == "model.py"


@pytest.mark.parametrize("line", ["minWorkers=abc", "maxWorkers=1 ", "batch_size=1.5", "job_queue_size="])
def test_what_is_not_a_whole_number_is_refused(tmp_path: Path, line: str) -> None:
    with pytest.raises(NotANumber, match="For input string"):
        read(package(tmp_path, line + "\n"))


@pytest.mark.parametrize("line", ["option.rolling_batch=auto", "option.mpi_mode=true"])
def test_settings_of_large_model_engines_fail_the_load(tmp_path: Path, line: str) -> None:
    with pytest.raises(LoadFailed, match="large-model"):
        read(package(tmp_path, line + "\n"))
    assert read(package(tmp_path, "option.rolling_batch=disable\n")).handler == "handle"


def test_an_unknown_engine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidValue, match="Deep learning engine not found: Foo"):
        read(package(tmp_path, "engine=Foo\n"))


@pytest.mark.parametrize(
    ("files", "error"),
    [
        ([], "Failed to detect engine"),
        (["weights.bin"], "Failed to detect engine"),
        (["inner/model.py", "README.txt"], "Failed to detect engine"),
    ],
)
def test_a_folder_that_no_engine_knows_is_no_model(tmp_path: Path, files: list[str], error: str) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    with pytest.raises(ModelNotFound, match=error):
        read(tmp_path)


def test_engine_python_without_a_handler_is_named(tmp_path: Path) -> None:
    with pytest.raises(JavaFailure, match="py file not found in"):
        read(package(tmp_path, "engine=Python\n", handler=None))


@pytest.mark.parametrize("name", ["model.joblib", "model.skops", "model.pkl"])
def test_a_scikit_learn_file_alone_gets_the_built_in_handler(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    assert read(tmp_path).entry_point == "djl_python.sklearn_handler"
    package(tmp_path)
    assert read(tmp_path).entry_point == "model.py"


def test_a_url_may_be_a_path_a_file_url_a_parent_or_end_in_a_slash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = package(tmp_path / "m" / "model")
    monkeypatch.chdir(tmp_path)
    for url in (f"{folder}", f"{folder}/", f"file://{folder}", f"file:{folder}", f"{folder.parent}", "m/model", "m"):
        assert config.model_dir(url) == folder, url
    for url in ("", "nope/x", f"{folder}/nope", "s3://bucket/x"):
        with pytest.raises(ModelNotFound, match="Invalid model url"):
            config.model_dir(url)


def test_an_interpreter_is_searched_where_djl_searches_it(tmp_path: Path) -> None:
    folder = package(tmp_path, "option.pythonExecutable=./fork_python\n")
    assert read(folder).python == str(folder / "fork_python")
    package(tmp_path, "option.pythonExecutable=no-such-python\n")
    assert read(folder).python == "no-such-python"


def test_a_container_reads_its_own_variables() -> None:
    container = config.ContainerConfig.from_environ(
        {"SAGEMAKER_MULTI_MODEL": "true", "MME_MEMORY_BUDGET_MB": "512", "MME_FORK": "off"}
    )
    assert (container.multi_model, container.memory_budget_mb, container.fork) == (True, 512, False)
    with pytest.raises(ValueError, match="MME_MEMORY_BUDGET_MB=lots"):
        config.ContainerConfig.from_environ({"MME_MEMORY_BUDGET_MB": "lots"})

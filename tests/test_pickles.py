"""What a pickle would import, read without loading it: everything that Python's own unpickler asks for is found."""

from __future__ import annotations

import gzip
import io
import os
import pickle
from collections import Counter, OrderedDict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler

from mme.checking import pickles
from mme.checking.pickles import Import, PickleError

ROWS = np.arange(40.0).reshape(20, 2)
OBJECTS: dict[str, Any] = {
    "a forest": ExtraTreesClassifier(5).fit(ROWS, np.where(ROWS[:, 0] > 20, "a", "b")),
    "a pipeline": make_pipeline(StandardScaler(), FunctionTransformer(np.log1p)),
    "words": TfidfVectorizer().fit(["one two", "two three"]),
    "categories": OneHotEncoder().fit([["a", 1], ["b", 2]]),
    "arrays": [np.zeros(3), np.asfortranarray(ROWS), np.array("text"), np.array(["2020-01-01"], "M8[D]"), np.zeros(0)],
    "objects in arrays": np.array([{1: np.ones(2)}, np.array([datetime.now(UTC)], dtype=object)], dtype=object),
    "a structured array with objects": np.zeros(3, dtype=[("a", "f4"), ("b", "O")]),
    "containers": {
        "a": (1, 2.5, True, None, b"x", bytearray(b"y" * 9), {1}, frozenset([2])),
        "o": OrderedDict(a=Counter("x")),
    },
}


class Asking(pickle.Unpickler):
    """Python's own, which notes what it is asked to look up."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self.asked: set[str] = set()

    def find_class(self, module: str, name: str) -> Any:
        self.asked.add(f"{module}.{name}")
        return super().find_class(module, name)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", OBJECTS)
def test_everything_that_python_would_look_up_is_found(tmp_path: Path, name: str, protocol: int):
    data = pickle.dumps(OBJECTS[name], protocol)
    (tmp_path / "x.pkl").write_bytes(data)
    asking = Asking(data)
    asking.load()
    translated = {text.replace("__builtin__.", "builtins.").replace("copy_reg.", "copyreg.") for text in asking.asked}
    assert {str(found) for found in pickles.imports(tmp_path / "x.pkl")} == translated


@pytest.mark.parametrize("compress", [0, *((method, 3) for method in ("zlib", "gzip", "bz2", "lzma", "xz"))])
@pytest.mark.parametrize("name", OBJECTS)
def test_joblib_files_are_read_through_their_arrays_and_compressions(tmp_path: Path, name: str, compress):
    """Behind each array comes a class that is nowhere else, so that an array read too far or too short shows."""
    joblib.dump([OBJECTS[name], np.ones(5), OrderedDict()], tmp_path / "x.joblib", compress=compress)
    found = {str(each) for each in pickles.imports(tmp_path / "x.joblib")}
    assert {"collections.OrderedDict", "joblib.numpy_pickle.NumpyArrayWrapper"} <= found
    plain = Asking(pickle.dumps(OBJECTS[name]))
    plain.load()
    machinery = {"numpy._core.numeric._frombuffer", "numpy._core.multiarray._reconstruct"}  # how pickle stores arrays
    assert plain.asked - machinery <= found


class Calls:
    def __init__(self, callee: Any, *arguments: Any) -> None:
        self.what = (callee, arguments)

    def __reduce__(self) -> Any:
        return self.what


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_calls_is_seen_and_not_run(tmp_path: Path, protocol: int):
    trace = tmp_path / "trace"
    (tmp_path / "x.pkl").write_bytes(pickle.dumps([1, Calls(os.system, f"touch {trace}")], protocol))
    found = pickles.imports(tmp_path / "x.pkl")
    assert Import("posix", "system") in found
    assert not trace.exists()
    pickle.loads((tmp_path / "x.pkl").read_bytes())
    assert trace.exists()


# Pickles as an attacker writes them, by hand, and what is looked up by them that a model has no use for.
BY_HAND: dict[str, tuple[bytes, str]] = {
    "GLOBAL": (b"cposix\nsystem\n(S'true'\ntR.", "posix.system"),
    "INST": (b"(S'true'\niposix\nsystem\n.", "posix.system"),
    "OBJ": (b"(cposix\nsystem\nS'true'\no.", "posix.system"),
    "STACK_GLOBAL": (b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R.", "posix.system"),
    "STACK_GLOBAL from the memo": (
        b"\x80\x04\x8c\x05posix\x940\x8c\x06system\x940h\x00h\x01\x93\x8c\x04true\x85R.",
        "posix.system",
    ),
    "NEWOBJ": (b"\x80\x02cposix\nsystem\nU\x04true\x85\x81.", "posix.system"),
    "NEWOBJ_EX": (b"\x80\x04cposix\nsystem\n\x8c\x04true\x85}\x92.", "posix.system"),
    "Python 2's name": (b"c__builtin__\neval\n(S'1'\ntR.", "builtins.eval"),
    "a library's os": (b"\x80\x04\x8c\x13joblib.numpy_pickle\x8c\x09os.system\x93\x8c\x04true\x85R.", "os.system"),
    "after a first answer is on the stack": (b"N0cposix\nsystem\n(S'true'\ntR.", "posix.system"),
    "in BUILD's state": (b"csklearn.svm\nSVC\n)\x81(S'a'\ncposix\nsystem\n(S'true'\ntRdb.", "posix.system"),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_no_opcode_hides_a_call(tmp_path: Path, name: str):
    data, looked_up = BY_HAND[name]
    (tmp_path / "x.pkl").write_bytes(data)
    found = pickles.imports(tmp_path / "x.pkl")
    assert [each for each in found if str(each).endswith(looked_up) and each.is_standard and not each.is_harmless]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "EOFError"),
        (b"no pickle", "can't be read"),
        (pickle.dumps(list(range(999)))[:-9], "can't be read"),
        (b"\x82\x01.", "extension code 1"),
        (b"(I1\nI2\nlR.", "can't be read"),
        (b"K\x01(tR.", "it calls a int"),
        (b"\x80\x05\x96" + (1 << 40).to_bytes(8, "little") + b"x.", "can't be read"),
        (b"\x8e" + (1 << 40).to_bytes(8, "little") + b"x.", "can't be read"),
        (b"\x95" + (1 << 62).to_bytes(8, "little") + b"N.", "can't be read"),
        (b"\x78\x9c no zlib", "can't be read"),
        (b"\x1f\x8b no gzip", "can't be read"),
        (b"BZh9 no bz2", "can't be read"),
        (b"\xfd7zXZ\x00 no xz", "can't be read"),
        (b"\x04\x22\x4d\x18 lz4", "compressed by lz4"),
        (b"0.", "can't be read"),
    ],
)
def test_what_cannot_be_read_says_why(tmp_path: Path, data: bytes, reason: str):
    (tmp_path / "x.pkl").write_bytes(data)
    with pytest.raises(PickleError, match=reason):
        pickles.imports(tmp_path / "x.pkl")


def short(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return (b"\x8c" if isinstance(text, str) else b"C") + bytes([len(data)]) + data


def an_array(
    dtype: bytes, alignment: bytes = b"N", made: bytes = b"cjoblib.numpy_pickle\nNumpyArrayWrapper\n)\x81"
) -> bytes:
    """The opcodes of joblib's wrapper around an array of eight items, without the array that follows."""
    items = {"subclass": b"cnumpy\nndarray\n", "shape": b"K\x08\x85", "order": short("C"), "dtype": dtype}
    items |= {"allow_mmap": b"\x89", "numpy_array_alignment_bytes": alignment}
    return made + b"}(" + b"".join(short(name) + value for name, value in items.items()) + b"ub"


def a_dtype(
    text: str, flags: int = 0, size: bytes = b"J\xff\xff\xff\xff", version: int = 3, copy: bytes = b"\x88"
) -> bytes:
    state = b"(K" + bytes([version]) + short("|") + b"NNN" + size + b"J\xff\xff\xff\xffK" + bytes([flags]) + b"tb"
    return b"cnumpy\ndtype\n" + short(text) + b"\x89" + copy + b"\x87R" + state


CALL = b"cposix\nsystem\n" + short("true") + b"\x85R."
WRAPPER = b"cjoblib.numpy_pickle\nNumpyArrayWrapper\n"
# Files whose arrays joblib reads otherwise than they say: what it takes for opcodes would be passed over as numbers.
FORGED: dict[str, bytes] = {
    "objects that say they are numbers": an_array(a_dtype("O8")) + CALL,
    "numbers that say they are objects": an_array(a_dtype("f8", flags=1)) + b"N." + CALL,
    "records of NumPy's own type that say they hold objects": an_array(a_dtype("V8", 1, b"K\x08", copy=b"\x89")) + CALL,
    "texts of another size": an_array(a_dtype("S8", size=b"K\x01")) + CALL,
    "a state of the version before NumPy 1": an_array(a_dtype("f8", version=2)) + CALL,
    "a state that is set twice": an_array(a_dtype("f8") + a_dtype("f8").partition(b"R")[2]) + CALL,
    "another library's type": an_array(b"cmine\ndtype\n" + a_dtype("f8").partition(b"dtype\n")[2]) + CALL,
    "an array in the pickle of an array's objects": an_array(a_dtype("O8", 63)) + an_array(a_dtype("f8")) + CALL,
    "a wrapper that partial makes": an_array(a_dtype("f8"), made=b"cfunctools\npartial\n" + WRAPPER + b"\x85R)R")
    + CALL,
    "a wrapper by the way of its class": an_array(
        a_dtype("f8"), made=b"c__builtin__\ntype\n" + WRAPPER + b")\x81\x85R)\x81"
    )
    + CALL,
    "a wrapper with arguments": an_array(a_dtype("f8"), made=WRAPPER + b"N\x85R") + CALL,
    "a wrapper of joblib's old kind": b"cjoblib.numpy_pickle_compat\nNDArrayWrapper\n)\x81}b.",
    "arguments that are made by a call": b"cfunctools\npartial\nc__builtin__\ntuple\n)RR.",
}


@pytest.mark.parametrize("name", FORGED)
def test_an_array_that_is_not_what_it_says_is_refused(tmp_path: Path, name: str):
    (tmp_path / "x.joblib").write_bytes(b"\x80\x04" + FORGED[name] + bytes(64) + b".")
    with pytest.raises(PickleError, match="UnpicklingError"):
        pickles.imports(tmp_path / "x.joblib")


@pytest.mark.parametrize(
    ("dtype", "array"),
    [
        (a_dtype("f8"), bytes(64)),
        (a_dtype("S8", size=b"K\x08"), bytes(64)),
        (a_dtype("V8", size=b"K\x08"), bytes(64)),
        (a_dtype("O8", flags=63), b"N."),
        (a_dtype("V8", flags=63, size=b"K\x08"), b"N."),
    ],
)
def test_behind_an_array_that_is_what_it_says_a_call_is_seen(tmp_path: Path, dtype: bytes, array: bytes):
    (tmp_path / "x.joblib").write_bytes(b"\x80\x04" + an_array(dtype) + array + CALL)
    assert Import("posix", "system") in pickles.imports(tmp_path / "x.joblib")


NESTED = b"K\x00" + b"2\x86" * 60  # a tuple of a tuple of … whose hash takes as many steps as 2**60


@pytest.mark.parametrize("items", [b"}%bK\x01s", b"}(%bK\x01u", b"(%bK\x01d", b"\x8f(%b\x90", b"(%b\x91"])
def test_a_key_that_takes_for_ever_to_hash_costs_nothing(tmp_path: Path, items: bytes):
    (tmp_path / "x.pkl").write_bytes(b"\x80\x04" + items % NESTED + b"0" + CALL)
    assert Import("posix", "system") in pickles.imports(tmp_path / "x.pkl")


def test_opcodes_that_inflate_without_end_are_not_kept(tmp_path: Path):
    with gzip.open(tmp_path / "x.pkl", "wb") as file:
        file.write(pickle.dumps([bytes(6 * 2**20 + each) for each in range(4)]))
    with pytest.raises(PickleError, match="what isn't arrays in it is larger than 16777216 bytes"):
        pickles.imports(tmp_path / "x.pkl")


def test_a_file_that_inflates_without_end_is_not_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    joblib.dump(np.zeros(1_000_000), tmp_path / "x.joblib", compress=("gzip", 9))
    monkeypatch.setattr(pickles, "_READABLE_BYTES", 1_000_000)
    with pytest.raises(PickleError, match="holds more than 1000000 bytes"):
        pickles.imports(tmp_path / "x.joblib")


SAVED = pickle.dumps(OBJECTS["a pipeline"])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, len(SAVED) - 1), st.integers(0, 255)), max_size=4), st.binary(max_size=60))
def test_a_damaged_pickle_is_read_or_named(tmp_path: Path, changes: list[tuple[int, int]], tail: bytes):
    data = bytearray(SAVED)
    for index, value in changes:
        data[index] = value
    for content in (bytes(data), tail, b"\x80\x04" + tail + b"."):
        (tmp_path / "x.pkl").write_bytes(content)
        try:
            pickles.imports(tmp_path / "x.pkl")
        except PickleError as error:
            assert "x.pkl can't be read as a pickle" in str(error)


@pytest.mark.parametrize(
    ("module", "name", "is_harmless", "is_standard"),
    [
        ("collections", "OrderedDict", True, True),
        ("builtins", "set", True, True),
        ("builtins", "eval", False, True),
        ("builtins", "getattr", False, True),
        ("pathlib", "Path.write_text", False, True),
        ("sklearn.linear_model._base", "LinearRegression", False, False),
        ("sklearn.utils", "Outer.Inner", False, False),
        ("joblib.numpy_pickle", "os.system", False, True),
    ],
)
def test_names_of_the_standard_library_are_told_from_a_models(
    module: str, name: str, is_harmless: bool, is_standard: bool
):
    assert (Import(module, name).is_harmless, Import(module, name).is_standard) == (is_harmless, is_standard)

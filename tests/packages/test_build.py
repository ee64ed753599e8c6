from __future__ import annotations

import gzip
import hashlib
import os
import random
import tarfile
from pathlib import Path

import pytest

from mme import forkserver, packages


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny"
    (folder / "model").mkdir(parents=True)
    (folder / "serving.properties").write_text("engine=Python\n")
    (folder / "model.py").write_text("import numpy as np\nfrom sklearn.svm import SVC\nfrom helper import x\n")
    (folder / "helper.py").write_text("import json\nimport djl_python\nx = 1\n")
    (folder / "requirements.txt").write_text("# ours\n-f requirements\njoblib==1.0  # old\nno-such-distribution\n")
    (folder / "model" / "weights.bin").write_bytes(random.Random(1).randbytes(300_000))
    (folder / "model" / "zeros.bin").write_bytes(bytes(700_000))
    (folder / "empty").touch()
    return folder


def test_the_same_files_give_the_same_bytes(folder: Path, tmp_path: Path):
    packages.build(folder, tmp_path / "one.tar.gz")
    twin = tmp_path / "elsewhere" / "other name"
    twin.mkdir(parents=True)
    for name in reversed(packages.names(tmp_path / "one.tar.gz")):
        if name != "manifest.json":
            (twin / name).parent.mkdir(exist_ok=True)
            (twin / name).write_bytes((folder / name).read_bytes())
            os.utime(twin / name, (1, 1))
    (twin / "model" / "weights.bin").chmod(0o600)  # as safetensors leaves it
    packages.build(twin, tmp_path / "two.tar.gz")
    assert (tmp_path / "one.tar.gz").read_bytes() == (tmp_path / "two.tar.gz").read_bytes()


def test_the_archive_says_nothing_of_who_built_it_and_when(folder: Path, tmp_path: Path):
    archive = tmp_path / "tiny.tar.gz"
    (folder / "run.sh").write_text("true\n")
    (folder / "run.sh").chmod(0o700)
    packages.build(folder, archive)
    assert archive.read_bytes()[3:10] == bytes([0, 0, 0, 0, 0, 0, 255])
    with tarfile.open(archive) as tar:
        members = tar.getmembers()
    assert {(m.uid, m.gid, m.uname, m.gname, m.mtime) for m in members} == {(0, 0, "", "", 315532800)}
    assert {m.name: m.mode for m in members if m.mode != 0o644} == {"run.sh": 0o755}
    assert [m.name for m in members] == sorted(m.name for m in members)


def test_what_a_check_has_to_name_can_be_built_with(folder: Path, tmp_path: Path):
    (folder / "requirements.txt").write_text("joblib==1.0\n", "utf-16")
    (folder / "helper.py").write_text("-" * 100_000 + "1\n")
    assert "numpy" in packages.build(folder, tmp_path / "tiny.tar.gz").libraries


def test_other_tools_read_it(folder: Path, tmp_path: Path):
    archive = tmp_path / "tiny.tar.gz"
    packages.build(folder, archive)
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path / "out", filter="data")
    assert (tmp_path / "out/model/weights.bin").read_bytes() == (folder / "model/weights.bin").read_bytes()
    assert len(gzip.decompress(archive.read_bytes())) % 10240 == 0


def test_what_compresses_is_compressed_and_what_does_not_is_stored(folder: Path, tmp_path: Path):
    packages.build(folder, tmp_path / "tiny.tar.gz")
    size_bytes = (tmp_path / "tiny.tar.gz").stat().st_size
    assert 300_000 < size_bytes < 310_000


def test_the_manifest_names_files_python_and_libraries(folder: Path, tmp_path: Path):
    archive = tmp_path / "tiny.tar.gz"
    manifest = packages.build(folder, archive, libraries=["pandas"])
    assert packages.describe(archive) == manifest
    assert sorted(manifest.libraries) == ["joblib", "numpy", "pandas", "scikit-learn"]
    assert manifest.libraries["scikit-learn"] == "1.7.2"
    assert manifest.files["empty"] == hashlib.sha256(b"").hexdigest()
    assert sorted(manifest.files) == [name for name in packages.names(archive) if name != "manifest.json"]


def test_a_folder_is_described_as_its_archive_will_be(folder: Path, tmp_path: Path):
    assert packages.describe(folder) == packages.build(folder, tmp_path / "tiny.tar.gz")


def test_what_tools_leave_behind_is_not_packed(folder: Path, tmp_path: Path):
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "model.cpython-311.pyc").touch()
    (folder / ".DS_Store").touch()
    (folder / "manifest.json").write_text("of an earlier build")
    packages.build(folder, tmp_path / "tiny.tar.gz")
    names = packages.names(tmp_path / "tiny.tar.gz")
    assert not [name for name in names if "pycache" in name or "DS_Store" in name]
    assert packages.describe(tmp_path / "tiny.tar.gz").python


def _link(folder: Path) -> None:
    (folder / "link").symlink_to("model.py")


def _fifo(folder: Path) -> None:
    os.mkfifo(folder / "pipe")


def _collision(folder: Path) -> None:
    (folder / "Model.py").touch()


def _newline(folder: Path) -> None:
    (folder / "a\nb").touch()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_link, '"link" is a symbolic link; put the file itself'),
        (_fifo, '"pipe" is neither a file nor a folder'),
        (_collision, 'differs from "Model.py" in letter case'),
        (_newline, "holds a control character"),
    ],
)
def test_what_unpack_would_refuse_is_not_built(folder: Path, tmp_path: Path, spoil, message: str):
    spoil(folder)
    with pytest.raises(packages.CannotBuild, match=message):
        packages.build(folder, tmp_path / "out" / "tiny.tar.gz")
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize("make", [packages.build, packages.pack])
def test_an_archive_is_never_built_into_its_own_folder_nor_over_one(folder: Path, tmp_path: Path, make):
    for archive in (folder / "tiny.tar.gz", folder / "model" / "tiny.tar.gz"):
        with pytest.raises(packages.CannotBuild, match="write it beside the folder"):
            make(folder, archive)
    with pytest.raises(packages.CannotBuild, match="is a folder; name the archive in it: .*/tiny.tar.gz"):
        make(folder, tmp_path)
    assert list(tmp_path.iterdir()) == [folder]


def test_a_missing_and_an_empty_folder_are_told_apart(tmp_path: Path):
    with pytest.raises(packages.PackageNotFound, match="no folder nowhere"):
        packages.build(tmp_path / "nowhere", tmp_path / "x.tar.gz")
    (tmp_path / "void").mkdir()
    with pytest.raises(packages.CannotBuild, match="void holds no files"):
        packages.build(tmp_path / "void", tmp_path / "x.tar.gz")


def test_a_failed_build_leaves_the_earlier_archive(folder: Path, tmp_path: Path):
    archive = tmp_path / "out" / "tiny.tar.gz"
    packages.build(folder, archive)
    before = archive.read_bytes()
    _link(folder)
    with pytest.raises(packages.CannotBuild):
        packages.build(folder, archive)
    assert archive.read_bytes() == before
    assert [path.name for path in archive.parent.iterdir()] == ["tiny.tar.gz"]


def test_a_prepared_folder_has_the_handler_and_its_properties_changed(tmp_path: Path):
    scripts = Path(__file__).parents[2] / "serving_scripts" / "scikit_learn"
    folder = packages.prepare(tmp_path / "mine", scripts, {"maxWorkers": 3, "required_memory_mb": 120, "new.key": "x"})
    lines = (folder / "serving.properties").read_text().splitlines()
    assert [line for line in lines if line.startswith("maxWorkers")] == ["maxWorkers=3"]
    assert "required_memory_mb=120" in lines
    assert lines[-1] == "new.key=x"
    assert "minWorkers=1" in lines
    (folder / "left-over.joblib").touch()
    assert not (packages.prepare(folder, scripts) / "left-over.joblib").exists()


def test_preparing_never_empties_a_folder_that_is_no_package(tmp_path: Path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(packages.CannotBuild, match="choose another folder"):
        packages.prepare(tmp_path, Path(__file__).parents[2] / "serving_scripts" / "scikit_learn")
    assert (tmp_path / "thesis.tex").exists()


@pytest.mark.parametrize(
    ("key", "value"), [("a b", "1"), ("a", "x\ny"), ("a", "c:\\temp"), ("a", "end "), ("a", "é"), ("", "1")]
)
def test_properties_that_java_would_read_otherwise_are_not_written(tmp_path: Path, key: str, value: str):
    with pytest.raises(ValueError, match="is not a key|read otherwise by Java"):
        packages.write_properties(tmp_path, {key: value})


def test_a_fork_server_travels_in_the_package_with_what_it_preloads(folder: Path, tmp_path: Path):
    archive = tmp_path / "tiny.tar.gz"
    manifest = packages.build(folder, archive, fork_server=True, preload=["numpy", "sklearn.linear_model"])
    source = Path(forkserver.__file__).read_bytes()
    packages.unpack(archive, tmp_path / "out")
    assert (tmp_path / "out" / "sitecustomize.py").read_bytes() == source
    assert (tmp_path / "out" / "preload.txt").read_text() == "numpy\nsklearn.linear_model\n"
    assert manifest.files["sitecustomize.py"] == hashlib.sha256(source).hexdigest()
    plain = packages.build(folder, archive)
    assert {**plain.files, "sitecustomize.py": "", "preload.txt": ""}.keys() == manifest.files.keys()


@pytest.mark.parametrize("preload", [[], "numpy", ["numpy; import os"], ["numpy", ""], ["a b"], ["-c"]])
def test_a_fork_server_wants_modules_to_preload(folder: Path, tmp_path: Path, preload):
    with pytest.raises(ValueError, match="doesn't list modules"):
        packages.build(folder, tmp_path / "tiny.tar.gz", fork_server=True, preload=preload)


def test_what_is_preloaded_without_a_fork_server_is_a_slip(folder: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="give fork_server=True"):
        packages.build(folder, tmp_path / "tiny.tar.gz", preload=["numpy"])


def test_a_fork_server_replaces_no_file_of_the_packages(folder: Path, tmp_path: Path):
    (folder / "sitecustomize.py").write_text("x = 1\n")
    with pytest.raises(packages.CannotBuild, match='"sitecustomize.py", which the fork server needs'):
        packages.build(folder, tmp_path / "tiny.tar.gz", fork_server=True, preload=["numpy"])

from __future__ import annotations

import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from mme import packages
from mme.packages import Target


def wheel(folder: Path, tag: str, licence: str = "License-Expression: MIT", version: str = "1.0") -> Path:
    """A wheel with a module, a script and a note of its licence, as an index would have it."""
    info = f"tiny_lib-{version}.dist-info"
    path = folder / f"tiny_lib-{version}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny_lib/__init__.py", "WHAT = 'tiny'\n")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.4\nName: tiny-lib\nVersion: {version}\n{licence}\n")
        archive.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: {tag}\n")
        archive.writestr(f"{info}/entry_points.txt", "[console_scripts]\ntiny = tiny_lib:main\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where pip looks for wheels, and nowhere else."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    return shelf


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "model.py").write_text("import tiny_lib\ndef handle(inputs): ...\n")
    return folder


def test_a_library_is_taken_for_the_container_whatever_machine_this_is(folder: Path, shelf: Path):
    for tag in ("cp311-cp311-macosx_11_0_arm64", "cp312-cp312-manylinux_2_28_x86_64"):
        wheel(shelf, tag)
    with pytest.raises(packages.CannotBuild, match=r"no wheel of tiny-lib==1\.0 for Python 3\.11 on Linux x86_64"):
        packages.add_libraries(folder, ["tiny-lib==1.0"])
    wheel(shelf, "cp311-cp311-manylinux_2_28_x86_64")
    (library,) = packages.add_libraries(folder, ["tiny-lib==1.0"])
    assert (str(library), library.licence) == ("tiny-lib 1.0", "MIT")
    assert packages.modules(folder) == {"tiny_lib"}
    assert packages.misfit(folder, packages.CONTAINER) is None
    names = sorted(path.relative_to(folder / "lib").as_posix() for path in (folder / "lib").rglob("*.*"))
    assert [name for name in names if "/" not in name] == ["tiny_lib-1.0.dist-info"]  # neither scripts nor pip's notes
    assert "tiny_lib-1.0.dist-info/RECORD" not in names


def test_libraries_newer_than_the_containers_c_library_are_not_taken(folder: Path, shelf: Path):
    wheel(shelf, "cp311-cp311-manylinux_2_39_x86_64")
    with pytest.raises(packages.CannotBuild, match="no wheel of tiny-lib"):
        packages.add_libraries(folder, ["tiny-lib==1.0"])


def test_what_is_installed_here_for_the_container_needs_no_index(folder: Path, shelf: Path):
    (library,) = packages.add_libraries(folder, [f"iniconfig=={metadata.version('iniconfig')}"])
    assert library.name == "iniconfig" and (folder / "lib" / "iniconfig" / "__init__.py").is_file()
    assert not [path for path in (folder / "lib").rglob("*") if path.name in ("RECORD", "INSTALLER", "__pycache__")]


def test_the_manifest_lists_what_comes_along_with_its_licence(folder: Path, shelf: Path, tmp_path: Path):
    wheel(shelf, "cp311-cp311-manylinux_2_17_x86_64", "Classifier: License :: OSI Approved :: BSD License")
    packages.add_libraries(folder, ["tiny-lib==1.0"])
    manifest = packages.build(folder, tmp_path / "package.tar.gz")
    assert manifest.lib == {"tiny-lib": {"version": "1.0", "licence": "BSD License"}}
    assert packages.describe(tmp_path / "package.tar.gz") == manifest
    assert "lib/tiny_lib/__init__.py" in manifest.files


@pytest.mark.parametrize("text", ["tiny-lib", "tiny-lib>=1", "tiny-lib==1.0,!=1.0.1", "tiny-lib[extra]==1.0", "a b"])
def test_what_names_no_single_version_is_a_slip(folder: Path, text: str):
    with pytest.raises(ValueError, match="write "):
        packages.add_libraries(folder, [text])


def test_a_requirements_file_is_read_without_its_comments(tmp_path: Path):
    (tmp_path / "lib.txt").write_text("# why\none==1  # because\n\ntwo==2\n")
    assert packages.read_requirements(tmp_path / "lib.txt") == ["one==1", "two==2"]
    (tmp_path / "lib.txt").write_bytes(b"\x80\x04")
    with pytest.raises(ValueError, match="lib.txt is no text; write a name==version"):
        packages.read_requirements(tmp_path / "lib.txt")


def test_what_this_python_cannot_import_is_named(folder: Path, shelf: Path):
    wheel(shelf, "cp310-cp310-manylinux_2_17_aarch64")
    packages.add_libraries(folder, ["tiny-lib==1.0"], Target("3.10", "aarch64"))
    reason = packages.misfit(folder)
    assert reason and "lib/ holds tiny-lib 1.0 for cp310-cp310-manylinux_2_17_aarch64, which Python 3." in reason
    assert packages.misfit(folder, Target("3.10", "aarch64")) is None


def test_packing_with_libraries_leaves_the_folder_as_it_was(folder: Path, shelf: Path, tmp_path: Path):
    wheel(shelf, "cp311-cp311-manylinux_2_17_x86_64")
    before = sorted(folder.rglob("*"))
    packages.pack(folder, tmp_path / "package.tar.gz", lib=["tiny-lib==1.0"])
    assert "lib/tiny_lib/__init__.py" in packages.names(tmp_path / "package.tar.gz")
    assert sorted(folder.rglob("*")) == before

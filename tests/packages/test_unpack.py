from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import resource
import shutil
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mme import packages
from mme.packages import Limits

Member = tuple[tarfile.TarInfo, bytes]


def file(name: str, data: bytes = b"x", **fields: object) -> Member:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def special(name: str, kind: bytes, target: str = "") -> Member:
    return file(name, b"", type=kind, linkname=target)


def tar(*members: Member, format: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format, encoding="utf-8", errors="surrogateescape") as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def extended(kind: bytes, data: bytes, *rest: Member) -> bytes:
    return header("header", len(data), kind) + data + bytes(-len(data) % 512) + tar(*rest)


def record(key: bytes, value: bytes) -> bytes:
    for digits in range(1, 6):
        text = b"%d %s=%s\n" % (len(key) + len(value) + 3 + digits, key, value)
        if len(text) == len(key) + len(value) + 3 + digits:
            return text
    raise ValueError("too long")


def zipped(data: bytes) -> bytes:
    return gzip.compress(data, 1, mtime=0)


def zip_bomb() -> bytes:
    """A zip file of some kilobytes that inflates to ten megabytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(10_000_000))
    return buffer.getvalue()


GOOD = tar(file("model.py", b"code"), file("data/weights", b"w" * 5000))

HOSTILE: dict[str, tuple[bytes, str]] = {
    "an absolute path": (tar(file("/etc/evil")), "is an absolute path"),
    "a path upwards": (tar(file("../evil")), "leaves its folder"),
    "a path upwards from within": (tar(file("a/../../evil")), "leaves its folder"),
    "a path that ends upwards": (tar(file("a/..")), "leaves its folder"),
    "a folder upwards": (tar(special("../evil", tarfile.DIRTYPE)), "leaves its folder"),
    "a path upwards in a pax header": (
        extended(tarfile.XHDTYPE, record(b"path", b"../evil"), file("fine")),
        "leaves its folder",
    ),
    "a path upwards in a GNU long name": (
        extended(tarfile.GNUTYPE_LONGNAME, b"../evil\0", file("fine")),
        "leaves its folder",
    ),
    "a link out": (tar(special("out", tarfile.SYMTYPE, "/etc")), "is a symbolic link"),
    "a link that stays inside": (tar(file("a"), special("b", tarfile.SYMTYPE, "a")), "is a symbolic link"),
    "a file through a link": (
        tar(special("out", tarfile.SYMTYPE, ".."), file("out/evil")),
        "is a symbolic link",
    ),
    "a hard link out": (tar(special("out", tarfile.LNKTYPE, "/etc/passwd")), "is a hard link"),
    "a hard link that stays inside": (tar(file("a"), special("b", tarfile.LNKTYPE, "a")), "is a hard link"),
    "a character device": (tar(special("null", tarfile.CHRTYPE)), "is a character device"),
    "a block device": (tar(special("disk", tarfile.BLKTYPE)), "is a block device"),
    "a FIFO": (tar(special("pipe", tarfile.FIFOTYPE)), "is a FIFO"),
    "a hard link through a symbolic one": (
        tar(special("out", tarfile.SYMTYPE, "/etc"), special("b", tarfile.LNKTYPE, "out/passwd")),
        "is a symbolic link",
    ),
    "a link out by its pax header": (
        extended(tarfile.XHDTYPE, record(b"linkpath", b"/etc/passwd"), special("a", tarfile.SYMTYPE, "b")),
        "is a symbolic link",
    ),
    "a device with a harmless name": (tar(special("model.joblib", tarfile.CHRTYPE)), "is a character device"),
    "an unknown type": (tar(special("odd", b"Z")), "is of the unknown type"),
    "an old sparse file": (tar(special("hole", tarfile.GNUTYPE_SPARSE)), "is a sparse file"),
    "a new sparse file": (
        extended(tarfile.XHDTYPE, record(b"GNU.sparse.major", b"1"), file("hole")),
        "is a sparse file",
    ),
    "a sparse file of the oldest pax kind": (
        extended(
            tarfile.XHDTYPE, record(b"GNU.sparse.size", b"%d" % 10**12) + record(b"GNU.sparse.map", b"0,1"), file("h")
        ),
        "is a sparse file",
    ),
    "a sparse file under another name": (
        extended(tarfile.XHDTYPE, record(b"GNU.sparse.name", b"../evil"), file("fine")),
        "is a sparse file",
    ),
    "a setuid bit": (tar(file("run", mode=0o4755)), "has the mode 4755"),
    "a setgid bit": (tar(file("run", mode=0o2755)), "has the mode 2755"),
    "a sticky folder": (tar(file("d", b"", type=tarfile.DIRTYPE, mode=0o1777)), "has the mode 1777"),
    "a name twice": (tar(file("a", b"1"), file("a", b"2")), "is there twice"),
    "a name twice in two spellings": (tar(file("d/a"), file("./d//a")), "is there twice"),
    "names that differ in case": (tar(file("model.py"), file("Model.py")), "letter case"),
    "folders that differ in case": (tar(file("Data/a"), file("data/b")), "letter case"),
    "names in two Unicode forms": (tar(file("caf\u00e9"), file("cafe\u0301")), "Unicode form"),
    "a file in a file": (tar(file("a"), file("a/b")), 'lies in "a", which is a file'),
    "a file over a folder": (tar(file("a/b"), file("a")), "both a file and a folder"),
    "a folder over a file": (tar(file("a"), special("a", tarfile.DIRTYPE)), "both a file and a folder"),
    "no name": (tar(file("")), "has no name"),
    "the folder itself as a file": (tar(file("./.")), "has no name"),
    "a newline in a name": (tar(file("a\nb")), "control character"),
    "a NUL in a name": (extended(tarfile.XHDTYPE, record(b"path", b"a\0b"), file("fine")), "control character"),
    "an escape sequence in a name": (tar(file("a\x1b[31mb")), "control character"),
    "a backslash in a name": (tar(file("..\\evil")), "backslash"),
    "invalid UTF-8": (tar(file("a\udcff"), format=tarfile.GNU_FORMAT), "is not UTF-8"),
    "invalid UTF-8 in a pax header": (
        extended(tarfile.XHDTYPE, record(b"path", b"a\xff"), file("fine")),
        "is not UTF-8",
    ),
    "a newline in a GNU long name": (
        extended(tarfile.GNUTYPE_LONGNAME, b"a\nb\0", file("fine")),
        "control character",
    ),
    "a name of 10,000 characters in one part": (tar(file("d" * 10_000)), "10000 bytes long"),
    "a name of 10,000 characters": (tar(file("/".join(["d" * 99] * 100))), "9999 bytes long"),
    "a part of 300 characters": (tar(file("d" * 300)), "longer than 255"),
    "forty folders": (tar(file("/".join("d" * 40))), "40 folders deep"),
    "a huge pax header": (header("h", 10**9, tarfile.XHDTYPE), "a header of 1000000000 bytes"),
    "a huge long name": (header("h", 10**12, tarfile.GNUTYPE_LONGNAME), "a header of 1000000000000 bytes"),
    "a malformed pax header": (extended(tarfile.XHDTYPE, b"99 path=x\n", file("fine")), "malformed"),
    "a pax header without end": (extended(tarfile.XHDTYPE, b"0 path=x\n", file("fine")), "malformed"),
    "a negative size in a pax header": (extended(tarfile.XHDTYPE, record(b"size", b"-1"), file("f")), "the size '-1'"),
    "one name for all": (extended(tarfile.XGLTYPE, record(b"path", b"x"), file("fine")), "global header"),
    "a gigantic size": (header("big", 10**12), "larger than 1000000 bytes"),
    "a gigantic size in a pax header": (
        extended(tarfile.XHDTYPE, record(b"size", b"9" * 18), file("f")),
        "larger than 1000000 bytes",
    ),
    "a negative size": (header("f", -1), "claims a size of -1 bytes"),
    "a bomb in a file that claims to be small": (
        header("f", 10) + bytes(5_000_000),
        "inflates to more than",
    ),
    "a bomb": (tar(file("zeros", bytes(2_000_000))), "larger than 1000000 bytes"),
    "many files that sum up": (tar(*(file(f"f{n}", bytes(300_000)) for n in range(4))), "larger than 1000000"),
    "too many files": (tar(*(file(f"f{n}", b"") for n in range(51))), "more than 50 entries"),
    "too many folders": (tar(*(special(f"f{n}", tarfile.DIRTYPE) for n in range(51))), "more than 50 entries"),
    "endless padding": (GOOD + bytes(3_000_000), "inflates to more than"),
    "endless headers": (
        b"".join(extended(tarfile.GNUTYPE_LONGNAME, b"x" * 60_000)[:60_928] for _ in range(40)),
        "inflates to more than",
    ),
    "two tars in a row": (GOOD + GOOD, "more after its end"),
    "something behind the end": (GOOD + b"evil", "more after its end"),
    "no end": (GOOD[: 512 * 2], "truncated"),
    "an end in the middle of a file": (GOOD[: 512 * 4], "truncated"),
    "an end in the middle of a header": (GOOD[:700], "truncated"),
    "no tar": (b"this is a text of no particular kind, repeated. " * 40, "not a tar inside the gzip"),
    "a gzip in the gzip": (zipped(GOOD) + bytes(512), "not a tar inside the gzip"),
    "a damaged header": (GOOD[:148] + b"0000000" + GOOD[155:], "not a tar inside the gzip"),
    "nothing": (b"", "truncated, or empty|truncated"),
}

NOT_GZIP: dict[str, tuple[bytes, str]] = {
    "an empty file": (b"", "truncated, or empty"),
    "a plain tar": (GOOD, "not a gzip file"),
    "a bzip2": (bz2.compress(GOOD), "not a gzip file"),
    "a zip": (b"PK\3\4" + bytes(100), "not a gzip file"),
    "a zip bomb": (zip_bomb(), "not a gzip file"),
    "an xz": (lzma.compress(GOOD), "not a gzip file"),
    "an lzma": (lzma.compress(GOOD, lzma.FORMAT_ALONE), "not a gzip file"),
    "a zlib stream": (zlib.compress(GOOD), "not a gzip file"),
    "a Zstandard frame": (b"\x28\xb5\x2f\xfd" + bytes(100), "not a gzip file"),
    "a gzip bomb in a gzip": (zipped(zipped(bytes(50_000_000))), "not a tar inside the gzip|inflates to more"),
    "a gzip bomb": (zipped(bytes(50_000_000)), "inflates to more than|truncated"),
    "a truncated gzip": (zipped(GOOD)[:-20], "truncated"),
    "a gzip without its checksum": (zipped(GOOD)[:-8], "truncated"),
    "a wrong checksum": (zipped(GOOD)[:-8] + bytes(4) + zipped(GOOD)[-4:], "damaged"),
    "two gzips in a row": (zipped(GOOD) + zipped(GOOD), "more after its end"),
    "bytes behind the gzip": (zipped(GOOD) + b"evil", "more after its end"),
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    place = tmp_path / "place"
    place.mkdir()
    return place


LIMIT_BYTES = 1_000_000


@pytest.fixture
def disk(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks at each piece that is unpacked whether more lies on the disk than the limit allows."""
    pieces = packages.entries.Archive.pieces

    def looked_at(archive: packages.entries.Archive) -> Iterator[bytes]:
        for piece in pieces(archive):
            yield piece
            used_bytes = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
            assert used_bytes <= LIMIT_BYTES

    monkeypatch.setattr(packages.entries.Archive, "pieces", looked_at)


def refuses(archive: bytes, place: Path, message: str) -> None:
    path = place.parent / "hostile.tar.gz"
    path.write_bytes(archive)
    around = sorted(place.parent.rglob("*"))
    with pytest.raises(packages.PackageRefused, match=message) as raised:
        packages.unpack(path, place / "model", limits=Limits(size_bytes=LIMIT_BYTES, count=50))
    assert sorted(place.parent.rglob("*")) == around
    assert 'model package "hostile.tar.gz" is refused' in str(raised.value)
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 300


@pytest.mark.usefixtures("disk")
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_tar_is_refused_and_leaves_nothing(place: Path, name: str):
    data, message = HOSTILE[name]
    refuses(zipped(data), place, message)


@pytest.mark.usefixtures("disk")
@pytest.mark.parametrize("name", NOT_GZIP)
def test_what_is_not_one_whole_gzip_is_refused_and_leaves_nothing(place: Path, name: str):
    data, message = NOT_GZIP[name]
    refuses(data, place, message)


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_packages_of_other_tools_are_unpacked(place: Path, format: int):
    deep = "/".join(["folder"] * 13) + "/name"
    long = "/".join(["a folder with a long name"] * 8) + "/weights of the modèle"
    members = [
        special("./", tarfile.DIRTYPE),
        special("./data/", tarfile.DIRTYPE),
        file("./data/a", b"A" * 1000),
        file(deep, b"D"),
        file("run", b"#!", mode=0o755, mtime=1e9),
        file("secret", b"", mode=0o600),
    ]
    if format != tarfile.USTAR_FORMAT:
        members.append(file(long, b"L"))
    path = place / "other.tar.gz"
    path.write_bytes(zipped(tar(*members, format=format)))
    names = packages.unpack(path, place / "model")
    expected = {"data/a": b"A" * 1000, deep: b"D", "run": b"#!", "secret": b""}
    if format != tarfile.USTAR_FORMAT:
        expected[long] = b"L"
    assert names == packages.names(path) == sorted(expected)
    assert {name: (place / "model" / name).read_bytes() for name in names} == expected
    modes = {name: (place / "model" / name).stat().st_mode & 0o7777 for name in ("run", "secret", "data")}
    assert modes == {"run": 0o755, "secret": 0o644, "data": 0o777 & ~_umask()}
    assert (place / "model").stat().st_mode & 0o7777 == 0o755


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def test_a_tar_in_a_tar_is_a_file(place: Path):
    path = place / "outer.tar.gz"
    path.write_bytes(zipped(tar(file("inner.tar", tar(file("../evil"))))))
    assert packages.unpack(path, place / "model") == ["inner.tar"]
    assert sorted(item.name for item in place.rglob("*")) == ["inner.tar", "model", "outer.tar.gz"]


def test_a_folder_that_holds_something_is_left_alone(place: Path):
    path = place / "good.tar.gz"
    path.write_bytes(zipped(GOOD))
    packages.unpack(path, place / "model")
    (place / "model" / "mine").touch()
    with pytest.raises(packages.PackageError, match="remove it"):
        packages.unpack(path, place / "model")
    assert (place / "model" / "mine").exists()
    assert sorted(item.name for item in place.iterdir()) == ["good.tar.gz", "model"]


def test_a_missing_package_is_named(place: Path):
    with pytest.raises(packages.PackageNotFound, match=r"no model package at none\.tar\.gz"):
        packages.unpack(place / "none.tar.gz", place / "model")
    assert list(place.iterdir()) == []


def test_the_manifest_is_verified(place: Path):
    source = place / "source"
    source.mkdir()
    (source / "model.py").write_text("good")
    packages.build(source, place / "good.tar.gz")
    manifest = packages.read(place / "good.tar.gz", ["manifest.json"])["manifest.json"]
    for members in (
        [file("manifest.json", manifest), file("model.py", b"evil")],
        [file("manifest.json", manifest)],
        [file("manifest.json", manifest), file("model.py", b"good"), file("extra")],
        [file("manifest.json", b"[]"), file("model.py", b"good")],
    ):
        path = place / "changed.tar.gz"
        path.write_bytes(zipped(tar(*members)))
        with pytest.raises(packages.PackageRefused, match=r"manifest\.json"):
            packages.unpack(path, place / "model")
        assert not (place / "model").exists()
    assert packages.unpack(place / "good.tar.gz", place / "model") == ["manifest.json", "model.py"]


@pytest.mark.parametrize("name", ["manifest.json", "examples.json", "serving.properties", "requirements.txt"])
def test_a_file_that_is_read_whole_is_refused_where_it_is_large(place: Path, name: str):
    source = place / "source"
    source.mkdir()
    (source / name).write_bytes(bytes(16 * 2**20 + 1))
    (place / "large.tar.gz").write_bytes(zipped(tar(file(name, bytes(16 * 2**20 + 1)))))
    with pytest.raises(packages.PackageRefused, match=f'"{name}" in large.tar.gz is larger than 16777216 bytes'):
        packages.unpack(place / "large.tar.gz", place / "model")
    with pytest.raises(packages.PackageRefused, match=f'"{name}" in source is larger than 16777216 bytes'):
        packages.read(source, [name])


def _grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"evil")


def _shrink(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _overwrite(path: Path) -> None:
    """Another package of the same length, with the old times set again."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(12)
        file.write(b"e")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _touch(path: Path) -> None:
    os.utime(path, (1, 1))


@pytest.mark.parametrize("change", [_grow, _shrink, _overwrite, _touch])
def test_a_package_that_changes_while_it_is_read_is_refused(
    place: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]
):
    path = place / "changing.tar.gz"
    path.write_bytes(zipped(tar(file("a", os.urandom(400_000)), file("b"))))
    pieces = packages.entries.Archive.pieces

    def changing(archive: packages.entries.Archive) -> Iterator[bytes]:
        if not changed:
            changed.append(change(path))
        return pieces(archive)

    changed: list[None] = []
    monkeypatch.setattr(packages.entries.Archive, "pieces", changing)
    with pytest.raises(packages.PackageRefused, match="changed while it was read|truncated|more after its end"):
        packages.unpack(path, place / "model")
    assert changed and [item.name for item in place.iterdir()] == ["changing.tar.gz"]


def test_a_package_that_is_replaced_while_it_is_read_is_unpacked_as_it_was(place: Path):
    path = place / "good.tar.gz"
    path.write_bytes(zipped(GOOD))
    with packages.entries.Archive(path) as archive:
        (place / "other").write_bytes(b"no package")
        entries = iter(archive)
        assert next(entries).name == "model.py"
        (place / "other").replace(path)
        with pytest.raises(packages.PackageRefused, match="changed while"):
            list(entries)  # its last link is gone, which is told as a change too


def unpacked(place: Path) -> tuple[Path, Path]:
    """A package with a manifest, in its folder."""
    (place / "source" / "data").mkdir(parents=True)
    (place / "source" / "model.py").write_text("good")
    (place / "source" / "data" / "weights").write_bytes(b"w" * 1000)
    packages.build(place / "source", place / "good.tar.gz")
    packages.unpack(place / "good.tar.gz", place / "model")
    return place / "model", place / "model" / "data" / "weights"


def test_an_unpacked_package_is_verified_against_its_manifest(place: Path):
    folder, weights = unpacked(place)
    packages.verify(folder)
    (folder / "__pycache__").mkdir()  # what Python and handlers write beside is none of the manifest's business
    packages.verify(folder)
    weights.write_bytes(b"w" * 999 + b"W")
    with pytest.raises(packages.PackageRefused, match="data/weights is not what manifest.json says"):
        packages.verify(folder)
    weights.unlink()
    weights.symlink_to(folder / "model.py")
    with pytest.raises(packages.PackageRefused, match="data/weights is not"):
        packages.verify(folder)
    (folder / "manifest.json").unlink()
    packages.verify(folder)


def test_what_was_verified_is_read_again_when_it_changed(place: Path):
    folder, weights = unpacked(place)
    packages.verify(folder)
    before = weights.stat()
    weights.write_bytes(b"W" * 1000)
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(packages.PackageRefused, match="data/weights is not"):
        packages.verify(folder)


@pytest.mark.parametrize("name", ["../../outside", "/dev/zero", "data", "a\0b"])
def test_a_manifest_that_names_what_is_no_file_of_the_package_is_refused(place: Path, name: str):
    folder, _ = unpacked(place)
    manifest = packages.Manifest(python="3.11", libraries={}, files={name: "0" * 64})
    (folder / "manifest.json").write_bytes(manifest.to_json())
    with pytest.raises(packages.PackageRefused, match="is not what manifest.json says"):
        packages.verify(folder)


def test_memory_stays_small_whatever_the_package(place: Path):
    path = place / "large.tar.gz"
    with gzip.open(path, "wb", compresslevel=1) as output:
        output.write(header("zeros", 200_000_000))
        for _ in range(200):
            output.write(bytes(1_000_000))
        output.write(bytes(-200_000_000 % 512 + 1024))
    script = (
        "import sys, resource; from pathlib import Path; from mme import packages\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "packages.unpack(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    run = subprocess.run([sys.executable, "-c", script, path, place / "model"], capture_output=True, text=True)
    grown = int(run.stdout) * (1 if sys.platform == "darwin" else 1024)
    assert grown < 20_000_000
    assert (place / "model" / "zeros").stat().st_size == 200_000_000


def test_a_full_disk_leaves_nothing(place: Path):
    path = place / "large.tar.gz"
    path.write_bytes(zipped(tar(file("a", b"a" * 1000), file("b", bytes(2_000_000)))))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))  # Python ignores SIGXFSZ, so writing fails
    try:
        with pytest.raises(OSError, match="File too large"):
            packages.unpack(path, place / "model")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [item.name for item in place.iterdir()] == ["large.tar.gz"]


def _flip(data: bytes, index: int, value: int) -> bytes:
    index %= max(1, len(data))
    return data[:index] + bytes([byte ^ value for byte in data[index : index + 1]]) + data[index + 1 :]


def _cut(data: bytes, index: int, value: int) -> bytes:
    index %= max(1, len(data))
    return data[:index] + data[index + value :]


def _repeat(data: bytes, index: int, value: int) -> bytes:
    index %= max(1, len(data))
    return data[: index + value] + data[index:]


CHANGES: list[Callable[[bytes, int, int], bytes]] = [_flip, _cut, _repeat]
RICH = extended(
    tarfile.XHDTYPE,
    record(b"path", b"long/name") + record(b"mtime", b"1.5"),
    file("short", b"s" * 700),
    special("folder", tarfile.DIRTYPE),
    file("run", b"r", mode=0o755),
    file("n" * 120, b"n"),
)


# One archive for each way in which changing a good one at random has been refused so far, and some that weren't.
CORPUS = {path.name: path.read_bytes() for path in sorted((Path(__file__).parent / "corpus").iterdir())}


def contained(tmp_path: Path, archive: bytes) -> str:
    """Unpack an archive, see that nothing lands outside its folder or is left, and say why it was refused."""
    place = tmp_path / "fuzz"
    place.mkdir(exist_ok=True)
    path = tmp_path / "damaged.tar.gz"
    path.write_bytes(archive)
    try:
        names = packages.unpack(path, place / "model", limits=Limits(size_bytes=LIMIT_BYTES, count=50))
    except packages.PackageRefused as error:
        assert list(place.iterdir()) == []
        return str(error)
    finally:
        assert sorted(item.name for item in tmp_path.iterdir()) == ["damaged.tar.gz", "fuzz"]
    found = [item for item in place.rglob("*") if not item.is_dir()]
    assert sorted(item.relative_to(place / "model").as_posix() for item in found) == names
    assert not any(item.is_symlink() for item in place.rglob("*"))
    shutil.rmtree(place / "model")
    return ""


@pytest.mark.parametrize("name", CORPUS)
def test_what_was_found_by_chance_stays_contained(tmp_path: Path, name: str):
    assert bool(contained(tmp_path, CORPUS[name])) == name.startswith("refused")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(sorted(CORPUS)),
    st.lists(st.tuples(st.sampled_from(CHANGES), st.integers(0, 10_000), st.integers(1, 255)), min_size=1, max_size=3),
    st.booleans(),
)
def test_a_damaged_package_is_unpacked_inside_its_folder_or_refused(
    tmp_path: Path, seed: str, changes: list, inside: bool
):
    data = CORPUS[seed]
    if inside:
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error):
            inside = False
    for change, index, value in changes:
        data = change(data, index, value)
    contained(tmp_path, zipped(data) if inside else data)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=2000))
def test_any_bytes_are_refused(tmp_path: Path, data: bytes):
    path = tmp_path / "bytes.tar.gz"
    for content in (data, zipped(data)):
        path.write_bytes(content)
        with pytest.raises(packages.PackageRefused):
            packages.names(path)

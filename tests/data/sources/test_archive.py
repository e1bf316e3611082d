import bz2
import gzip
import io
import lzma
import os
import shutil
import stat
import struct
import subprocess
import sys
import tarfile
import threading
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.published_copies import folders, picture, tar_of, zip_of
from tl_cli.contract import DataSpec
from tl_cli.data import dataset
from tl_cli.data.sources.archive import Limits, Unpacked, scan, unpack
from tl_cli.errors import DataError, StorageError

FILES = folders("photos", ".png", "cat", "dog")
KINDS = {
    "p.zip": zip_of(FILES),
    "p.tar": tar_of(FILES, "w"),
    "p.tar.gz": tar_of(FILES, "w:gz"),
    "p.TGZ": tar_of(FILES, "w:gz"),
    "p.tar.xz": tar_of(FILES, "w:xz"),
    "p.tar.bz2": tar_of(FILES, "w:bz2"),
}
TEN = Limits(size_bytes=10_000_000, entries=10)


def put(folder: Path, name: str, body: bytes) -> Path:
    path = folder / name
    path.write_bytes(body)
    return path


def tar_with(member: tarfile.TarInfo, body: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.addfile(member, io.BytesIO(body))
        info = tarfile.TarInfo("a/b.png")
        info.size = 4
        tar.addfile(info, io.BytesIO(b"body"))
    return buffer.getvalue()


@pytest.mark.parametrize("name", KINDS)
def test_an_archive_of_folders_is_a_source(name: str, tmp_path: Path) -> None:
    path = put(tmp_path, name, KINDS[name])
    seen: list[tuple[object, ...]] = []
    spec = DataSpec(source=str(path), data_dir=str(tmp_path / "cache"), layout="classes")
    data = dataset.open_data(spec, workers=1, progress=lambda *now: seen.append(now))
    assert data.classes == ("cat", "dog")
    assert data.spec.source == str(path)
    assert {name: split.count for name, split in data.spec.splits.items()} == {"train": 2, "val": 2, "test": 2}
    assert (f"unpacking {name}", len(KINDS[name]), len(KINDS[name]), "bytes") in seen
    seen.clear()
    assert dataset.open_data(data.spec, workers=1, progress=lambda *now: seen.append(now)).spec == data.spec
    assert not any(str(now[0]).startswith("unpacking") for now in seen)


def test_the_digests_are_those_of_the_folder_itself(tmp_path: Path) -> None:
    for name, body in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(body)
    splits = [
        dataset.open_data(
            DataSpec(source=str(source), data_dir=str(tmp_path / "cache"), layout="classes"), workers=1
        ).spec.splits
        for source in (tmp_path / "photos", put(tmp_path, "p.zip", KINDS["p.zip"]))
    ]
    assert splits[0] == splits[1]


def test_a_changed_archive_is_unpacked_anew(tmp_path: Path) -> None:
    path = put(tmp_path, "p.zip", KINDS["p.zip"])
    assert len(scan(path, tmp_path).parts["train"]) == 6
    put(tmp_path, "p.zip", zip_of(folders(".", ".png", "cat", "dog", count=5)))
    assert len(scan(path, tmp_path).parts["train"]) == 10


@pytest.mark.parametrize("top", ["", "one/", "one/two/"])
def test_single_folders_at_the_top_are_gone_through(top: str, tmp_path: Path) -> None:
    files = {k: v for part in ("train", "test") for k, v in folders(f"{top}{part}", ".png", "a", "b").items()}
    found = scan(put(tmp_path, "p.zip", zip_of(files)), tmp_path)
    assert found.layout == "train/test"
    assert found.parts["test"].ids[0] == "test/a/a_0.png"


@pytest.mark.parametrize("top", ["", "one/"])
def test_a_listing_at_the_top_is_read(top: str, tmp_path: Path) -> None:
    files = {f"{top}img/{n}.png": picture("PNG") for n in "1234"}
    files[f"{top}labels.csv"] = b"path,label\n" + b"".join(
        b"img/%d.png,%s\n" % (n, b"ab"[n % 2 :][:1]) for n in (1, 2, 3, 4)
    )
    found = scan(put(tmp_path, "p.zip", zip_of(files)), tmp_path)
    assert found.classes == ("a", "b")
    assert found.parts["train"].ids[0] == "img/2.png"


def test_a_csv_that_is_no_listing_is_passed_over(tmp_path: Path) -> None:
    files = {**folders(".", ".png", "a", "b"), "sample_submission.csv": b"id,answer\n1,2\n"}
    assert scan(put(tmp_path, "p.zip", zip_of(files)), tmp_path).classes == ("a", "b")


@pytest.mark.parametrize("listed", ["../../outside.png", "/etc/outside.png"])
def test_a_listing_in_an_archive_cannot_reach_outside(listed: str, tmp_path: Path) -> None:
    files = {"a.png": picture("PNG"), "labels.csv": f"path,label\na.png,a\n{listed},b\n".encode()}
    with pytest.raises(DataError, match=r"p.zip, unpacked: .*labels.csv, line 3: .* lies outside the archive"):
        scan(put(tmp_path, "p.zip", zip_of(files)), tmp_path)


def test_only_pictures_and_listings_are_unpacked(tmp_path: Path) -> None:
    litter = {
        "photos/cat/run.sh": b"x",
        "__MACOSX/photos/cat/x.png": b"x",
        "photos/.git/x.png": b"x",
        "photos/cat/._x.png": b"",
    }
    scan(put(tmp_path, "p.zip", zip_of({**FILES, **litter})), tmp_path)
    files = [path for path in (tmp_path / "unpacked").rglob("*.*") if path.is_file()]
    assert [path.stat().st_size for path in files if path.name == "run.sh"] == [0]
    assert {path.name for path in files} == {
        "run.sh",
        *(name.rpartition("/")[2] for name in FILES),
        next((tmp_path / "unpacked").glob(".*.lock")).name,
    }


@pytest.mark.parametrize(
    "name", ["/tmp/evil.png", "../evil.png", "a/../../evil.png", "..\\evil.png", "C:\\evil.png", "a\0.png"]
)
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_an_entry_that_would_land_outside_is_refused(kind: str, name: str, tmp_path: Path) -> None:
    if kind == "zip":
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as zipped:
            info = zipfile.ZipInfo("X" * len(name))
            zipped.writestr(info, b"evil")
        body = buffer.getvalue().replace(b"X" * len(name), name.encode())
    else:
        member = tarfile.TarInfo(name)
        member.size, member.pax_headers = 4, {"path": name}
        body = tar_with(member, b"evil")
    into = tmp_path / "deep" / "into"
    into.mkdir(parents=True)
    with pytest.raises(DataError, match="would land outside"):
        unpack(put(tmp_path, f"p.{kind}", body), into)
    assert not list(into.rglob("*"))
    assert not list(tmp_path.rglob("evil*"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_of_a_tar_are_left_out(kind: bytes, tmp_path: Path) -> None:
    member = tarfile.TarInfo("a")
    member.type, member.linkname = kind, str(tmp_path / "outside")
    (tmp_path / "outside").mkdir()
    into = tmp_path / "into"
    into.mkdir()
    assert unpack(put(tmp_path, "p.tar", tar_with(member)), into) == Unpacked(files=1, left_out=1)
    assert not (into / "a").is_symlink()
    assert (into / "a" / "b.png").read_bytes() == b"body"
    assert not list((tmp_path / "outside").iterdir())


def test_links_of_a_zip_are_left_out(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as zipped:
        info = zipfile.ZipInfo("link.png")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        zipped.writestr(info, "/etc/passwd")
    into = tmp_path / "into"
    into.mkdir()
    assert unpack(put(tmp_path, "p.zip", buffer.getvalue()), into) == Unpacked(files=0, left_out=1)
    assert not list(into.iterdir())


@pytest.mark.parametrize("name", ["p.zip", "p.tar.gz"])
def test_a_bomb_is_refused_before_it_goes_off(name: str, tmp_path: Path) -> None:
    bomb = {"a.png": b"\0" * 11_000_000}
    path = put(tmp_path, name, zip_of(bomb) if name == "p.zip" else tar_of(bomb))
    into = tmp_path / "into"
    into.mkdir()
    with pytest.raises(DataError, match=r"unpacks to more than 10 MB.*--data-dir"):
        unpack(path, into, limits=TEN)
    with pytest.raises(DataError, match="unpacks to more than"):
        unpack(path, into, limits=TEN, wanted=lambda name: False)
    assert not list(into.iterdir())


def sparse_tar(folder: Path, size: int) -> bytes:
    """Return a tar with a picture that is a hole of ``size`` bytes after its first page."""
    path = folder / "hole.png"
    with path.open("wb") as file:
        file.write(b"x" * 4096)
        file.truncate(size)
    subprocess.run(["tar", "-S", "-cf", "hole.tar", "hole.png"], cwd=folder, check=True)
    return (folder / "hole.tar").read_bytes()


@pytest.mark.skipif(shutil.which("tar") is None, reason="Python writes no sparse tars")
def test_a_hole_stays_one(tmp_path: Path) -> None:
    body, into = sparse_tar(tmp_path, 50_000_000), tmp_path / "into"
    assert len(body) < 50_000
    into.mkdir()
    assert unpack(put(tmp_path, "p.tar", body), into, limits=Limits(1 << 30)) == Unpacked(files=1, left_out=0)
    found = (into / "hole.png").stat()
    assert found.st_size == 50_000_000
    assert found.st_blocks * 512 < 1_000_000
    with (into / "hole.png").open("rb") as file:
        assert file.read(5000) == b"x" * 4096 + bytes(904)


@pytest.mark.skipif(shutil.which("tar") is None, reason="Python writes no sparse tars")
@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
def test_an_entry_larger_than_any_picture_is_named_and_nothing_stays(kind: str, tmp_path: Path) -> None:
    body = sparse_tar(tmp_path, 40 << 30)
    path = put(tmp_path, f"p.{kind}", gzip.compress(body) if kind == "tar.gz" else body)
    with pytest.raises(DataError, match=r"p.tar.*: hole.png: the file has 42,950 MB; pictures of more than 1,432 MB"):
        scan(path, tmp_path / "cache")
    assert not [each for each in (tmp_path / "cache" / "unpacked").iterdir() if not each.name.endswith(".lock")]


@pytest.mark.parametrize("name", ["p.zip", "p.tar.gz", "p.tar.xz"])
def test_an_archive_far_too_small_for_what_it_holds_is_refused(name: str, tmp_path: Path) -> None:
    bomb = {f"{n}.png": bytes(1_000_000) for n in range(9)}
    body = zip_of(bomb) if name == "p.zip" else tar_of(bomb, "w:xz" if name == "p.tar.xz" else "w:gz")
    limits = Limits(1 << 30, ratio=100, ratio_from_bytes=2_000_000)
    into = tmp_path / "into"
    into.mkdir()
    with pytest.raises(DataError, match=r"unpacks to more than \d MB, over 100 times as much.*give the folder"):
        unpack(put(tmp_path, name, body), into, limits=limits)
    assert sum(path.stat().st_size for path in into.iterdir()) <= 2_000_000
    assert unpack(put(tmp_path, name, body), tmp_path / "trusted", limits=limits, is_trusted=True).files == 9


@pytest.mark.skipif(sys.platform == "win32", reason="nothing is removed there")
def test_a_copy_without_a_known_layout_does_not_stay(tmp_path: Path) -> None:
    path = put(tmp_path, "p.zip", zip_of(folders(".", ".png", "cat")))
    with pytest.raises(DataError, match="one class only"):
        scan(path, tmp_path)
    assert copies(tmp_path) == []
    assert len(scan(path, tmp_path, lenient=True).parts["train"]) == 3


@pytest.mark.parametrize("name", ["p.zip", "p.tar"])
def test_too_many_entries_are_refused(name: str, tmp_path: Path) -> None:
    many = {f"{n}.png": b"" for n in range(11)}
    with pytest.raises(DataError, match="more than 10 entries"):
        unpack(put(tmp_path, name, zip_of(many) if name == "p.zip" else tar_of(many, "w")), tmp_path, limits=TEN)


def test_a_zip_entry_larger_than_it_says_is_torn(tmp_path: Path) -> None:
    body = zip_of({"a.png": b"\0" * 1_000})
    said = struct.pack("<I", 1_000)
    path = put(tmp_path, "p.zip", body.replace(said, struct.pack("<I", 10)))
    with pytest.raises(DataError, match="torn"):
        unpack(path, tmp_path, limits=TEN)
    assert sum(file.stat().st_size for file in tmp_path.glob("a.png")) <= 10


@pytest.mark.parametrize("size", [-512, 1 << 60])
def test_a_tar_header_that_lies_of_its_size_is_refused(size: int, tmp_path: Path) -> None:
    header = bytearray(tarfile.TarInfo("a.png").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = tarfile.itn(size, 12, tarfile.GNU_FORMAT)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    with pytest.raises(DataError, match="claims a size of -512|the file has 1,152,921,504,607 MB"):
        unpack(put(tmp_path, "p.tar", bytes(header) + bytes(1024)), tmp_path, limits=TEN)


def test_a_tar_header_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1 << 40
    with pytest.raises(DataError, match=r"a header claims 1,099,511,6\d\d,\d{3} bytes"):
        unpack(put(tmp_path, "p.tar", info.tobuf(tarfile.GNU_FORMAT) + bytes(1024)), tmp_path)


@pytest.mark.parametrize("name", KINDS)
def test_a_torn_archive_is_said_and_leaves_nothing(name: str, tmp_path: Path) -> None:
    body = KINDS[name]
    for length in (0, 3, len(body) // 3, len(body) // 2):
        path = put(tmp_path, name, body[:length])
        with pytest.raises(DataError, match=r"is torn, or no archive"):
            scan(path, tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache" / "unpacked").iterdir() if not path.name.endswith(".lock")]


def test_a_tar_cut_between_two_entries_is_torn(tmp_path: Path) -> None:
    whole = KINDS["p.tar"]
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        cut = tar.getmembers()[3].offset
    with pytest.raises(DataError, match="does not end as a tar does"):
        scan(put(tmp_path, "p.tar", whole[:cut]), tmp_path)


@pytest.mark.parametrize("name", ["p.zip", "p.tar", "p.tar.gz", "p.tar.xz", "p.tar.bz2"])
def test_what_is_no_archive_is_said(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no archive"):
        scan(put(tmp_path, name, b"<html>not found</html>" * 99), tmp_path)


def test_an_ending_that_lies_of_the_compression_does_not_matter(tmp_path: Path) -> None:
    for name, compress in (
        ("a.tar", gzip.compress),
        ("b.tgz", bz2.compress),
        ("c.tar.gz", lzma.compress),
        ("d.txz", bytes),
    ):
        path = put(tmp_path, name, compress(KINDS["p.tar"]))
        assert len(scan(path, tmp_path).parts["train"]) == 6


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="this Python reads zstd")
def test_zstd_is_said_to_need_a_newer_python(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"zstd, which Python reads from 3.14 on"):
        scan(put(tmp_path, "p.tar.zst", b"\x28\xb5\x2f\xfd" + b"\0" * 99), tmp_path)


def test_an_encrypted_zip_is_said(tmp_path: Path) -> None:
    body = bytearray(zip_of({"a.png": b"secret"}))
    body[6] |= 1
    body[body.index(b"PK\x01\x02") + 8] |= 1
    with pytest.raises(DataError, match="is encrypted"):
        scan(put(tmp_path, "p.zip", bytes(body)), tmp_path)


def test_a_compression_that_python_does_not_know_is_said(tmp_path: Path) -> None:
    body = bytearray(zip_of({"a.png": b"text"}))
    body[8] = body[body.index(b"PK\x01\x02") + 10] = 9
    with pytest.raises(DataError, match="cannot be unpacked: .*pack it again"):
        scan(put(tmp_path, "p.zip", bytes(body)), tmp_path)


@pytest.mark.parametrize("files", [{}, {"a/readme.txt": b"x"}])
def test_an_archive_without_pictures_is_said(files: dict[str, bytes], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no pictures"):
        scan(put(tmp_path, "p.zip", zip_of(files)), tmp_path)


def test_a_wrong_layout_names_the_archive(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"in .*p.zip, unpacked: .*one class only \(cat\)"):
        scan(put(tmp_path, "p.zip", zip_of(folders(".", ".png", "cat"))), tmp_path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_comes_twice_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as zipped:
        zipped.writestr("a/b.png", b"1")
        zipped.writestr("a/b.png", b"2")
    with pytest.raises(DataError, match="holds a/b.png twice"):
        unpack(put(tmp_path, "p.zip", buffer.getvalue()), tmp_path / "into", limits=TEN)


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("names", [("a/9.png", "a/9.png/1.png"), ("a/9.png/x/1.png", "a/9.png"), ("a", "a/b/9.png")])
def test_a_file_and_a_folder_of_one_name_are_said(kind: str, names: tuple[str, str], tmp_path: Path) -> None:
    files = dict.fromkeys(names, b"body")
    path = put(tmp_path, f"p.{kind}", zip_of(files) if kind == "zip" else tar_of(files, "w"))
    shorter = min(names, key=len)
    with pytest.raises(DataError, match=f"holds both a file and a folder called {shorter}; rename one"):
        unpack(path, tmp_path / "into", limits=TEN)


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_name_that_is_too_long_is_named(kind: str, tmp_path: Path) -> None:
    name = f"a/{'x' * 300}.png"
    files = {**folders(".", ".png", "a", "b"), f"a/{'y' * 300}.txt": b"left out", name: picture("PNG")}
    path = put(tmp_path, f"p.{kind}", zip_of(files) if kind == "zip" else tar_of(files, "w"))
    with pytest.raises(DataError, match=r"name is too long for this file system: a/x{118}\.\.\.; shorten it"):
        scan(path, tmp_path / "cache")
    del files[name]
    assert len(scan(put(tmp_path, "q.zip", zip_of(files)), tmp_path).parts["train"]) == 6


def test_archives_in_an_archive_are_named(tmp_path: Path) -> None:
    inner = {"x/train.zip": zip_of(FILES), "x/test.tar.gz": tar_of(FILES), "readme.txt": b"x"}
    with pytest.raises(DataError, match=r"no pictures, but archives \(x/train.zip, x/test.tar.gz\).*--data train.zip"):
        scan(put(tmp_path, "p.zip", zip_of(inner)), tmp_path)
    for _ in range(2):
        (note,) = scan(put(tmp_path, "q.zip", zip_of({**FILES, "photos/old.zip": b"x"})), tmp_path).notes[-1:]
        assert note.startswith("archives in the archive are left out: 'photos/old.zip'; unpack it")
    folder = spread(tmp_path / "folder", inner)
    with pytest.raises(DataError, match=r"to use what is in test.tar.gz, give --data .*/x/test.tar.gz$"):
        dataset.open_data(DataSpec(source=str(folder / "x"), layout="classes"), workers=1)


def zip_with_names(encoding: str, extra: bool = False) -> bytes:
    """Return a zip as other programs write them: its names are not marked as UTF-8."""
    buffer = io.BytesIO()
    held: dict[bytes, bytes] = {}
    with zipfile.ZipFile(buffer, "w") as zipped:
        for number, name in enumerate(("犬/0.png", "犬/1.png", "猫/0.png", "猫/1.png")):
            raw = name.encode(encoding)
            ascii_name = f"{number}".rjust(len(raw), "x")
            held[ascii_name.encode()] = raw
            info = zipfile.ZipInfo(ascii_name)
            if extra:
                utf_8 = name.encode()
                info.extra = struct.pack("<HHBI", 0x7075, 5 + len(utf_8), 1, zlib.crc32(raw)) + utf_8
            zipped.writestr(info, picture("PNG"))
    body = buffer.getvalue()
    for ascii_name, raw in held.items():
        body = body.replace(ascii_name, raw)
    return body


def test_names_of_a_zip_that_are_given_as_utf_8_too_are_read(tmp_path: Path) -> None:
    found = scan(put(tmp_path, "p.zip", zip_with_names("shift_jis", extra=True)), tmp_path)
    assert (found.classes, found.notes) == (("犬", "猫"), ())


@pytest.mark.parametrize(("encoding", "read"), [("utf-8", "utf-8"), ("shift_jis", "cp437"), ("euc_jp", "cp437")])
def test_names_of_an_unsaid_encoding_are_pointed_out(encoding: str, read: str, tmp_path: Path) -> None:
    for _ in range(2):
        found = scan(put(tmp_path, "p.zip", zip_with_names(encoding)), tmp_path)
        assert set(found.classes) == {name.encode(encoding).decode(read) for name in ("犬", "猫")}
        assert "does not say in which encoding 4 names are, such as" in found.notes[0]


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot write into"):
        scan(put(tmp_path, "p.zip", KINDS["p.zip"]), put(tmp_path, "file", b""))


def test_two_at_once_unpack_once(tmp_path: Path) -> None:
    path = put(tmp_path, "p.zip", KINDS["p.zip"])
    finished: list[str] = []
    threads = [
        threading.Thread(target=scan, args=(path, tmp_path, lambda *now: finished.append(now[0]))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert finished == ["unpacking p.zip"]


def test_an_archive_that_is_not_there_is_said() -> None:
    with pytest.raises(DataError, match="none.zip cannot be read: No such file"):
        dataset.open_data(DataSpec(source="none.zip", layout="classes"), workers=1)


def test_a_folder_that_is_called_like_an_archive_is_a_folder(tmp_path: Path) -> None:
    for name, body in folders("x.zip", ".png", "a", "b").items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(body)
    data = dataset.open_data(DataSpec(source=os.fspath(tmp_path / "x.zip"), layout="classes"), workers=1)
    assert data.classes == ("a", "b")


@given(name=st.sampled_from(sorted(KINDS)), data=st.data())
@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_no_damage_makes_anything_but_a_plain_error(name: str, data: st.DataObject, tmp_path: Path) -> None:
    body = bytearray(KINDS[name])
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    into = tmp_path / os.urandom(8).hex()
    into.mkdir()
    with suppress(DataError, StorageError):
        unpack(put(tmp_path, name, bytes(body)), into, limits=TEN)


def spread(folder: Path, files: dict[str, bytes]) -> Path:
    for name, body in files.items():
        path = folder / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.write_bytes(body)
    return folder


def said(source: Path, cache: Path) -> str:
    try:
        data = dataset.open_data(DataSpec(source=str(source), data_dir=str(cache), layout="classes"), workers=1)
    except DataError as error:
        # Before that, it names the folder, which is another one for what was unpacked.
        return str(error)[str(error).index("has class folders") :]
    return str((data.classes, data.notes))


def tar_of_folder(folder: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.add(folder, folder.name)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "extra",
    [
        {"cat/x.heic": b"heic", "dog/notes.txt": b"text", "README.md": b"read", "dog/x.csv": b"csv"},
        {"fox/x.heic": b"heic"},
        {"fox/": b""},
    ],
)
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_an_archive_says_what_its_folder_says(extra: dict[str, bytes], kind: str, tmp_path: Path) -> None:
    files = {**folders(".", ".png", "cat", "dog"), **extra}
    photos = spread(tmp_path / "photos", files)
    in_photos = {f"photos/{name}": body for name, body in files.items()}
    path = put(tmp_path, f"p.{kind}", zip_of(in_photos) if kind == "zip" else tar_of_folder(photos))
    of_archive = said(path, tmp_path)
    assert "heic" in of_archive or "class folders without pictures: fox" in of_archive
    assert of_archive == said(photos, tmp_path)


def test_a_class_of_pictures_and_other_files_is_not_taken_for_a_folder_around_classes(tmp_path: Path) -> None:
    files = {**folders(".", ".png", "cat"), "cat/notes.txt": b"text"}
    with pytest.raises(DataError, match=r"one class only \(cat\)"):
        scan(put(tmp_path, "p.zip", zip_of(files)), tmp_path)


def test_a_folder_that_is_called_like_a_listing_is_a_folder(tmp_path: Path) -> None:
    files = folders(".", ".png", "a.csv", "b")
    assert scan(put(tmp_path, "p.zip", zip_of(files)), tmp_path).classes == ("a.csv", "b")


def test_hard_links_are_pictures_and_symbolic_ones_are_said(tmp_path: Path) -> None:
    photos = spread(tmp_path / "photos", folders(".", ".png", "cat", "dog"))
    os.link(photos / "cat" / "cat_0.png", photos / "dog" / "same.png")
    (photos / "dog" / "soft.png").symlink_to(photos / "cat" / "cat_0.png")
    path = put(tmp_path, "p.tar", tar_of_folder(photos))
    for _ in range(2):
        found = scan(path, tmp_path)
        assert len(found.parts["train"]) == 7
        assert found.notes == ("1 links or devices in the archive are left out; pack the files themselves",)
    same = next((tmp_path / "unpacked").rglob("same.png"))
    assert same.read_bytes() == (photos / "cat" / "cat_0.png").read_bytes()
    assert same.stat().st_nlink == 1


@pytest.mark.parametrize("link", ["../secret.png", "/etc/passwd", "a/none.png", "link.png", "a/b.txt"])
def test_a_hard_link_to_what_was_not_unpacked_is_left_out(link: str, tmp_path: Path) -> None:
    put(tmp_path, "secret.png", b"secret")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        body = tarfile.TarInfo("a/b.txt")
        body.size = 4
        tar.addfile(body, io.BytesIO(b"text"))
        member = tarfile.TarInfo("link.png")
        member.type, member.linkname = tarfile.LNKTYPE, link
        tar.addfile(member)
    path, into = put(tmp_path, "p.tar", buffer.getvalue()), tmp_path / "into"
    into.mkdir()
    unpacked = unpack(path, into, wanted=lambda name: name.endswith(".png"), named=lambda name: True)
    assert unpacked == Unpacked(files=0, left_out=1)
    assert not (into / "link.png").exists()


def test_hard_links_count_as_the_bytes_that_they_become(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        body = tarfile.TarInfo("a.png")
        body.size = 6_000_000
        tar.addfile(body, io.BytesIO(bytes(body.size)))
        link = tarfile.TarInfo("b.png")
        link.type, link.linkname = tarfile.LNKTYPE, "a.png"
        tar.addfile(link)
    with pytest.raises(DataError, match="unpacks to more than 10 MB"):
        unpack(put(tmp_path, "p.tar", buffer.getvalue()), tmp_path, limits=TEN)


def copies(cache: Path) -> list[Path]:
    return [path for path in (cache / "unpacked").iterdir() if path.is_dir()]


def test_a_touched_archive_leaves_one_copy(tmp_path: Path) -> None:
    path, other = put(tmp_path, "p.zip", KINDS["p.zip"]), put(tmp_path, "p.tar", KINDS["p.tar"])
    scan(other, tmp_path)
    for now in (1, 2, 3):
        os.utime(path, (now, now))
        assert len(scan(path, tmp_path).parts["train"]) == 6
        assert len(copies(tmp_path)) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="nothing is removed there")
def test_a_copy_that_another_process_reads_stays_until_it_ends(tmp_path: Path) -> None:
    path = put(tmp_path, "p.zip", KINDS["p.zip"])
    code = (
        "import sys; from pathlib import Path; from tl_cli.data.sources.archive import scan; "
        "scan(Path(sys.argv[1]), Path(sys.argv[2])); print('open', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, path, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == b"open\n"
        os.utime(path, (1, 1))
        scan(path, tmp_path)
        assert len(copies(tmp_path)) == 2
        reader.communicate()
    scan(path, tmp_path)
    assert len(copies(tmp_path)) == 1


@pytest.mark.parametrize(
    ("name", "kind"), [("p.tar", "p.zip"), ("p.tgz", "p.zip"), ("p.zip", "p.tar"), ("p.zip", "p.tar.gz")]
)
def test_what_an_archive_is_outweighs_its_name(name: str, kind: str, tmp_path: Path) -> None:
    assert len(scan(put(tmp_path, name, KINDS[kind]), tmp_path).parts["train"]) == 6


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such names")
def test_a_colon_in_a_name_is_no_drive(tmp_path: Path) -> None:
    files = {f"{name}/0.png": picture("PNG") for name in ("a: x", "b")}
    assert scan(put(tmp_path, "p.zip", zip_of(files)), tmp_path).classes == ("a: x", "b")


def test_parts_in_an_archive_are_read_as_those_of_a_folder(tmp_path: Path) -> None:
    files = {**folders("seg_train/seg_train", ".png", "a", "b"), **folders("seg_test/seg_test", ".png", "a", "b")}
    found = scan(put(tmp_path, "p.zip", zip_of(files)), tmp_path)
    assert (found.layout, found.classes) == ("train/test", ("a", "b"))
    with pytest.raises(DataError, match="in .*q.zip, unpacked: .* looks divided into parts"):
        scan(put(tmp_path, "q.zip", zip_of(folders(".", ".png", "train", "test"))), tmp_path)

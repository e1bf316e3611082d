import gzip
import io
import os
import shutil
import stat
import struct
import subprocess
import tarfile
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.archives import KINDS, TEN, put
from tests.support.published_copies import tar_of, zip_of
from tl_cli.data.sources.archive import scan
from tl_cli.data.sources.unpack import Limits, Unpacked, unpack
from tl_cli.errors import DataError, StorageError


def tar_with(member: tarfile.TarInfo, body: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.addfile(member, io.BytesIO(body))
        info = tarfile.TarInfo("a/b.png")
        info.size = 4
        tar.addfile(info, io.BytesIO(b"body"))
    return buffer.getvalue()


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
def test_an_archive_larger_than_the_limit_is_refused_before_it_is_written(name: str, tmp_path: Path) -> None:
    bomb = {"a.png": b"\0" * 11_000_000}
    path = put(tmp_path, name, zip_of(bomb) if name == "p.zip" else tar_of(bomb))
    into = tmp_path / "into"
    into.mkdir()
    with pytest.raises(DataError, match=r"unpacks to more than 10 MB.*--data-dir"):
        unpack(path, into, limits=TEN)
    with pytest.raises(DataError, match="unpacks to more than"):
        unpack(path, into, limits=TEN, select=lambda name: False)
    assert not list(into.iterdir())


def sparse_tar(folder: Path, size: int) -> bytes:
    """Return a tar with an image that is a hole of ``size`` bytes after its first page."""
    path = folder / "hole.png"
    with path.open("wb") as file:
        file.write(b"x" * 4096)
        file.truncate(size)
    subprocess.run(["tar", "-S", "-cf", "hole.tar", "hole.png"], cwd=folder, check=True)
    return (folder / "hole.tar").read_bytes()


@pytest.mark.skipif(shutil.which("tar") is None, reason="Python writes no sparse tars")
def test_a_sparse_file_stays_sparse(tmp_path: Path) -> None:
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
def test_an_entry_larger_than_any_image_is_refused_and_leaves_nothing(kind: str, tmp_path: Path) -> None:
    body = sparse_tar(tmp_path, 40 << 30)
    path = put(tmp_path, f"p.{kind}", gzip.compress(body) if kind == "tar.gz" else body)
    with pytest.raises(DataError, match=r"p.tar.*: hole.png: the file has 42,950 MB; pictures of more than 1,432 MB"):
        scan(path, tmp_path / "cache")
    assert not [each for each in (tmp_path / "cache" / "unpacked").iterdir() if not each.name.endswith(".lock")]


@pytest.mark.parametrize("name", ["p.zip", "p.tar.gz", "p.tar.xz"])
def test_an_archive_with_a_suspicious_compression_ratio_is_refused(name: str, tmp_path: Path) -> None:
    bomb = {f"{n}.png": bytes(1_000_000) for n in range(9)}
    body = zip_of(bomb) if name == "p.zip" else tar_of(bomb, "w:xz" if name == "p.tar.xz" else "w:gz")
    limits = Limits(1 << 30, ratio=100, ratio_from_bytes=2_000_000)
    into = tmp_path / "into"
    into.mkdir()
    with pytest.raises(DataError, match=r"unpacks to more than \d MB, over 100 times as much.*give the folder"):
        unpack(put(tmp_path, name, body), into, limits=limits)
    assert sum(path.stat().st_size for path in into.iterdir()) <= 2_000_000
    assert unpack(put(tmp_path, name, body), tmp_path / "trusted", limits=limits, is_trusted=True).files == 9


@pytest.mark.parametrize("name", ["p.zip", "p.tar"])
def test_too_many_entries_are_refused(name: str, tmp_path: Path) -> None:
    many = {f"{n}.png": b"" for n in range(11)}
    with pytest.raises(DataError, match="more than 10 entries"):
        unpack(put(tmp_path, name, zip_of(many) if name == "p.zip" else tar_of(many, "w")), tmp_path, limits=TEN)


def test_a_zip_entry_larger_than_declared_is_damaged(tmp_path: Path) -> None:
    body = zip_of({"a.png": b"\0" * 1_000})
    declared = struct.pack("<I", 1_000)
    path = put(tmp_path, "p.zip", body.replace(declared, struct.pack("<I", 10)))
    with pytest.raises(DataError, match="damaged"):
        unpack(path, tmp_path, limits=TEN)
    assert sum(file.stat().st_size for file in tmp_path.glob("a.png")) <= 10


@pytest.mark.parametrize("size", [-512, 1 << 60])
def test_a_tar_header_with_an_impossible_size_is_refused(size: int, tmp_path: Path) -> None:
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


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_duplicate_name_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as zipped:
        zipped.writestr("a/b.png", b"1")
        zipped.writestr("a/b.png", b"2")
    with pytest.raises(DataError, match="holds a/b.png twice"):
        unpack(put(tmp_path, "p.zip", buffer.getvalue()), tmp_path / "into", limits=TEN)


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("names", [("a/9.png", "a/9.png/1.png"), ("a/9.png/x/1.png", "a/9.png"), ("a", "a/b/9.png")])
def test_a_file_and_a_folder_of_one_name_are_refused(kind: str, names: tuple[str, str], tmp_path: Path) -> None:
    files = dict.fromkeys(names, b"body")
    path = put(tmp_path, f"p.{kind}", zip_of(files) if kind == "zip" else tar_of(files, "w"))
    shorter = min(names, key=len)
    with pytest.raises(DataError, match=f"holds both a file and a folder called {shorter}; rename one"):
        unpack(path, tmp_path / "into", limits=TEN)


@given(name=st.sampled_from(sorted(KINDS)), data=st.data())
@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_a_damaged_archive_is_unpacked_or_a_plain_error(name: str, data: st.DataObject, tmp_path: Path) -> None:
    body = bytearray(KINDS[name])
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    into = tmp_path / os.urandom(8).hex()
    into.mkdir()
    with suppress(DataError, StorageError):
        unpack(put(tmp_path, name, bytes(body)), into, limits=TEN)


@pytest.mark.parametrize("link", ["../secret.png", "/etc/passwd", "a/none.png", "link.png", "a/b.txt"])
def test_a_hard_link_to_a_file_that_was_not_unpacked_is_skipped(link: str, tmp_path: Path) -> None:
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
    unpacked = unpack(path, into, select=lambda name: name.endswith(".png"), keep_name=lambda name: True)
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

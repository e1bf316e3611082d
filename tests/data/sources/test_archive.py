import bz2
import gzip
import io
import lzma
import os
import struct
import subprocess
import sys
import tarfile
import threading
import zipfile
import zlib
from pathlib import Path

import pytest

from tests.support.archives import FILES, KINDS, put, spread, tar_of_folder
from tests.support.hand_made_pictures import picture
from tests.support.published_copies import folders, tar_of, zip_of
from tl_cli.contract import DataSpec
from tl_cli.data import dataset
from tl_cli.data.sources.archive import remove_unread, scan
from tl_cli.errors import DataError, StorageError
from tl_cli.io.use_lock import mark_used


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
def test_single_folders_around_the_classes_are_entered(top: str, tmp_path: Path) -> None:
    files = {k: v for part in ("train", "test") for k, v in folders(f"{top}{part}", ".png", "a", "b").items()}
    scanned = scan(put(tmp_path, "p.zip", zip_of(files)), tmp_path)
    assert scanned.layout == "train/test"
    assert scanned.parts["test"].ids[0] == "test/a/a_0.png"


@pytest.mark.parametrize("top", ["", "one/"])
def test_a_listing_at_the_top_is_read(top: str, tmp_path: Path) -> None:
    files = {f"{top}img/{n}.png": picture("PNG") for n in "1234"}
    files[f"{top}labels.csv"] = b"path,label\n" + b"".join(
        b"img/%d.png,%s\n" % (n, b"ab"[n % 2 :][:1]) for n in (1, 2, 3, 4)
    )
    scanned = scan(put(tmp_path, "p.zip", zip_of(files)), tmp_path)
    assert scanned.classes == ("a", "b")
    assert scanned.parts["train"].ids[0] == "img/2.png"


def test_a_csv_without_paths_and_labels_is_ignored(tmp_path: Path) -> None:
    files = {**folders(".", ".png", "a", "b"), "sample_submission.csv": b"id,answer\n1,2\n"}
    assert scan(put(tmp_path, "p.zip", zip_of(files)), tmp_path).classes == ("a", "b")


@pytest.mark.parametrize("listed", ["../../outside.png", "/etc/outside.png"])
def test_a_listing_in_an_archive_cannot_reach_outside(listed: str, tmp_path: Path) -> None:
    files = {"a.png": picture("PNG"), "labels.csv": f"path,label\na.png,a\n{listed},b\n".encode()}
    with pytest.raises(DataError, match=r"p.zip, unpacked: .*labels.csv, line 3: .* lies outside the archive"):
        scan(put(tmp_path, "p.zip", zip_of(files)), tmp_path)


def test_only_images_and_listings_are_unpacked(tmp_path: Path) -> None:
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


@pytest.mark.skipif(sys.platform == "win32", reason="nothing is removed there")
def test_an_unpacked_archive_without_a_known_layout_is_removed(tmp_path: Path) -> None:
    path = put(tmp_path, "p.zip", zip_of(folders(".", ".png", "cat")))
    with pytest.raises(DataError, match="one class only"):
        scan(path, tmp_path)
    assert copies(tmp_path) == []
    assert len(scan(path, tmp_path, lenient=True).parts["train"]) == 3


@pytest.mark.parametrize("name", KINDS)
def test_a_truncated_archive_is_an_error_and_leaves_nothing(name: str, tmp_path: Path) -> None:
    body = KINDS[name]
    for length in (0, 3, len(body) // 3, len(body) // 2):
        path = put(tmp_path, name, body[:length])
        with pytest.raises(DataError, match=r"is damaged, or no archive"):
            scan(path, tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache" / "unpacked").iterdir() if not path.name.endswith(".lock")]


def test_a_tar_cut_between_two_entries_is_truncated(tmp_path: Path) -> None:
    whole = KINDS["p.tar"]
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        cut = tar.getmembers()[3].offset
    with pytest.raises(DataError, match="does not end as a tar does"):
        scan(put(tmp_path, "p.tar", whole[:cut]), tmp_path)


@pytest.mark.parametrize("name", ["p.zip", "p.tar", "p.tar.gz", "p.tar.xz", "p.tar.bz2"])
def test_a_file_that_is_no_archive_is_an_error(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no archive"):
        scan(put(tmp_path, name, b"<html>not found</html>" * 99), tmp_path)


def test_compression_is_detected_by_content_not_by_name(tmp_path: Path) -> None:
    for name, compress in (
        ("a.tar", gzip.compress),
        ("b.tgz", bz2.compress),
        ("c.tar.gz", lzma.compress),
        ("d.txz", bytes),
    ):
        path = put(tmp_path, name, compress(KINDS["p.tar"]))
        assert len(scan(path, tmp_path).parts["train"]) == 6


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="this Python reads zstd")
def test_zstd_needs_a_newer_python(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"zstd, which Python reads from 3.14 on"):
        scan(put(tmp_path, "p.tar.zst", b"\x28\xb5\x2f\xfd" + b"\0" * 99), tmp_path)


def test_an_encrypted_zip_is_an_error(tmp_path: Path) -> None:
    body = bytearray(zip_of({"a.png": b"secret"}))
    body[6] |= 1
    body[body.index(b"PK\x01\x02") + 8] |= 1
    with pytest.raises(DataError, match="is encrypted"):
        scan(put(tmp_path, "p.zip", bytes(body)), tmp_path)


def test_an_unsupported_compression_is_an_error(tmp_path: Path) -> None:
    body = bytearray(zip_of({"a.png": b"text"}))
    body[8] = body[body.index(b"PK\x01\x02") + 10] = 9
    with pytest.raises(DataError, match="cannot be unpacked: .*pack it again"):
        scan(put(tmp_path, "p.zip", bytes(body)), tmp_path)


@pytest.mark.parametrize("files", [{}, {"a/readme.txt": b"x"}])
def test_an_archive_without_images_is_an_error(files: dict[str, bytes], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no images"):
        scan(put(tmp_path, "p.zip", zip_of(files)), tmp_path)


def test_a_wrong_layout_names_the_archive(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"in .*p.zip, unpacked: .*one class only \(cat\)"):
        scan(put(tmp_path, "p.zip", zip_of(folders(".", ".png", "cat"))), tmp_path)


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
    with pytest.raises(DataError, match=r"no images, but archives \(x/train.zip, x/test.tar.gz\).*--data train.zip"):
        scan(put(tmp_path, "p.zip", zip_of(inner)), tmp_path)
    for _ in range(2):
        (note,) = scan(put(tmp_path, "q.zip", zip_of({**FILES, "photos/old.zip": b"x"})), tmp_path).notes[-1:]
        assert note.startswith("archives in the archive are left out: 'photos/old.zip'; unpack it")
    folder = spread(tmp_path / "folder", inner)
    with pytest.raises(DataError, match=r"to use what is in test.tar.gz, give --data .*/x/test.tar.gz$"):
        dataset.open_data(DataSpec(source=str(folder / "x"), layout="classes"), workers=1)


def zip_with_names(encoding: str, extra: bool = False) -> bytes:
    """Return a zip as other programs write it: its names are not marked as UTF-8."""
    buffer = io.BytesIO()
    names: dict[bytes, bytes] = {}
    with zipfile.ZipFile(buffer, "w") as zipped:
        for number, name in enumerate(("犬/0.png", "犬/1.png", "猫/0.png", "猫/1.png")):
            raw = name.encode(encoding)
            ascii_name = f"{number}".rjust(len(raw), "x")
            names[ascii_name.encode()] = raw
            info = zipfile.ZipInfo(ascii_name)
            if extra:
                utf_8 = name.encode()
                info.extra = struct.pack("<HHBI", 0x7075, 5 + len(utf_8), 1, zlib.crc32(raw)) + utf_8
            zipped.writestr(info, picture("PNG"))
    body = buffer.getvalue()
    for ascii_name, raw in names.items():
        body = body.replace(ascii_name, raw)
    return body


def test_the_utf_8_copy_of_a_zip_entrys_name_is_used(tmp_path: Path) -> None:
    scanned = scan(put(tmp_path, "p.zip", zip_with_names("shift_jis", extra=True)), tmp_path)
    assert (scanned.classes, scanned.notes) == (("犬", "猫"), ())


@pytest.mark.parametrize(("encoding", "read"), [("utf-8", "utf-8"), ("shift_jis", "cp437"), ("euc_jp", "cp437")])
def test_names_of_an_undeclared_encoding_are_noted(encoding: str, read: str, tmp_path: Path) -> None:
    for _ in range(2):
        scanned = scan(put(tmp_path, "p.zip", zip_with_names(encoding)), tmp_path)
        assert set(scanned.classes) == {name.encode(encoding).decode(read) for name in ("犬", "猫")}
        assert "does not declare the encoding of 4 names, such as" in scanned.notes[0]


def test_a_cache_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot write"):
        scan(put(tmp_path, "p.zip", KINDS["p.zip"]), put(tmp_path, "file", b""))


def test_concurrent_scans_unpack_once(tmp_path: Path) -> None:
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


def test_a_missing_archive_is_an_error() -> None:
    with pytest.raises(DataError, match="none.zip cannot be read: No such file"):
        dataset.open_data(DataSpec(source="none.zip", layout="classes"), workers=1)


def test_a_folder_that_is_called_like_an_archive_is_a_folder(tmp_path: Path) -> None:
    for name, body in folders("x.zip", ".png", "a", "b").items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(body)
    data = dataset.open_data(DataSpec(source=os.fspath(tmp_path / "x.zip"), layout="classes"), workers=1)
    assert data.classes == ("a", "b")


def notes_or_fault(source: Path, cache: Path) -> str:
    try:
        data = dataset.open_data(DataSpec(source=str(source), data_dir=str(cache), layout="classes"), workers=1)
    except DataError as error:
        # The part before it names the folder, which differs for an unpacked archive.
        return str(error)[str(error).index("has class folders") :]
    return str((data.classes, data.notes))


@pytest.mark.parametrize(
    "extra",
    [
        {"cat/x.heic": b"heic", "dog/notes.txt": b"text", "README.md": b"read", "dog/x.csv": b"csv"},
        {"fox/x.heic": b"heic"},
        {"fox/": b""},
    ],
)
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_an_archive_has_the_notes_and_faults_of_its_folder(extra: dict[str, bytes], kind: str, tmp_path: Path) -> None:
    files = {**folders(".", ".png", "cat", "dog"), **extra}
    photos = spread(tmp_path / "photos", files)
    in_photos = {f"photos/{name}": body for name, body in files.items()}
    path = put(tmp_path, f"p.{kind}", zip_of(in_photos) if kind == "zip" else tar_of_folder(photos))
    of_archive = notes_or_fault(path, tmp_path)
    assert "heic" in of_archive or "class folders without images: fox" in of_archive
    assert of_archive == notes_or_fault(photos, tmp_path)


def test_a_class_with_other_files_is_not_a_folder_around_classes(tmp_path: Path) -> None:
    files = {**folders(".", ".png", "cat"), "cat/notes.txt": b"text"}
    with pytest.raises(DataError, match=r"one class only \(cat\)"):
        scan(put(tmp_path, "p.zip", zip_of(files)), tmp_path)


def test_a_folder_that_is_called_like_a_listing_is_a_folder(tmp_path: Path) -> None:
    files = folders(".", ".png", "a.csv", "b")
    assert scan(put(tmp_path, "p.zip", zip_of(files)), tmp_path).classes == ("a.csv", "b")


def test_hard_links_are_images_and_symbolic_links_are_noted(tmp_path: Path) -> None:
    photos = spread(tmp_path / "photos", folders(".", ".png", "cat", "dog"))
    os.link(photos / "cat" / "cat_0.png", photos / "dog" / "same.png")
    (photos / "dog" / "soft.png").symlink_to(photos / "cat" / "cat_0.png")
    path = put(tmp_path, "p.tar", tar_of_folder(photos))
    for _ in range(2):
        scanned = scan(path, tmp_path)
        assert len(scanned.parts["train"]) == 7
        assert scanned.notes == ("1 links or devices in the archive are left out; pack the files themselves",)
    same = next((tmp_path / "unpacked").rglob("same.png"))
    assert same.read_bytes() == (photos / "cat" / "cat_0.png").read_bytes()
    assert same.stat().st_nlink == 1


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
def test_a_copy_marked_as_used_is_kept_until_the_mark_is_removed(tmp_path: Path) -> None:
    path = put(tmp_path, "p.zip", KINDS["p.zip"])
    scan(path, tmp_path)
    (copy,) = copies(tmp_path)
    assert not remove_unread(copy)
    reader = os.open(copy, os.O_RDONLY)
    mark_used(reader)
    os.utime(path, (1, 1))
    scan(path, tmp_path)
    assert len(copies(tmp_path)) == 2
    os.close(reader)
    scan(path, tmp_path)
    assert len(copies(tmp_path)) == 1


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="nothing is removed there")
def test_a_copy_read_by_another_process_is_kept_until_it_ends(tmp_path: Path) -> None:
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
def test_the_kind_of_an_archive_is_detected_by_content_not_by_name(name: str, kind: str, tmp_path: Path) -> None:
    assert len(scan(put(tmp_path, name, KINDS[kind]), tmp_path).parts["train"]) == 6


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such names")
def test_a_colon_in_a_name_is_no_drive(tmp_path: Path) -> None:
    files = {f"{name}/0.png": picture("PNG") for name in ("a: x", "b")}
    assert scan(put(tmp_path, "p.zip", zip_of(files)), tmp_path).classes == ("a: x", "b")


def test_parts_in_an_archive_are_read_as_those_of_a_folder(tmp_path: Path) -> None:
    files = {**folders("seg_train/seg_train", ".png", "a", "b"), **folders("seg_test/seg_test", ".png", "a", "b")}
    scanned = scan(put(tmp_path, "p.zip", zip_of(files)), tmp_path)
    assert (scanned.layout, scanned.classes) == ("train/test", ("a", "b"))
    with pytest.raises(DataError, match="in .*q.zip, unpacked: .* looks divided into parts"):
        scan(put(tmp_path, "q.zip", zip_of(folders(".", ".png", "train", "test"))), tmp_path)

import hashlib
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from tl_cli.data.contents import Contents, changed_since, read_contents
from tl_cli.data.packed_names import Names
from tl_cli.data.threads import Threads
from tl_cli.errors import DataError
from tl_cli.io.download import cache_root


@pytest.fixture
def files(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    (root / "é").mkdir(parents=True)
    for number, name in enumerate(NAMES):
        (root / name).write_bytes(bytes([number]) * (1000 * number))
    (root / NAMES[3]).write_bytes(os.urandom(3 << 20))
    return root


NAMES = ["a.bmp", "b.bmp", "é/c.bmp", "d.bmp", os.fsdecode(b"caf\xe9.bmp")]


class Reads:
    """Counts the files that are read."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, doing: str, done: int, total: int | None) -> None:
        self.count = done


def read(root: Path, names: list[str] = NAMES, settled_s: float = -60.0) -> tuple[Contents, int]:
    """Return the contents and how many files were read; by default every file counts as settled."""
    reads = Reads()
    contents = read_contents(root, Names.of(names), Threads(2, reads), settled_s=settled_s)
    return contents, reads.count


def expected(root: Path, names: list[str] = NAMES) -> list[bytes]:
    return [hashlib.sha256((root / name).read_bytes()).digest() for name in names]


def digests(contents: Contents) -> list[bytes]:
    return [row.tobytes() for row in contents.digests]


def test_each_file_is_read_again_only_when_it_changes(files: Path) -> None:
    first, count = read(files)
    assert (digests(first), count) == (expected(files), 5)
    second, count = read(files)
    assert (digests(second), count) == (expected(files), 0)
    assert read(files, NAMES[1:3])[1] == 0
    assert read(files)[1] == 0


def rewrite(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def replace(path: Path, data: bytes) -> None:
    path.with_name("other").write_bytes(data)
    path.with_name("other").replace(path)


@pytest.mark.parametrize("how", [rewrite, replace])
def test_a_new_file_of_equal_length_and_time_is_read(how, files: Path) -> None:
    before, _ = read(files)
    path = files / NAMES[1]
    stat, data = path.stat(), path.read_bytes()
    how(path, data[:-1] + b"x")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size
    assert changed_since(files, Names.of(NAMES), before) == [1]
    after, count = read(files)
    assert (digests(after), count) == (expected(files), 1)
    assert digests(after)[1] != digests(before)[1]


def test_touched_moved_and_linked_files_have_not_changed(files: Path) -> None:
    before, _ = read(files)
    os.utime(files / NAMES[1], ns=(1, 1))
    assert changed_since(files, Names.of(NAMES), before) == []
    (files.parent / "linked" / "é").mkdir(parents=True)
    for name in NAMES:
        os.link(files / name, files.parent / "linked" / name)
    files.rename(files.parent / "moved")
    for folder in ("linked", "moved"):
        assert digests(read(files.parent / folder)[0]) == digests(before)
        assert changed_since(files.parent / folder, Names.of(NAMES), before) == []


def test_digests_of_files_written_just_now_are_not_stored(files: Path) -> None:
    assert [read(files, settled_s=3600.0)[1] for _ in range(2)] == [5, 5]


@pytest.mark.parametrize("damage", ["cut", "garbled", "empty", "unreadable", "other"])
def test_damaged_digests_are_computed_again(damage: str, files: Path) -> None:
    read(files)
    (table,) = (cache_root() / "contents").glob("*.npy")
    whole = table.read_bytes()
    if damage == "cut":
        table.write_bytes(whole[:-7])
    elif damage == "garbled":
        table.write_bytes(whole[:-7] + bytes(7))
    elif damage == "empty":
        table.write_bytes(b"")
    elif damage == "unreadable":
        table.unlink()
        table.mkdir()
    else:
        np.save(table, np.zeros((2, 3)))
        table.with_suffix(".json").write_text(f'{{"sha256": "{hashlib.sha256(table.read_bytes()).hexdigest()}"}}')
    contents, count = read(files)
    assert (digests(contents), count) == (expected(files), 5)


def test_several_processes_may_read_concurrently(files: Path) -> None:
    found: list[list[bytes]] = []
    threads = [threading.Thread(target=lambda: found.append(digests(read(files)[0]))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected(files)] * 8
    assert read(files)[1] == 0


def test_a_file_that_cannot_be_read_is_named(files: Path) -> None:
    os.mkfifo(files / "pipe.bmp")
    with pytest.raises(DataError, match=r"pipe.bmp cannot be read: is no regular file"):
        read(files, ["a.bmp", "pipe.bmp"])
    with pytest.raises(DataError, match=r"gone.bmp cannot be read: No such file"):
        read(files, ["a.bmp", "gone.bmp"])
    before, _ = read(files)
    (files / "a.bmp").unlink()
    assert changed_since(files, Names.of(NAMES), before) == [0]


def test_without_a_writable_cache_files_are_read_each_time(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TL_CACHE_DIR", "/proc/nowhere")
    assert [read(files)[1] for _ in range(2)] == [5, 5]

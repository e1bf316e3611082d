import os
from pathlib import Path

import numpy as np
import pytest

from tl_cli.data.cache_entries import RULES, Entry, entries, remove
from tl_cli.io.array_cache import Store

HASH = "0123456789abcdef"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A cache folder with an array, a result of checks and measurements, and files of other programs."""
    store = Store(tmp_path / "decoded", disk_share=0.9)
    store.keep("key", np.zeros(100, np.uint8))
    for name in ("looked-at/" + 4 * HASH + ".json", "measured/probes.json", "looked-at/notes.json", "decoded/mine.npy"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"12345")
    return tmp_path


def test_entries_have_the_names_and_sizes_of_the_files_that_were_written(root: Path) -> None:
    by_kind = {entry.kind: entry for entry in entries(root)}
    assert set(by_kind) == {"decoded", "checks", "measurements"}
    array = by_kind["decoded"].path
    assert by_kind["decoded"].size == array.stat().st_size + array.with_suffix(".json").stat().st_size
    assert (by_kind["checks"].size, by_kind["checks"].used) == (5, by_kind["checks"].path.stat().st_mtime)


def test_an_array_without_its_hash_and_a_link_are_no_entries(root: Path) -> None:
    (array,) = (entry.path for entry in entries(root) if entry.kind == "decoded")
    os.symlink(array, array.with_name(2 * HASH + ".npy"))
    os.symlink(array.with_suffix(".json"), array.with_name(2 * HASH + ".json"))
    assert [entry.path for entry in entries(root) if entry.kind == "decoded"] == [array]
    array.with_suffix(".json").unlink()
    assert [entry.kind for entry in entries(root)] == ["checks", "measurements"]


def test_an_unpacked_archive_has_the_size_of_all_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "unpacked" / f"photos-{HASH}-{HASH}"
    (folder / "red").mkdir(parents=True)
    (folder / "red" / "a.png").write_bytes(bytes(1000))
    (entry,) = entries(tmp_path)
    assert entry.kind == "unpacked"
    assert entry.size == 1000 + sum(path.lstat().st_size for path in (folder, folder / "red"))


def test_entries_are_removed_with_their_hashes_and_other_files_remain(root: Path) -> None:
    found = entries(root)
    assert all(remove(entry) for entry in found)
    assert entries(root) == []
    assert sorted(path.name for path in root.rglob("*.*") if path.suffix != ".lock") == ["mine.npy", "notes.json"]


def test_downloads_and_files_that_cannot_be_removed_are_kept(tmp_path: Path) -> None:
    download = tmp_path / "data" / "cifar-10-batches-py"
    download.mkdir(parents=True)
    (entry,) = entries(tmp_path)
    assert entry.kind == "downloads"
    assert RULES["downloads"].remove is None
    assert not remove(entry)
    assert not remove(Entry("checks", download, 0, 0.0))  # a folder cannot be unlinked
    assert download.exists()

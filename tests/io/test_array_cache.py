import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from tl_cli.errors import DamagedError, StorageError
from tl_cli.io.array_cache import Rows, Store

VALUES = np.arange(60, dtype=np.uint8).reshape(5, 3, 2, 2)


def file_of(store: Store) -> Path:
    (path,) = store.folder.glob("*.npy")
    return path


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", disk_share=0.9)


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32])
def test_an_array_is_found_by_its_key_only(store: Store, dtype: type) -> None:
    assert store.find("a") is None
    store.keep("a", VALUES.astype(dtype))
    found = store.find("a")
    assert found is not None
    assert found.dtype == dtype
    assert np.array_equal(found, VALUES)
    assert store.find("b") is None


def test_rows_are_read_in_the_requested_order(store: Store) -> None:
    store.keep("a", VALUES.astype(np.float16))
    rows = store.open("a")
    assert rows is not None
    assert (rows.shape, rows.dtype) == (VALUES.shape, np.float16)
    indices = np.array([4, 0, 4, 2])
    assert np.array_equal(rows.take(indices), VALUES[indices])
    assert rows.take(indices[:0]).shape == (0, 3, 2, 2)
    assert store.open("b") is None


@pytest.mark.parametrize("damage", ["truncated", "one bit", "rows exchanged", "reindexd", "removed"])
def test_a_file_changed_while_open_gives_the_original_rows_or_an_error(store: Store, damage: str) -> None:
    store.keep("a", VALUES)
    rows, path = store.open("a"), file_of(store)
    assert rows is not None
    raw = bytearray(path.read_bytes())
    data = slice(len(raw) - VALUES.nbytes, None)
    if damage == "truncated":
        os.truncate(path, len(raw) - 1)
    elif damage == "removed":
        path.unlink()
    elif damage == "reindexd":
        store.keep("a", 255 - VALUES)
    else:
        raw[-1] ^= 1
        content = raw if damage == "one bit" else raw[: data.start] + VALUES[::-1].tobytes()
        with path.open("r+b") as file:
            file.write(content)
    if damage in ("reindexd", "removed"):
        assert np.array_equal(rows.take(np.arange(5)), VALUES)
        return
    with pytest.raises(DamagedError, match=f"{path.name} is damaged: row 4"):
        rows.take(np.array([4]))


def test_a_damaged_array_is_reported_and_a_missing_one_is_not(tmp_path: Path) -> None:
    named = list[Path]()
    store = Store(tmp_path, disk_share=0.9, damaged=named.append)
    store.keep("a", VALUES)
    assert (store.find("b"), store.open("b"), named) == (None, None, [])
    os.truncate(file_of(store), 150)
    assert (store.find("a"), store.open("a")) == (None, None)
    assert named == [file_of(store)] * 2
    rows = store.find_or_make("a", VALUES.shape, VALUES.dtype, [VALUES])
    assert np.array_equal(rows.take(np.arange(5)), VALUES)


def test_an_array_of_an_earlier_version_is_read_whole_but_not_by_rows(store: Store) -> None:
    store.keep("a", VALUES)
    manifest = file_of(store).with_suffix(".json")
    manifest.write_text(json.dumps({"sha256": hashlib.sha256(file_of(store).read_bytes()).hexdigest()}))
    assert np.array_equal(store.find("a"), VALUES)
    assert store.open("a") is None


def test_changes_to_an_array_in_memory_do_not_reach_the_disk(store: Store) -> None:
    store.keep("a", VALUES)
    found = store.find("a")
    assert found is not None
    found[:] = 0
    again = store.find("a")
    assert again is not None
    assert np.array_equal(again, VALUES)


@pytest.mark.parametrize("index", [0, 20, 100, -1])
def test_a_flipped_bit_is_detected_and_the_array_can_be_written_again(store: Store, index: int) -> None:
    store.keep("a", VALUES)
    raw = bytearray(file_of(store).read_bytes())
    raw[index] ^= 4
    file_of(store).write_bytes(raw)
    assert store.find("a") is None
    store.keep("a", VALUES)
    assert store.find("a") is not None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"sha256": null}', "\udcff"])
def test_an_array_with_a_damaged_manifest_is_not_found(store: Store, text: str) -> None:
    store.keep("a", VALUES)
    file_of(store).with_suffix(".json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert store.find("a") is None


def test_a_write_that_fails_keeps_nothing(store: Store) -> None:
    def rows() -> Iterator[np.ndarray]:
        yield VALUES[:2]
        raise KeyError

    with pytest.raises(KeyError):
        store.find_or_make("a", VALUES.shape, VALUES.dtype, rows())
    assert store.find("a") is None
    assert not [path for path in store.folder.iterdir() if path.suffix in (".tmp", ".npy")]


def test_the_least_recently_used_array_is_removed_when_there_is_no_room(tmp_path: Path) -> None:
    store = Store(tmp_path, most_bytes=600, disk_share=0.9)
    for age, key in enumerate("abc"):
        before = set(tmp_path.glob("*.npy"))
        store.keep(key, VALUES)
        (path,) = set(tmp_path.glob("*.npy")) - before
        os.utime(path, (age, age))
    assert store.find("a") is not None
    store.keep("d", VALUES)
    assert [store.find(key) is not None for key in "abcd"] == [True, False, True, True]
    assert len(list(tmp_path.glob("*.json"))) == 3


def test_an_array_larger_than_the_limit_is_refused_and_removes_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path, most_bytes=300, disk_share=0.9)
    store.keep("a", VALUES)
    with pytest.raises(StorageError, match="has room for"):
        store.keep("b", np.zeros((5, 100), np.uint8))
    assert store.find("a") is not None


def test_an_array_that_another_process_writes_is_not_waited_for(store: Store) -> None:
    store.keep("a", VALUES)
    lock = file_of(store).with_name(f".{file_of(store).stem}.lock")
    with FileLock(lock), pytest.raises(StorageError, match="another process"):
        store.keep("a", VALUES)
    assert store.find("a") is not None


def test_a_folder_that_cannot_be_written_raises_an_error_and_reads_as_empty(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = Store(tmp_path / "file" / "inner")
    assert store.find("a") is None
    with pytest.raises(StorageError, match="cannot write"):
        store.keep("a", VALUES)


def test_leftovers_of_a_killed_process_are_removed_and_files_being_written_are_not(store: Store) -> None:
    store.folder.mkdir()
    old, new = (store.folder / f".{name}.npy.1.tmp" for name in ("old", "new"))
    for path in (old, new):
        path.write_bytes(b"x")
    os.utime(old, (0, time.time() - 1e6))
    store.keep("a", VALUES)
    assert not old.exists()
    assert new.exists()


def test_an_array_that_another_process_writes_is_waited_for(store: Store) -> None:
    writing, go_on = threading.Event(), threading.Event()

    def rows() -> Iterator[np.ndarray]:
        writing.set()
        go_on.wait()
        yield VALUES

    thread = threading.Thread(target=store.find_or_make, args=("a", VALUES.shape, VALUES.dtype, rows()))
    thread.start()
    writing.wait()
    threading.Timer(0.1, go_on.set).start()
    found = store.find_or_make("a", VALUES.shape, VALUES.dtype, never())
    thread.join()
    assert np.array_equal(found.take(np.arange(5)), VALUES)


def never() -> Iterator[np.ndarray]:
    raise AssertionError("rows of an existing array were requested")
    yield


def test_an_array_requested_by_several_threads_is_made_once(store: Store) -> None:
    made, found = list[int](), list[Rows]()

    def rows(index: int) -> Iterator[np.ndarray]:
        made.append(index)
        for part in np.array_split(VALUES, 3):
            time.sleep(0.01)
            yield part

    def request(index: int) -> None:
        found.append(store.find_or_make("a", VALUES.shape, VALUES.dtype, rows(index)))

    threads = [threading.Thread(target=request, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert len(found) == 8
    assert all(np.array_equal(each.take(np.arange(5)), VALUES) for each in found)


def test_a_disk_that_loses_written_data_raises_an_error(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "open", lambda self, key: None)
    with pytest.raises(StorageError, match="what was written"):
        store.find_or_make("a", VALUES.shape, VALUES.dtype, [VALUES])


def test_a_folder_that_cannot_be_written_has_no_room() -> None:
    assert Store(Path("/dev/null/store")).room == 0

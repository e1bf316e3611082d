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
from tl_cli.io import array_cache as store_module
from tl_cli.io.array_cache import Rows, Store, memory_bytes

VALUES = np.arange(60, dtype=np.uint8).reshape(5, 3, 2, 2)


def put(store: Store, key: str, values: np.ndarray = VALUES) -> None:
    with store.keep(key, values.shape, values.dtype) as append:
        for piece in np.array_split(values, 2):
            append(piece)


def file_of(store: Store) -> Path:
    (path,) = store.folder.glob("*.npy")
    return path


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", disk_share=0.9)


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32])
def test_an_array_is_found_again_and_another_key_is_not(store: Store, dtype: type) -> None:
    assert store.find("a") is None
    put(store, "a", VALUES.astype(dtype))
    found = store.find("a")
    assert found is not None
    assert found.dtype == dtype
    assert np.array_equal(found, VALUES)
    assert store.find("b") is None


def test_rows_are_read_in_the_order_that_is_asked_for(store: Store) -> None:
    put(store, "a", VALUES.astype(np.float16))
    rows = store.open("a")
    assert rows is not None
    assert (rows.shape, rows.dtype) == (VALUES.shape, np.float16)
    places = np.array([4, 0, 4, 2])
    assert np.array_equal(rows.take(places), VALUES[places])
    assert rows.take(places[:0]).shape == (0, 3, 2, 2)
    assert store.open("b") is None


@pytest.mark.parametrize("damage", ["truncated", "one bit", "rows exchanged", "replaced", "removed"])
def test_a_file_that_changes_while_it_is_open_gives_the_rows_that_were_written_or_an_error(
    store: Store, damage: str
) -> None:
    put(store, "a")
    rows, path = store.open("a"), file_of(store)
    assert rows is not None
    raw = bytearray(path.read_bytes())
    data = slice(len(raw) - VALUES.nbytes, None)
    if damage == "truncated":
        os.truncate(path, len(raw) - 1)
    elif damage == "removed":
        path.unlink()
    elif damage == "replaced":
        put(store, "a", 255 - VALUES)
    else:
        raw[-1] ^= 1
        content = raw if damage == "one bit" else raw[: data.start] + VALUES[::-1].tobytes()
        with path.open("r+b") as file:
            file.write(content)
    if damage in ("replaced", "removed"):
        assert np.array_equal(rows.take(np.arange(5)), VALUES)
        return
    with pytest.raises(DamagedError, match=f"{path.name} is damaged: row 4"):
        rows.take(np.array([4]))


def test_a_damaged_array_is_named_and_one_that_was_never_kept_is_not(tmp_path: Path) -> None:
    named = list[Path]()
    store = Store(tmp_path, disk_share=0.9, damaged=named.append)
    put(store, "a")
    assert (store.find("b"), store.open("b"), named) == (None, None, [])
    os.truncate(file_of(store), 150)
    assert (store.find("a"), store.open("a")) == (None, None)
    assert named == [file_of(store)] * 2
    rows = store.find_or_make("a", VALUES.shape, VALUES.dtype, [VALUES])
    assert np.array_equal(rows.take(np.arange(5)), VALUES)


def test_an_array_of_an_earlier_version_is_read_whole_and_made_again_by_rows(store: Store) -> None:
    put(store, "a")
    manifest = file_of(store).with_suffix(".json")
    manifest.write_text(json.dumps({"sha256": hashlib.sha256(file_of(store).read_bytes()).hexdigest()}))
    assert np.array_equal(store.find("a"), VALUES)
    assert store.open("a") is None


def test_what_is_written_to_an_array_that_was_found_stays_in_this_process(store: Store) -> None:
    put(store, "a")
    found = store.find("a")
    assert found is not None
    found[:] = 0
    again = store.find("a")
    assert again is not None
    assert np.array_equal(again, VALUES)


@pytest.mark.parametrize("place", [0, 20, 100, -1])
def test_one_bit_that_flipped_is_seen_and_the_array_is_kept_anew(store: Store, place: int) -> None:
    put(store, "a")
    raw = bytearray(file_of(store).read_bytes())
    raw[place] ^= 4
    file_of(store).write_bytes(raw)
    assert store.find("a") is None
    put(store, "a")
    assert store.find("a") is not None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"sha256": null}', "\udcff"])
def test_a_torn_manifest_is_an_array_that_is_not_there(store: Store, text: str) -> None:
    put(store, "a")
    file_of(store).with_suffix(".json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert store.find("a") is None


def test_a_block_that_fails_keeps_nothing(store: Store) -> None:
    def stumble() -> None:
        with store.keep("a", VALUES.shape, VALUES.dtype) as append:
            append(VALUES[:2])
            raise KeyError

    with pytest.raises(KeyError):
        stumble()
    assert store.find("a") is None
    assert not [path for path in store.folder.iterdir() if path.suffix in (".tmp", ".npy")]


def test_the_least_recently_used_go_when_there_is_no_room(tmp_path: Path) -> None:
    store = Store(tmp_path, most_bytes=600, disk_share=0.9)
    for age, key in enumerate("abc"):
        before = set(tmp_path.glob("*.npy"))
        put(store, key)
        (path,) = set(tmp_path.glob("*.npy")) - before
        os.utime(path, (age, age))
    assert store.find("a") is not None
    put(store, "d")
    assert [store.find(key) is not None for key in "abcd"] == [True, False, True, True]
    assert len(list(tmp_path.glob("*.json"))) == 3


def test_what_is_larger_than_all_the_room_is_refused_and_removes_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path, most_bytes=300, disk_share=0.9)
    put(store, "a")
    with pytest.raises(StorageError, match="has room for"):
        put(store, "b", np.zeros((5, 100), np.uint8))
    assert store.find("a") is not None


def test_an_array_that_another_process_writes_is_not_waited_for(store: Store) -> None:
    put(store, "a")
    lock = file_of(store).with_name(f".{file_of(store).stem}.lock")
    with FileLock(lock), pytest.raises(StorageError, match="another process"):
        put(store, "a")
    assert store.find("a") is not None


def test_a_folder_that_cannot_be_written_is_a_plain_error_and_reads_as_empty(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = Store(tmp_path / "file" / "inner")
    assert store.find("a") is None
    with pytest.raises(StorageError, match="cannot write"):
        put(store, "a")


def test_what_a_killed_process_left_is_removed_and_what_is_being_written_is_not(store: Store) -> None:
    store.folder.mkdir()
    old, new = (store.folder / f".{name}.npy.1.tmp" for name in ("old", "new"))
    for path in (old, new):
        path.write_bytes(b"x")
    os.utime(old, (0, time.time() - 1e6))
    put(store, "a")
    assert not old.exists()
    assert new.exists()


def test_an_array_that_another_process_writes_is_waited_for(store: Store) -> None:
    writing, go_on = threading.Event(), threading.Event()

    def write() -> None:
        with store.keep("a", VALUES.shape, VALUES.dtype) as append:
            writing.set()
            go_on.wait()
            append(VALUES)

    thread = threading.Thread(target=write)
    thread.start()
    writing.wait()
    threading.Timer(0.1, go_on.set).start()
    found = store.find_or_make("a", VALUES.shape, VALUES.dtype, never())
    thread.join()
    assert np.array_equal(found.take(np.arange(5)), VALUES)


def never() -> Iterator[np.ndarray]:
    raise AssertionError("asked for what is there already")
    yield


def test_an_array_that_several_want_at_once_is_made_by_one_of_them(store: Store) -> None:
    made, found = list[int](), list[Rows]()

    def rows(place: int) -> Iterator[np.ndarray]:
        made.append(place)
        for part in np.array_split(VALUES, 3):
            time.sleep(0.01)
            yield part

    def want(place: int) -> None:
        found.append(store.find_or_make("a", VALUES.shape, VALUES.dtype, rows(place)))

    threads = [threading.Thread(target=want, args=(place,)) for place in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert len(found) == 8
    assert all(np.array_equal(each.take(np.arange(5)), VALUES) for each in found)


def test_a_disk_that_does_not_give_back_what_was_written_is_a_plain_error(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Store, "open", lambda self, key: None)
    with pytest.raises(StorageError, match="what was written"):
        store.find_or_make("a", VALUES.shape, VALUES.dtype, [VALUES])


def test_a_folder_that_cannot_be_written_has_no_room() -> None:
    assert Store(Path("/dev/null/store")).room == 0


@pytest.mark.parametrize(("said", "limited"), [("1000000\n", True), ("max\n", False), ("", False)])
def test_the_limit_of_a_container_is_the_memory(
    said: str, limited: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "_CGROUPS", tmp_path)
    whole = memory_bytes()
    (tmp_path / "memory.max").write_text(said)
    assert memory_bytes() == (1_000_000 if limited else whole)

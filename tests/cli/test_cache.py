"""``tl cache``: the sizes of cached files, and which files it removes."""

import gc
import json
import os
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tl_cli.data.dataset import open_source
from tl_cli.io.array_cache import Store
from tl_cli.io.download import cache_root

VALUES = np.arange(5000, dtype=np.uint8)


def put(folder: str, key: str, *, days: float = 0.0) -> Path:
    """Cache an array last used ``days`` days ago; return its file."""
    store = Store(cache_root() / folder, disk_share=0.9)
    before = {*store.folder.glob("*.npy")}
    store.keep(key, VALUES)
    (path,) = {*store.folder.glob("*.npy")} - before
    os.utime(path, (time.time() - days * 86400,) * 2)
    return path


def size_of(path: Path) -> int:
    return path.stat().st_size + path.with_suffix(".json").stat().st_size


def test_sizes_are_those_of_the_files_by_kind_and_age(tl) -> None:
    new, old, features = put("decoded", "new"), put("decoded", "old", days=40), put("features", "f", days=2)
    report = {row["kind"]: row for row in json.loads(tl("cache", "--json").out)["kinds"]}
    assert report["decoded"]["bytes"] == size_of(new) + size_of(old)
    assert report["decoded"]["bytes_unused_1_day"] == report["decoded"]["bytes_unused_30_days"] == size_of(old)
    assert report["decoded"]["entries"] == 2
    assert (report["features"]["bytes_unused_1_day"], report["features"]["bytes_unused_30_days"]) == (
        size_of(features),
        0,
    )
    assert "decoded" in tl("cache").out


def test_filters_choose_what_is_cleared(tl) -> None:
    new, old, features = put("decoded", "new"), put("decoded", "old", days=40), put("features", "f", days=40)
    assert tl("cache", "clear", "--kind", "decoded", "--older-than", "30d", "--yes").code == 0
    assert (new.exists(), old.exists(), features.exists()) == (True, False, True)
    assert not old.with_suffix(".json").exists()
    assert tl("cache", "clear", "--yes").code == 0
    assert not new.exists()
    assert not features.exists()
    assert "nothing to clear" in tl("cache", "clear", "--yes").out


def test_files_that_tl_did_not_write_stay(tl, tmp_path: Path) -> None:
    kept = put("decoded", "a")
    root = cache_root()
    (tmp_path / "elsewhere.npy").write_bytes(b"x")
    own = [root / "notes.txt", root / "decoded" / "mine.npy", root / "decoded" / f"{'a' * 32}.npy",
           root / "data" / "cifar-10-batches-py" / "data_batch_1", root / "data" / "archives" / "mnist" / "a.gz",
           root / "data" / "unpacked" / "mine" / "a.png"]  # fmt: skip
    for path in own:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"mine")
    (root / "features").mkdir()
    link = root / "features" / f"{'b' * 32}.npy"
    link.symlink_to(tmp_path / "elsewhere.npy")
    assert tl("cache", "clear", "--yes").code == 0
    assert not kept.exists()
    assert all(path.read_bytes() == b"mine" for path in own)
    assert link.is_symlink()
    assert (tmp_path / "elsewhere.npy").exists()
    refused = tl("cache", "clear", "--kind", "downloads", "--yes")
    assert refused.code == 2
    assert "put there by hand" in refused.err


def test_an_array_in_use_is_not_cleared_until_it_is_released(tl) -> None:
    used, other = put("features", "used"), put("features", "other")
    found = Store(cache_root() / "features").open("used")
    result = tl("cache", "clear", "--yes")
    assert result.code == 1
    assert "(1 features): in use by a running process" in result.err
    assert (used.exists(), other.exists()) == (True, False)
    assert np.array_equal(found.take(np.arange(10, 20)), VALUES[10:20])
    del found
    gc.collect()
    assert tl("cache", "clear", "--yes").code == 0
    assert not used.exists()


def test_an_unpacked_archive_in_use_is_not_cleared(tl, colours: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "colours.zip", "w") as packed:
        for path in sorted(colours.rglob("*.png")):
            packed.write(path, path.relative_to(colours))
    images = open_source(str(tmp_path / "colours.zip"), None).parts["train"]
    result = tl("cache", "clear", "--yes")
    assert result.code == 1
    assert "1 unpacked" in result.err
    assert images.open(0).pixels.shape == (32, 32, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "stdin is not a terminal; tl cache clear --yes"),
        (("--kind", "cats", "--yes"), "--kind cats cannot be cleared; choose from decoded"),
        (("--older-than", "soon", "--yes"), "not an age such as"),
    ],
)
def test_a_refused_clearing_removes_nothing(tl, options: tuple[str, ...], message: str) -> None:
    path = put("decoded", "a")
    result = tl("cache", "clear", *options)
    assert result.code == 2
    assert message in result.err
    assert path.exists()


def test_files_beside_the_folders_of_the_cache_are_not_counted_or_removed(tl) -> None:
    mine, measured = cache_root() / "counts.json", cache_root() / "measured" / "counts.json"
    for path in (mine, measured):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"resnet18 224": [1, 2]}')
    assert tl("models", "resnet18").code == 0  # the unknown file is counted
    assert tl("cache", "clear", "--yes").code == 0
    assert (mine.read_text(), measured.exists()) == ('{"resnet18 224": [1, 2]}', False)

"""The listing and the clearing of a cache with files of known size and age."""

import os
import time
from pathlib import Path

import pytest

from tl_cli.api.cache_listing import Clearing, clear_cache, list_cache
from tl_cli.errors import UsageError

DAY_S = 24 * 3600


@pytest.fixture
def cache() -> Path:
    """Features used now and 40 days ago, a measurement used 2 days ago, and a downloaded file."""
    root = Path(os.environ["TL_CACHE_DIR"])
    for name, size, age_days in (
        (f"features/{'a' * 32}.npy", 100, 0),
        (f"features/{'b' * 32}.npy", 1000, 40),
        ("measured/probes.json", 10, 2),
        ("data/cifar10.tar.gz", 5000, 400),
    ):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)
        if path.suffix == ".npy":
            path.with_suffix(".json").write_bytes(b"{}")
        os.utime(path, (time.time() - age_days * DAY_S - 60,) * 2)
    return root


def test_sizes_are_listed_by_kind_and_by_age(cache: Path) -> None:
    listing = list_cache()
    assert listing.size == 102 + 1002 + 10 + 5000
    kinds = {kind.pop("kind"): kind for kind in listing.to_dict()["kinds"]}
    del kinds["features"]["about"]
    assert kinds["features"] == {
        "entries": 2, "bytes": 1104, "bytes_unused_1_day": 1002, "bytes_unused_30_days": 1002,
    }  # fmt: skip
    assert kinds["measurements"]["bytes_unused_1_day"] == 10
    assert kinds["measurements"]["bytes_unused_30_days"] == 0
    assert listing.to_dict()["folder"] == str(cache)


def test_only_old_files_are_cleared_and_downloads_are_kept(cache: Path) -> None:
    cleared = clear_cache((), DAY_S, None)
    assert (cleared.selected, cleared.left) == ({"features": 1, "measurements": 1}, {})
    assert cleared.to_dict() == {"folder": str(cache), "removed_bytes": 1012, "left": {}, "left_bytes": 0}
    assert sorted(path.name for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock") == [
        f"{'a' * 32}.json", f"{'a' * 32}.npy", "cifar10.tar.gz",
    ]  # fmt: skip


def test_nothing_is_removed_without_consent(cache: Path) -> None:
    planned: list[Clearing] = []

    def refuse(clearing: Clearing) -> bool:
        planned.append(clearing)
        return False

    before = sorted(cache.rglob("*"))
    cleared = clear_cache(("features",), 0, refuse)
    assert planned == [cleared]
    assert (cleared.selected, cleared.selected_bytes, cleared.confirmed) == ({"features": 2}, 1104, False)
    assert cleared.to_dict()["removed_bytes"] == 0
    assert sorted(cache.rglob("*")) == before


def test_a_kind_with_possible_user_files_is_refused() -> None:
    with pytest.raises(UsageError, match="downloads cannot be cleared.*remove them yourself"):
        clear_cache(("downloads",), 0, None)

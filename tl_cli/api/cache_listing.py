"""Lists and clears what is kept between runs in the cache folder."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tl_cli.data.cache_entries import RULES, Entry, entries, remove
from tl_cli.errors import UsageError
from tl_cli.io.download import cache_root
from tl_cli.text import plain_data

CLEARABLE = tuple(kind for kind, rule in RULES.items() if rule.remove is not None)
_DAY_S = 24 * 3600


@dataclass(frozen=True, slots=True)
class CacheKind:
    """One kind of cache entries; sizes in bytes."""

    kind: str
    about: str
    entries: int
    bytes: int
    bytes_unused_1_day: int
    bytes_unused_30_days: int


@dataclass(frozen=True, slots=True)
class CacheListing:
    """The cache folder and its contents by kind."""

    folder: Path
    kinds: tuple[CacheKind, ...]

    @property
    def size(self) -> int:
        """Total bytes."""
        return sum(kind.bytes for kind in self.kinds)

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON types."""
        return plain_data(self)


@dataclass(frozen=True, slots=True)
class Clearing:
    """Result of clearing the cache.

    Attributes:
        selected: number of entries by kind that were to be removed.
        selected_bytes: their size.
        left: number of entries by kind that could not be removed.
        left_bytes: their size.
        confirmed: whether the removal was confirmed.
    """

    folder: Path
    selected: dict[str, int]
    selected_bytes: int
    left: dict[str, int]
    left_bytes: int
    confirmed: bool = True

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON types."""
        return {
            "folder": str(self.folder),
            "removed_bytes": self.selected_bytes - self.left_bytes if self.confirmed else 0,
            "left": self.left,
            "left_bytes": self.left_bytes,
        }


def list_cache() -> CacheListing:
    """Return the size of each kind, and how much of it was not used for a day and for 30 days."""
    root, now = cache_root(), time.time()
    all_entries = entries(root)
    kinds = []
    for kind, rule in RULES.items():
        own = [entry for entry in all_entries if entry.kind == kind]
        day, month = (sum(entry.size for entry in own if now - entry.used > days * _DAY_S) for days in (1, 30))
        kinds.append(CacheKind(kind, rule.about, len(own), sum(entry.size for entry in own), day, month))
    return CacheListing(root, tuple(kinds))


def clear_cache(kinds: Sequence[str], older_than_s: float, confirm: Callable[[Clearing], bool] | None) -> Clearing:
    """Remove entries that no process uses.

    Args:
        kinds: to remove; empty: all that can be cleared.
        older_than_s: only entries that were not used for so many seconds.
        confirm: called with the planned removal, returns whether to proceed; None removes without asking.

    Raises:
        UsageError: a kind cannot be cleared.
    """
    _check_clearable(kinds)
    root, oldest = cache_root(), time.time() - older_than_s
    unused = [entry for entry in entries(root) if entry.kind in (kinds or CLEARABLE) and entry.used <= oldest]
    selected = _counts_and_size(unused)
    planned = Clearing(root, *selected, *selected, confirmed=False)
    if not unused or (confirm is not None and not confirm(planned)):
        return planned
    return Clearing(root, *selected, *_counts_and_size([entry for entry in unused if not remove(entry)]))


def _check_clearable(kinds: Sequence[str]) -> None:
    for kind in kinds:
        if kind not in CLEARABLE:
            never = " (it may hold files that were put there by hand: remove them yourself)" * (kind == "downloads")
            raise UsageError(f"--kind {kind} cannot be cleared{never}; choose from {', '.join(CLEARABLE)}")


def _counts_and_size(selected: Sequence[Entry]) -> tuple[dict[str, int], int]:
    """Return the number of entries by kind, and their bytes."""
    return dict(Counter(entry.kind for entry in selected)), sum(entry.size for entry in selected)

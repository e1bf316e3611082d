"""The files that tl stores in its cache folder: found by their names, and removed if unused."""

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tl_cli.io.array_cache import remove_array
from tl_cli.io.use_lock import unused

Kind = Literal["decoded", "features", "contents", "checks", "unpacked", "measurements", "downloads"]


@dataclass(frozen=True, slots=True)
class _Rule:
    """How the entries of a kind are found and removed.

    Attributes:
        folder: below the cache folder.
        name: of an entry, as a regular expression; nothing else is touched.
        remove: returns False if the entry is in use; None: never removed.
    """

    folder: str
    name: str
    remove: Callable[[Path], bool] | None
    about: str


def _unlink(path: Path) -> bool:
    path.unlink(missing_ok=True)
    return True


def remove_unread(copy: Path) -> bool:
    """Remove an unpacked archive; return False where a process reads it, or where that is unknown."""
    with suppress(OSError), unused(copy) as is_unused:
        if is_unused:
            # Renamed first, so that a copy is complete or does not exist.
            shutil.rmtree(copy.rename(copy.with_name(f".{copy.name}.old")), ignore_errors=True)
            return True
    return False


RULES: dict[Kind, _Rule] = {
    "decoded": _Rule("decoded", r"[0-9a-f]{32}\.npy", remove_array, "images of one size, decoded"),
    "features": _Rule("features", r"[0-9a-f]{32}\.npy", remove_array, "cached features of frozen layers"),
    "contents": _Rule("contents", r"[0-9a-f]{32}\.npy", remove_array, "digests of image files"),
    "checks": _Rule("looked-at", r"[0-9a-f]{64}\.json", _unlink, "which files could not be decoded"),
    "unpacked": _Rule("data/unpacked", r".*-[0-9a-f]{16}-[0-9a-f]{16}", remove_unread, "archives, unpacked"),
    "measurements": _Rule("measured", r"(probes|counts|models-\w+)\.json", _unlink, "speeds and sizes of models"),
    # They may have been put there by hand, on a machine without network.
    "downloads": _Rule("data", r"(?!unpacked$)[^.].*", None, "published data sets; never cleared"),
}


@dataclass(frozen=True, slots=True)
class Entry:
    """Something in the cache.

    Attributes:
        size: in bytes.
        used: time of the last use, or else of writing, in seconds since 1970.
    """

    kind: Kind
    path: Path
    size: int
    used: float


def entries(root: Path) -> list[Entry]:
    """Return the entries below ``root``, the cache folder. Links are not followed, other files are left out."""
    return [entry for kind, rule in RULES.items() for entry in _entries(root, kind, rule)]


def _entries(root: Path, kind: Kind, rule: _Rule) -> Iterator[Entry]:
    for path in sorted((root / rule.folder).glob("*")):
        if path.is_symlink() or not re.fullmatch(rule.name, path.name):
            continue
        if path.suffix == ".npy" and not path.with_suffix(".json").exists():
            continue  # tl writes no array without its hash
        with suppress(OSError):
            files = [path, *path.rglob("*")] if path.is_dir() else [path, path.with_suffix(".json")]
            stats = [file.lstat() for file in dict.fromkeys(files) if file.exists()]
            yield Entry(kind, path, sum(each.st_size for each in stats), path.lstat().st_mtime)


def remove(entry: Entry) -> bool:
    """Remove an entry; return False if a process uses it or it cannot be removed."""
    clear = RULES[entry.kind].remove
    try:
        return clear is not None and clear(entry.path)
    except OSError:
        return False

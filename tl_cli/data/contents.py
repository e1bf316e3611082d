"""The SHA-256 of each file, stored and reused for as long as the file is unchanged."""

import errno
import hashlib
import os
import stat
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tl_cli.data.decode import largest_file, too_large
from tl_cli.data.packed_names import Names
from tl_cli.data.threads import ONE_THREAD, Threads
from tl_cli.errors import DataError, StorageError
from tl_cli.io.array_cache import Store
from tl_cli.io.download import cache_root

_NAME, _STATS, _DIGEST = 16, 32, 32  # bytes
_ROW = _NAME + _STATS + _DIGEST
_MOST_ROWS = 2_000_000  # stored for one folder
_MOST_BYTES = 1 << 30  # of all folders
# A file that is written again within a tick of the file system's clock, 2 s on FAT, may look unchanged.
_SETTLED_S = 2.0
_SMALL_BYTES = 1 << 16  # reading smaller files, threads wait for each other
_WHOLE_BYTES = 1 << 20  # read in one piece up to here
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # a pipe would wait for a writer
# Size in bytes, times of modification and of change in ns, inode.
Facts = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True, eq=False)
class Contents:
    """The contents of files when they were read.

    Attributes:
        stats: (N, 4) int64, ``Facts`` of each.
        digests: (N, 32) uint8, the SHA-256 of all bytes.
    """

    stats: np.ndarray
    digests: np.ndarray

    def take(self, indices: np.ndarray) -> "Contents":
        """Return those of the files at ``indices``."""
        return Contents(self.stats[indices], self.digests[indices])


def read_contents(
    root: Path,
    names: Names,
    threads: Threads = ONE_THREAD,
    *,
    max_pixels: int | None = None,
    settled_s: float = _SETTLED_S,
) -> Contents:
    """Return the digests of files. Only new and changed files are read.

    Args:
        names: of the files, relative to ``root``.
        threads: those that read large files.
        max_pixels: limit of an image, which also limits its file; None is the usual limit.
        settled_s: the digests of files that changed more recently are not stored.

    Raises:
        DataError: a file does not exist, cannot be read or is larger than any picture; names it.
    """
    stats = _stats(root, names, largest_file(max_pixels))
    digests = np.empty((len(names), _DIGEST), np.uint8)
    store = Store(cache_root() / "contents", most_bytes=_MOST_BYTES)
    rows = _load(store, root)
    keys = [hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=_NAME).digest() for name in names]
    missing = []
    for index, key in enumerate(keys):
        row = rows.get(key, b"")
        if row[:_STATS] == stats[index].tobytes():
            digests[index] = np.frombuffer(row, np.uint8, offset=_STATS)
        else:
            missing.append(index)
    if not missing:
        return Contents(stats, digests)

    def read(index: int) -> tuple[Facts, bytes]:
        path = os.path.join(root, names[index])
        try:
            return _read(path)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}") from error

    if stats[missing, 0].mean() <= _SMALL_BYTES:
        threads = replace(threads, workers=1)
    settled_ns = time.time_ns() - int(settled_s * 1e9)
    for index, (facts, digest) in zip(missing, threads.map(read, missing, "reading images"), strict=True):
        stats[index] = facts
        digests[index] = np.frombuffer(digest, np.uint8)
        rows.pop(keys[index], None)
        if max(facts[1:3]) < settled_ns:
            rows[keys[index]] = stats[index].tobytes() + digest
    _save(store, root, rows)
    return Contents(stats, digests)


def changed_since(root: Path, names: Names, then: Contents) -> list[int]:
    """Return the indices of files with other contents than then, missing and unreadable ones included.

    Only files whose facts have changed are read.
    """
    changed = []
    for index, name in enumerate(names):
        path = os.path.join(root, name)
        with suppress(OSError):
            is_untouched = _facts(os.stat(path)) == tuple(then.stats[index].tolist())
            if is_untouched or _read(path)[1] == then.digests[index].tobytes():
                continue
        changed.append(index)
    return changed


def _stats(root: Path, names: Names, limit: int) -> np.ndarray:
    stats = np.empty((len(names), 4), np.int64)
    folder = str(root)
    for index, name in enumerate(names):
        path = os.path.join(folder, name)
        try:
            stats[index] = facts = _facts(os.stat(path))
            if facts[0] > limit:
                raise OSError(errno.EFBIG, too_large(facts[0], limit))
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}") from error
    return stats


def _facts(status: os.stat_result) -> Facts:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino & (1 << 63) - 1


def _read(path: str) -> tuple[Facts, bytes]:
    """Return the facts of a file before it was read, and its digest."""
    descriptor = os.open(path, _FLAGS)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "is no regular file")
        seen, left = hashlib.sha256(), status.st_size
        # For a small file, one more read to find its end would take as long as reading it.
        while left and (piece := os.read(descriptor, min(left, _WHOLE_BYTES))):
            seen.update(piece)
            left -= len(piece)
        return _facts(status), seen.digest()
    finally:
        os.close(descriptor)


def _load(store: Store, root: Path) -> dict[bytes, bytes]:
    """Return the stored facts and digests of a folder's files by a hash of their names; empty if they are damaged."""
    table = store.find(str(root))
    if table is None or table.dtype != np.uint8 or table.ndim != 2 or table.shape[1] != _ROW:
        return {}
    data = table.tobytes()
    return {data[row : row + _NAME]: data[row + _NAME : row + _ROW] for row in range(0, len(data), _ROW)}


def _save(store: Store, root: Path, rows: dict[bytes, bytes]) -> None:
    # The latest rows are last. What cannot be stored is read again by the next run.
    latest = list(rows.items())[-_MOST_ROWS:]
    table = np.frombuffer(b"".join(name + row for name, row in latest), np.uint8).reshape(-1, _ROW)
    if len(table):
        with suppress(StorageError):
            store.keep(str(root), table)

"""What files hold: a SHA-256 of each, read once and remembered for as long as its file is unchanged."""

import errno
import hashlib
import os
import stat
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tl_cli.data.decode import largest_file, too_large
from tl_cli.data.packed_names import Names
from tl_cli.errors import DataError, StorageError
from tl_cli.io.array_cache import Store
from tl_cli.io.download import Progress, cache_root, silent

_NAME, _STATS, _DIGEST = 16, 32, 32  # bytes
_ROW = _NAME + _STATS + _DIGEST
_MOST_ROWS = 2_000_000  # remembered of one folder
_MOST_BYTES = 1 << 30  # of all folders
# A file that is written again within a tick of the file system's clock, 2 s on FAT, may look unchanged.
_SETTLED_S = 2.0
_SMALL_BYTES = 1 << 16  # reading smaller files, threads wait for each other
_WHOLE_BYTES = 1 << 20  # read in one piece up to here
_CHUNK = 256
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # a pipe would wait for a writer


@dataclass(frozen=True, slots=True, eq=False)
class Contents:
    """What files held when they were read.

    Attributes:
        stats: (N, 4) int64: size in bytes, times of modification and of change in ns, inode.
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
    *,
    max_pixels: int | None = None,
    workers: int = 1,
    progress: Progress = silent,
    settled_s: float = _SETTLED_S,
) -> Contents:
    """Return what files hold. Those are read of which nothing is remembered, or which changed since.

    Args:
        names: of the files, relative to ``root``.
        max_pixels: limit of an image, which also limits its file; None is the usual limit.
        workers: threads that read, where files are large.
        settled_s: files changed more recently than that are not remembered.

    Raises:
        DataError: a file is not there, cannot be read or is larger than any picture; names it.
    """
    stats = _stats(root, names, largest_file(max_pixels))
    digests = np.empty((len(names), _DIGEST), np.uint8)
    store = Store(cache_root() / "contents", most_bytes=_MOST_BYTES)
    remembered = _remembered(store, root)
    rows = [hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=_NAME).digest() for name in names]
    missing = []
    for index, (row, facts) in enumerate(zip(rows, stats, strict=True)):
        known = remembered.get(row)
        if known is not None and known[:_STATS] == facts.tobytes():
            digests[index] = np.frombuffer(known, np.uint8, offset=_STATS)
        else:
            missing.append(index)
    if not missing:
        return Contents(stats, digests)
    threads = workers if stats[missing, 0].mean() > _SMALL_BYTES else 1
    settled_ns = time.time_ns() - int(settled_s * 1e9)
    for index, facts, digest in _read_all(root, names, missing, threads, progress):
        stats[index] = facts
        digests[index] = np.frombuffer(digest, np.uint8)
        remembered.pop(rows[index], None)
        if max(facts[1:3]) < settled_ns:
            remembered[rows[index]] = stats[index].tobytes() + digest
    _remember(store, root, remembered)
    return Contents(stats, digests)


def changed_since(root: Path, names: Names, then: Contents) -> list[int]:
    """Return which files no longer hold what they did, those that are gone or unreadable included.

    Only files that were touched since are read.
    """
    found = []
    for index, name in enumerate(names):
        path = os.path.join(root, name)
        with suppress(OSError):
            if _facts(os.stat(path)) == tuple(then.stats[index].tolist()) or (
                _read(path)[1] == then.digests[index].tobytes()
            ):
                continue
        found.append(index)
    return found


def _stats(root: Path, names: Names, limit: int) -> np.ndarray:
    stats = np.empty((len(names), 4), np.int64)
    folder = str(root)
    for index, name in enumerate(names):
        path = os.path.join(folder, name)
        try:
            stats[index] = _facts(os.stat(path))
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}") from error
        if (size := int(stats[index, 0])) > limit:
            raise DataError(f"{path} cannot be read: {too_large(size, limit)}")
    return stats


def _facts(found: os.stat_result) -> tuple[int, int, int, int]:
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino & (1 << 63) - 1


def _read_all(
    root: Path, names: Names, indices: list[int], threads: int, progress: Progress
) -> Iterator[tuple[int, tuple[int, int, int, int], bytes]]:
    """Yield index, facts and digest of each of these files."""
    folder = str(root)

    def read(chunk: list[int]) -> list[tuple[int, tuple[int, int, int, int], bytes]]:
        found = []
        for index in chunk:
            path = os.path.join(folder, names[index])
            try:
                found.append((index, *_read(path)))
            except OSError as error:
                raise DataError(f"{path} cannot be read: {error.strerror}") from error
        return found

    chunks = [indices[start : start + _CHUNK] for start in range(0, len(indices), _CHUNK)]
    pool = ThreadPoolExecutor(max(1, threads))
    try:
        for done, found in enumerate(pool.map(read, chunks), 1):
            yield from found
            progress("reading images", min(len(indices), done * _CHUNK), len(indices))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _read(path: str) -> tuple[tuple[int, int, int, int], bytes]:
    """Return the facts of a file from before it was read, and its digest."""
    descriptor = os.open(path, _FLAGS)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "is no regular file")
        seen, left = hashlib.sha256(), found.st_size
        # Reading a small file once more to find its end would take as long as reading it.
        while left and (piece := os.read(descriptor, min(left, _WHOLE_BYTES))):
            seen.update(piece)
            left -= len(piece)
        return _facts(found), seen.digest()
    finally:
        os.close(descriptor)


def _remembered(store: Store, root: Path) -> dict[bytes, bytes]:
    """Return facts and digest of a folder's files by a hash of their names; nothing where the memory is damaged."""
    kept = store.find(str(root))
    if kept is None or kept.dtype != np.uint8 or kept.ndim != 2 or kept.shape[1] != _ROW:
        return {}
    data = kept.tobytes()
    rows = (data[start : start + _ROW] for start in range(0, len(data), _ROW))
    return {row[:_NAME]: row[_NAME:] for row in rows}


def _remember(store: Store, root: Path, rows: dict[bytes, bytes]) -> None:
    if not rows:
        return
    # The latest come last; what is not remembered only costs time.
    latest = list(rows.items())[-_MOST_ROWS:]
    table = np.frombuffer(b"".join(name + known for name, known in latest), np.uint8).reshape(-1, _ROW)
    with suppress(StorageError):
        store.keep(str(root), table)

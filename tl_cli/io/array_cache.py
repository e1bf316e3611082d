"""Large arrays kept between runs: verified whenever they are read, the least recently used ones removed.

Files are read, never mapped: a mapped file that another program truncates ends the process with SIGBUS.
"""

import base64
import hashlib
import io
import json
import os
import shutil
import sys
import time
import weakref
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, TypeVar

import numpy as np
import psutil
from filelock import FileLock, Timeout

from tl_cli.errors import DamagedError, StorageError
from tl_cli.io.atomic import replacing, write_text

T = TypeVar("T")

if sys.platform != "win32":
    import fcntl

# A writer is never idle for this long, so an older file was left by one that was killed.
_LEFTOVER_AFTER_S = 24 * 3600
# https://docs.kernel.org/admin-guide/cgroup-v2.html and its forerunner; "max" is no number and no limit.
_CGROUPS = Path("/sys/fs/cgroup")
_CGROUP_LIMITS = ("memory.max", "memory/memory.limit_in_bytes")
_PIECE = 1 << 20  # bytes read and hashed at a time, while they are in the processor's cache


class Rows:
    """An array on the disk; the CRC-32 of each row is checked as the row is read.

    Attributes:
        shape: (N, ...).
        dtype: of the values.
    """

    def __init__(self, path: Path, manifest: Mapping[str, str]) -> None:
        """Open a file of the store, all of which is compared with its SHA-256.

        Args:
            manifest: its SHA-256 and the CRC-32 of its rows.

        Raises:
            OSError: it cannot be read.
            ValueError: it is damaged.
        """
        self._path = path
        # Each CRC starts from the row's number, so that a row in the wrong position is noticed too.
        self._sums = np.frombuffer(base64.b64decode(manifest["rows"]), "<u4")
        self._file = path.open("rb", buffering=0)
        weakref.finalize(self, self._file.close)
        _share(self._file)
        if hashlib.file_digest(self._file, "sha256").hexdigest() != manifest["sha256"]:
            raise ValueError("its SHA-256 is not the one that it was written with")
        self._file.seek(0)
        self.shape, self.dtype = _header(self._file)
        self._start = self._file.tell()
        if self._sums.shape != self.shape[:1]:
            raise ValueError("its manifest names another number of rows")

    def take(self, places: np.ndarray) -> np.ndarray:
        """Return the rows at ``places``, (M, ...), in that order.

        Raises:
            DamagedError: one of them is not what was written.
        """
        found = np.empty((len(places), *self.shape[1:]), self.dtype)
        size, memory = found[:1].nbytes, _bytes_of_rows(found).reshape(-1).data
        for number, (place, expected) in enumerate(zip(places.tolist(), self._sums[places].tolist(), strict=True)):
            row = memory[number * size : (number + 1) * size]
            try:
                self._file.seek(self._start + place * size)
                is_whole = self._file.readinto(row) == size
            except OSError as error:
                raise DamagedError(f"cannot read {self._path}: {error.strerror or error}") from error
            if not is_whole or zlib.crc32(row, place) != expected:
                raise DamagedError(f"{self._path} is damaged: row {place} is not what was written")
        return found


def _read_all(path: Path, manifest: Mapping[str, str]) -> np.ndarray:
    """Return the array in a file, in memory; the bytes that are returned are those that were compared."""
    seen = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        data = np.empty(os.fstat(file.fileno()).st_size, np.uint8)
        for start in range(0, len(data), _PIECE):
            piece = data[start : start + _PIECE]
            if file.readinto(piece.data) != len(piece):
                raise ValueError("it became shorter while it was read")
            seen.update(piece.data)
    if seen.hexdigest() != manifest["sha256"]:
        raise ValueError("its SHA-256 is not the one that it was written with")
    header = io.BytesIO(data[:_PIECE].tobytes())
    shape, dtype = _header(header)
    return data[header.tell() :].view(dtype).reshape(shape)


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    np.lib.format.read_magic(file)
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    return shape, dtype


def _ignored(path: Path) -> None:
    """Ignore a damaged array."""


@dataclass(frozen=True, slots=True)
class Store:
    """A folder of arrays by key: KEY.npy and, written first, KEY.json with its SHA-256 and the CRC-32 of each row.

    Attributes:
        folder: made when it is first written to.
        most_bytes: limit of all arrays together.
        disk_share: fraction of the disk's free space, not counting these arrays, that they may take.
        damaged: called with the path of an array that exists and is not what was written.
    """

    folder: Path
    most_bytes: int = 20 << 30
    disk_share: float = 0.1
    damaged: Callable[[Path], None] = _ignored

    def find(self, key: str) -> np.ndarray | None:
        """Return an array in memory, or None if it does not exist or is damaged."""
        return self._found(key, _read_all)

    def open(self, key: str) -> Rows | None:
        """Return an array that is read row by row, or None if it does not exist or is damaged."""
        return self._found(key, Rows)

    def _found(self, key: str, read: Callable[[Path, Mapping[str, str]], T]) -> T | None:
        path = self._path(key)
        try:
            found = read(path, json.loads(path.with_suffix(".json").read_bytes()))
        except (FileNotFoundError, KeyError):  # the second: written by an earlier version
            return None
        except (OSError, ValueError, TypeError):
            self.damaged(path)
            return None
        with suppress(OSError):
            os.utime(path)
        return found

    @contextmanager
    def keep(self, key: str, shape: tuple[int, ...], dtype: np.dtype) -> Iterator[Callable[[np.ndarray], None]]:
        """Yield a function that appends rows in order; the array is kept if the block ends without an error.

        Raises:
            StorageError: there is no room, the folder may not be written, or another process is writing this array.
        """
        path = self._path(key)
        with self._alone(path), self._writing(path, shape, dtype) as append:
            yield append

    def find_or_make(self, key: str, shape: tuple[int, ...], dtype: np.dtype, parts: Iterable[np.ndarray]) -> Rows:
        """Return an array as ``open`` does, made of these rows where it is not there; or by another process.

        Args:
            parts: rows in order, computed only if they are needed.

        Raises:
            StorageError: there is no room, the folder may not be written, or the disk does not give back what was
                written.
        """
        path = self._path(key)
        with self._alone(path, wait=True):
            found = self.open(key)
            if found is None:
                with self._writing(path, shape, dtype) as append:
                    for rows in parts:
                        append(rows)
                found = self.open(key)
        if found is None:
            raise StorageError(f"{path} does not hold what was written; check the disk for errors")
        return found

    @property
    def room(self) -> int:
        """Bytes that a new array may take if all others are removed; 0 without a writable disk."""
        return self._room(sum(stat.st_size for _, stat in self._files("*.npy")))

    def _room(self, kept: int) -> int:
        with suppress(OSError):
            existing = next(path for path in (self.folder, *self.folder.absolute().parents) if path.exists())
            if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
                return 0
            return min(self.most_bytes, int(self.disk_share * (shutil.disk_usage(existing).free + kept)))
        return 0

    def _path(self, key: str) -> Path:
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npy"

    @contextmanager
    def _alone(self, path: Path, *, wait: bool = False) -> Iterator[None]:
        lock = FileLock(path.with_name(f".{path.stem}.lock"), timeout=-1 if wait else 0)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout as error:
            raise StorageError(f"{path} is being written by another process") from error
        except (OSError, NotImplementedError) as error:
            raise StorageError(f"cannot write {path}: {error}") from error
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def _writing(self, path: Path, shape: tuple[int, ...], dtype: np.dtype) -> Iterator[Callable[[np.ndarray], None]]:
        self._make_room(int(np.prod(shape)) * dtype.itemsize)
        with replacing(path) as file:
            writer = _Hashing(file)
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(writer, header)
            yield lambda rows: writer.append(np.ascontiguousarray(rows, dtype))
            # Written before the array gets its name; an array counts only with its manifest.
            sums = base64.b64encode(np.array(writer.sums, "<u4").tobytes()).decode()
            write_text(path.with_suffix(".json"), json.dumps({"sha256": writer.seen.hexdigest(), "rows": sums}))

    def _make_room(self, needed: int) -> None:
        self._remove_leftovers()
        kept = sorted((stat.st_mtime, stat.st_size, path) for path, stat in self._files("*.npy"))
        total = sum(size for _, size, _ in kept)
        room = self._room(total)
        if needed > room:
            raise StorageError(f"{self.folder} has room for {room / 1e9:.1f} GB, not for {needed / 1e9:.1f} GB")
        for _, size, path in kept:
            if total + needed <= room:
                return
            with suppress(OSError):
                path.with_suffix(".json").unlink(missing_ok=True)
                path.unlink()
                total -= size

    def _remove_leftovers(self) -> None:
        for path, stat in self._files(".*.tmp"):
            if stat.st_mtime < time.time() - _LEFTOVER_AFTER_S:
                with suppress(OSError):
                    path.unlink()

    def _files(self, pattern: str) -> Iterator[tuple[Path, os.stat_result]]:
        for path in self.folder.glob(pattern):
            with suppress(OSError):
                yield path, path.stat()


def remove_array(path: Path) -> bool:
    """Remove KEY.npy and what belongs to it; return False where a process uses it or is writing it."""
    try:
        with FileLock(path.with_name(f".{path.stem}.lock"), timeout=0):
            if path.exists() and not _is_unused(path):
                return False
            for part in (path, path.with_suffix(".json"), *path.parent.glob(f".{path.stem}.*.tmp")):
                part.unlink(missing_ok=True)
    except (Timeout, OSError, NotImplementedError):
        return False
    return True


def _share(file: IO[bytes]) -> None:
    """Keep ``remove_array`` in other processes from a file until it is closed."""
    if sys.platform != "win32":  # which removes no file that is open
        with suppress(OSError):  # some network disks have no locks
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)


def _is_unused(path: Path) -> bool:
    if sys.platform == "win32":
        return True
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def memory_bytes() -> int:
    """Return the memory that this process may use: the machine's, or less in a container with a limit."""
    limits = [psutil.virtual_memory().total]
    for name in _CGROUP_LIMITS:
        with suppress(OSError, ValueError):
            limits.append(int((_CGROUPS / name).read_text(encoding="ascii")))
    return min(limits)


class _Hashing:
    """Writes to a file and hashes what is written, independently of the disk."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seen = hashlib.sha256()
        self.sums: list[int] = []

    def write(self, content: bytes | memoryview) -> None:
        """Write bytes."""
        self.seen.update(content)
        self._file.write(content)

    def append(self, rows: np.ndarray) -> None:
        """Write rows (M, ...), and note the CRC-32 of each."""
        self.write(rows.data.cast("B"))
        each = enumerate(_bytes_of_rows(rows), len(self.sums))
        self.sums.extend(zlib.crc32(row.data, place) for place, row in each)


def _bytes_of_rows(rows: np.ndarray) -> np.ndarray:
    """Return the memory of rows as (M, bytes per row) uint8."""
    return rows.reshape(len(rows), int(np.prod(rows.shape[1:]))).view(np.uint8)

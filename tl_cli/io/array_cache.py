"""Large arrays kept between runs: verified whenever they are read, the least recently used ones removed.

Files are read, never mapped: a mapped file that another program truncates ends the process with SIGBUS.
"""

import base64
import hashlib
import io
import json
import os
import shutil
import time
import weakref
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

import numpy as np
from filelock import FileLock, Timeout

from tl_cli.errors import DamagedError, StorageError
from tl_cli.io.atomic import replacing, write_text
from tl_cli.io.use_lock import mark_used, unused

T = TypeVar("T")

# A writer is never idle for this long, so an older file was left by one that was killed.
_LEFTOVER_AFTER_S = 24 * 3600
_HEADER_BYTES = 1 << 16  # the largest header of this format


class Rows:
    """An array on the disk; the CRC-32 of each row is checked as the row is read.

    Attributes:
        shape: (N, ...).
        dtype: of the values.
    """

    def __init__(self, path: Path, manifest: Mapping[str, str]) -> None:
        """Open a file of the store after comparing it with its SHA-256.

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
        mark_used(self._file.fileno())
        _check_sha256(hashlib.file_digest(self._file, "sha256").hexdigest(), manifest)
        self._file.seek(0)
        self.shape, self.dtype = _read_header(self._file)
        self._start = self._file.tell()
        if self._sums.shape != self.shape[:1]:
            raise ValueError("its manifest names another number of rows")

    def take(self, indices: np.ndarray) -> np.ndarray:
        """Return the rows at ``indices``, (M, ...), in that order.

        Raises:
            DamagedError: one of them is not what was written.
        """
        taken = np.empty((len(indices), *self.shape[1:]), self.dtype)
        size = taken[:1].nbytes
        for row, index, checksum in zip(_as_bytes(taken), indices.tolist(), self._sums[indices].tolist(), strict=True):
            try:
                self._file.seek(self._start + index * size)
                is_whole = self._file.readinto(row.data) == size
            except OSError as error:
                raise DamagedError(f"cannot read {self._path}: {error.strerror or error}") from error
            if not is_whole or zlib.crc32(row.data, index) != checksum:
                raise DamagedError(f"{self._path} is damaged: row {index} is not what was written")
        return taken


def _read_all(path: Path, manifest: Mapping[str, str]) -> np.ndarray:
    """Return the array in a file, in memory: the very bytes that were compared with its SHA-256."""
    content = np.fromfile(path, np.uint8)
    _check_sha256(hashlib.sha256(content.data).hexdigest(), manifest)
    header = io.BytesIO(content[:_HEADER_BYTES].tobytes())
    shape, dtype = _read_header(header)
    return content[header.tell() :].view(dtype).reshape(shape)


def _check_sha256(sha256: str, manifest: Mapping[str, str]) -> None:
    if sha256 != manifest["sha256"]:
        raise ValueError("its SHA-256 is not the one that it was written with")


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    np.lib.format.read_magic(file)
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    return shape, dtype


def _as_bytes(rows: np.ndarray) -> np.ndarray:
    """Return the memory of rows as (M, bytes per row) uint8."""
    return rows.reshape(len(rows), int(np.prod(rows.shape[1:]))).view(np.uint8)


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
    damaged: Callable[[Path], None] = lambda path: None

    def find(self, key: str) -> np.ndarray | None:
        """Return an array in memory, or None if it does not exist or is damaged."""
        return self._read(key, _read_all)

    def open(self, key: str) -> Rows | None:
        """Return an array that is read row by row, or None if it does not exist or is damaged."""
        return self._read(key, Rows)

    def _read(self, key: str, reader: Callable[[Path, Mapping[str, str]], T]) -> T | None:
        path = self._path(key)
        try:
            array = reader(path, json.loads(path.with_suffix(".json").read_bytes()))
        except (FileNotFoundError, KeyError):  # the second: written by an earlier version
            return None
        except (OSError, ValueError, TypeError):
            self.damaged(path)
            return None
        with suppress(OSError):
            os.utime(path)
        return array

    def keep(self, key: str, array: np.ndarray) -> None:
        """Write an array.

        Raises:
            StorageError: there is no room, the folder may not be written, or another process is writing this array.
        """
        path = self._path(key)
        with self._alone(path):
            self._write(path, array.shape, array.dtype, [array])

    def find_or_make(self, key: str, shape: tuple[int, ...], dtype: np.dtype, parts: Iterable[np.ndarray]) -> Rows:
        """Return an array as ``open`` does; if it does not exist, it is written first, by one process only.

        Args:
            parts: rows in order, computed only if they are needed.

        Raises:
            StorageError: there is no room, the folder may not be written, or the disk does not give back what was
                written.
        """
        path = self._path(key)
        with self._alone(path, wait=True):
            rows = self.open(key)
            if rows is None:
                self._write(path, shape, dtype, parts)
                rows = self.open(key)
        if rows is None:
            raise StorageError(f"{path} does not hold what was written; check the disk for errors")
        return rows

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

    def _write(self, path: Path, shape: tuple[int, ...], dtype: np.dtype, parts: Iterable[np.ndarray]) -> None:
        self._make_room(int(np.prod(shape)) * dtype.itemsize)
        header = io.BytesIO()
        facts = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(header, facts)
        # Computed from what is in memory, not from what the disk gives back.
        sha256, sums = hashlib.sha256(header.getvalue()), list[int]()
        with replacing(path) as file:
            file.write(header.getvalue())
            for part in parts:
                rows = _as_bytes(np.ascontiguousarray(part, dtype))
                sha256.update(rows.data)
                file.write(rows.data)
                sums.extend(zlib.crc32(row.data, number) for number, row in enumerate(rows, len(sums)))
            # Written before the array gets its name; an array counts only with its manifest.
            encoded = base64.b64encode(np.array(sums, "<u4").tobytes()).decode()
            write_text(path.with_suffix(".json"), json.dumps({"sha256": sha256.hexdigest(), "rows": encoded}))

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


def _unread(path: Path) -> AbstractContextManager[bool]:
    """Return whether no process reads a file, which another one may have removed."""
    return unused(path) if path.exists() else nullcontext(True)


def remove_array(path: Path) -> bool:
    """Remove KEY.npy and what belongs to it; return False if a process reads or writes it."""
    try:
        with FileLock(path.with_name(f".{path.stem}.lock"), timeout=0), _unread(path) as is_unused:
            if is_unused:
                for part in (path, path.with_suffix(".json"), *path.parent.glob(f".{path.stem}.*.tmp")):
                    part.unlink(missing_ok=True)
            return is_unused
    except (Timeout, OSError, NotImplementedError):
        return False

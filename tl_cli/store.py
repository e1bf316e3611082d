"""Large arrays kept between runs: verified by hash when they are opened, the least recently used ones removed."""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import psutil
from filelock import FileLock, Timeout

from tl_cli.errors import StorageError
from tl_cli.fetch import digest, replacing, write_text

# A writer is never idle for as long, so what is older was left by one that was killed.
_TORN_AFTER_S = 24 * 3600
# https://docs.kernel.org/admin-guide/cgroup-v2.html and its forerunner; "max" is no number and no limit.
_CGROUPS = Path("/sys/fs/cgroup")
_CGROUP_LIMITS = ("memory.max", "memory/memory.limit_in_bytes")


@dataclass(frozen=True, slots=True)
class Store:
    """A folder of arrays by key: KEY.npy and, written first, KEY.json with the SHA-256 of that file.

    Attributes:
        folder: made when it is first written to.
        most_bytes: that its arrays may take together.
        disk_share: of what the disk would have free without them, that they may take.
    """

    folder: Path
    most_bytes: int = 20 << 30
    disk_share: float = 0.1

    def find(self, key: str) -> np.ndarray | None:
        """Return an array, or None where it is not there or not what was written.

        Its pages are read from the file as they are used, and shared by all processes; what is written to them is
        this process's own and never reaches the file.
        """
        path = self._path(key)
        try:
            expected = json.loads(path.with_suffix(".json").read_bytes())["sha256"]
            if digest(path) != expected:
                return None
            # Read-only memory would make torch warn.
            found: np.ndarray = np.load(path, mmap_mode="c", allow_pickle=False)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        with suppress(OSError):
            os.utime(path)
        return found

    @contextmanager
    def keep(self, key: str, shape: tuple[int, ...], dtype: np.dtype) -> Iterator[Callable[[np.ndarray], None]]:
        """Lend a function that appends rows in order; the array is kept when the block ends well.

        Raises:
            StorageError: there is no room, the folder may not be written, or another process is writing this array.
        """
        path = self._path(key)
        with self._alone(path), self._writing(path, shape, dtype) as append:
            yield append

    def find_or_make(
        self, key: str, shape: tuple[int, ...], dtype: np.dtype, parts: Iterable[np.ndarray]
    ) -> np.ndarray:
        """Return an array as ``find`` does, made of these rows where it is not there; or by another process.

        Args:
            parts: rows in order, asked for only where they are wanted.

        Raises:
            StorageError: there is no room, the folder may not be written, or the disk does not give back what was
                written.
        """
        path = self._path(key)
        with self._alone(path, wait=True):
            found = self.find(key)
            if found is None:
                with self._writing(path, shape, dtype) as append:
                    for rows in parts:
                        append(rows)
                found = self.find(key)
        if found is None:
            raise StorageError(f"{path} does not hold what was written; is the disk sound?")
        return found

    @property
    def room(self) -> int:
        """Bytes that a new array may take, all others removed for it; 0 where there is no disk."""
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
            yield lambda rows: writer.write(np.ascontiguousarray(rows, dtype).data.cast("B"))
            # Before the array has its name: one without the other is an array that is not there.
            write_text(path.with_suffix(".json"), json.dumps({"sha256": writer.seen.hexdigest()}))

    def _make_room(self, needed: int) -> None:
        self._remove_torn()
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

    def _remove_torn(self) -> None:
        for path, stat in self._files(".*.tmp"):
            if stat.st_mtime < time.time() - _TORN_AFTER_S:
                with suppress(OSError):
                    path.unlink()

    def _files(self, pattern: str) -> Iterator[tuple[Path, os.stat_result]]:
        for path in self.folder.glob(pattern):
            with suppress(OSError):
                yield path, path.stat()


def memory_bytes() -> int:
    """Return the memory that this process may use: the machine's, or less in a container with a limit."""
    limits = [psutil.virtual_memory().total]
    for name in _CGROUP_LIMITS:
        with suppress(OSError, ValueError):
            limits.append(int((_CGROUPS / name).read_text(encoding="ascii")))
    return min(limits)


class _Hashing:
    """Writes to a file and hashes what is meant to be in it, whatever the disk makes of it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seen = hashlib.sha256()

    def write(self, content: bytes | memoryview) -> None:
        """Write bytes."""
        self.seen.update(content)
        self._file.write(content)

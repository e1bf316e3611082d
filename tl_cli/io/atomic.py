"""Atomic writes: a file or a folder gets its name when all of it is on the disk, whatever it contains."""

import errno
import os
import shutil
import ssl
import urllib.error
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock

from tl_cli.errors import StorageError


@contextmanager
def replacing(target: Path) -> Iterator[BinaryIO]:
    """Open a temporary file that replaces ``target`` when the block ends without an error.

    Raises:
        StorageError: the disk is full or may not be written; the old ``target`` stays unchanged.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with storing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
            _sync_folder(target.parent)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(target: Path, text: str) -> None:
    """Write ``text`` as UTF-8 to ``target``, atomically."""
    with replacing(target) as file:
        file.write(text.encode())


@contextmanager
def making_once(target: Path) -> Iterator[bool]:
    """Yield whether ``target`` is missing and must be made in the block, which only one process runs at a time.

    Raises:
        StorageError: the disk is full or may not be written.
    """
    # An existing target is complete, and a shared cache may be read-only, so no lock is taken for it.
    if target.exists():
        yield False
        return
    lock = FileLock(target.with_name(f".{target.name}.lock"))
    with storing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        yield not target.exists()
    finally:
        lock.release()


def make_folder_once(target: Path, fill: Callable[[Path], Path]) -> None:
    """Make the folder ``target``, complete or not at all, and only once among several processes.

    Args:
        fill: called with an empty folder, puts files there and returns the folder in it that becomes ``target``.

    Raises:
        StorageError: the disk is full or may not be written; and whatever ``fill`` raises.
    """
    with making_once(target) as is_missing:
        if not is_missing:
            return
        # Under the lock, a leftover is from a process that was killed.
        temporary = target.with_name(f".{target.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            with storing(target):
                temporary.mkdir()
            filled = fill(temporary)
            with storing(target):
                filled.rename(target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    # Without this a power cut can undo the rename; not every file system allows it.
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def storing(target: Path, advice: str = "", *, is_local: bool = False) -> Iterator[None]:
    """Turn errors of the disk into a ``StorageError`` that names ``target``; errors of the network pass.

    Args:
        advice: ends the message if the disk is full.
        is_local: nothing in the block uses the network, so a time-out is that of a network disk.

    Raises:
        StorageError: the disk is full or may not be written.
    """
    try:
        yield
    except OSError as error:
        if not is_local and isinstance(error, urllib.error.URLError | ssl.SSLError | TimeoutError | ConnectionError):
            raise
        free = f" ({_free_space(target)} free){advice}" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise StorageError(f"cannot write {target}: {error.strerror or error}{free}") from error


def _free_space(target: Path) -> str:
    with suppress(OSError):
        folder = next(parent for parent in target.absolute().parents if parent.exists())
        return f"{shutil.disk_usage(folder).free / 1e6:,.0f} MB"
    return "unknown space"

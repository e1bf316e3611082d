"""Atomic writes: a file gets its name when all of it is on the disk. Nothing here depends on what is in the file."""

import errno
import os
import shutil
import ssl
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

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


def _sync_folder(folder: Path) -> None:
    # Without this a power cut can undo the rename; not every file system allows it.
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def storing(target: Path) -> Iterator[None]:
    """Turn errors of the disk into a ``StorageError`` that names ``target``; errors of the network pass.

    Raises:
        StorageError: the disk is full or may not be written.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, urllib.error.URLError | ssl.SSLError | TimeoutError | ConnectionError):
            raise
        free = f" ({_free_space(target)} free)" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise StorageError(f"cannot write {target}: {error.strerror or error}{free}") from error


def _free_space(target: Path) -> str:
    with suppress(OSError):
        folder = next(parent for parent in target.absolute().parents if parent.exists())
        return f"{shutil.disk_usage(folder).free / 1e6:,.0f} MB"
    return "unknown space"

"""Marks on files and folders that a process reads, so that no other process removes them: advisory locks (flock)."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

if sys.platform != "win32":
    import fcntl


def mark_used(descriptor: int) -> None:
    """Mark an open file or folder as used until its descriptor is closed; some network disks cannot."""
    if sys.platform != "win32":
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_SH)


@contextmanager
def unused(path: Path) -> Iterator[bool]:
    """Yield whether no process has marked a file or folder; none can mark it before the block ends.

    Raises:
        OSError: it cannot be opened.
    """
    if sys.platform == "win32":
        yield path.is_file()  # Windows removes no file that is open, but would remove the others of a folder
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_unused = True
    except OSError:
        is_unused = False
    try:
        yield is_unused
    finally:
        os.close(descriptor)

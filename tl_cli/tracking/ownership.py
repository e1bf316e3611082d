"""Locks in a run's folders, so that only one process changes a run.

A process that trains, resumes, sends, closes or deletes a run holds the lock of its journal. A process that reads the
run's files for a long time holds another lock: several may read at the same time, but none deletes.
"""

import os
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from tl_cli.errors import StorageError, TrackingError, UsageError
from tl_cli.tracking.journal import JOURNAL, hold_lock
from tl_cli.tracking.liveness import HOST_TAG
from tl_cli.tracking.recorded import Run, describe_run, process_state, short_id
from tl_cli.tracking.store import Store

_READER = "reader-"


def check_stopped(run: Run) -> None:
    """Check that a run is not running.

    Raises:
        UsageError: it is.
    """
    if run.info.status == "RUNNING" and process_state(run) == "alive":
        host = run.data.tags.get(HOST_TAG)
        where = f" on {host}" if host else ""
        raise UsageError(f"{describe_run(run)} is running{where}; stop it first, there with Ctrl-C")


@contextmanager
def lock_run(store: Store, run: Run, *, from_readers: bool = False) -> Iterator[Run]:
    """Lock a run against other processes, and yield its current record.

    This does not wait: another process may hold the lock for hours.

    Args:
        from_readers: also fail if another process reads the run's files.

    Raises:
        UsageError: it is running, or another process uses it; nothing has been changed.
        RunNotFoundError: it has been removed in the meantime.
        StorageError: its folder cannot be written.
    """
    check_stopped(run)
    with ExitStack() as locks:
        for folder in store.state_folders(run):
            # Nothing can train in a read-only folder, or delete it.
            if not os.access(folder, os.W_OK):
                continue
            try:
                locks.enter_context(hold_lock(folder / JOURNAL, timeout_s=0))
                for lock in folder.glob(f".{_READER}*.lock") if from_readers else ():
                    locks.enter_context(hold_lock(folder / lock.name[1:].removesuffix(".lock"), timeout_s=0))
            except TrackingError as error:
                raise UsageError(
                    f"{describe_run(run)} is in use by another process (tl train, tl eval or tl runs); wait until that "
                    f"ends, or stop it. Nothing was changed; tl runs {short_id(run)} shows the run"
                ) from error
        (current,) = store.reload([run])
        check_stopped(current)
        yield current


@contextmanager
def lock_for_reading(store: Store, run: Run) -> Iterator[None]:
    """Keep other processes from deleting a run; several may read it at the same time."""
    with ExitStack() as locks:
        for folder in store.state_folders(run):
            path = folder / f"{_READER}{uuid.uuid4().hex}"
            # A read-only folder can still be read.
            with suppress(StorageError):
                locks.callback(_remove, folder / f".{path.name}.lock")
                locks.enter_context(hold_lock(path))
        yield


def _remove(lock: Path) -> None:
    with suppress(OSError):
        lock.unlink(missing_ok=True)

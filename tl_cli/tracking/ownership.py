"""Which process works on a run: locks in the run's folders, and what is refused while another process holds one.

A process that trains, resumes, sends, closes or deletes a run holds the lock of its journal. One that reads the run's
files for long holds a lock of its own beside it, so that several may read but none deletes.
"""

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from mlflow.entities import Run

from tl_cli.errors import StorageError, TrackingError, UsageError
from tl_cli.tracking.journal import JOURNAL, alone_with
from tl_cli.tracking.liveness import HOST_TAG, State, state_of
from tl_cli.tracking.recorded import named, short_id
from tl_cli.tracking.store import Store

_READER = "reader-"


def process_state(run: Run) -> State:
    """Return what has become of the process that recorded a run."""
    return state_of(run.data.tags, run.info.start_time / 1000, time.time())


def check_stopped(run: Run) -> None:
    """Refuse a run that goes on.

    Raises:
        UsageError: it does.
    """
    if run.info.status == "RUNNING" and process_state(run) == "alive":
        host = run.data.tags.get(HOST_TAG)
        where = f" on {host}" if host else ""
        raise UsageError(f"{named(run)} is running{where}; stop it first, there with Ctrl-C")


@contextmanager
def owned(store: Store, run: Run, *, from_readers: bool = False) -> Iterator[Run]:
    """Keep other processes from a run, and return it as it is now.

    Nobody waits: a process that holds the run may do so for hours.

    Args:
        from_readers: refuse a run whose files are being read, too.

    Raises:
        UsageError: it goes on, or another process works on it; nothing of it has been changed.
        RunNotFoundError: it has been removed meanwhile.
        StorageError: its folder may not be written.
    """
    check_stopped(run)
    with ExitStack() as locks:
        for folder in store.state_folders(run):
            # In a folder that may not be written nobody trains, and nothing can be deleted.
            if not os.access(folder, os.W_OK):
                continue
            try:
                locks.enter_context(alone_with(folder / JOURNAL, patience_s=0))
                for lock in folder.glob(f".{_READER}*.lock") if from_readers else ():
                    locks.enter_context(alone_with(folder / lock.name[1:].removesuffix(".lock"), patience_s=0))
            except TrackingError as error:
                raise UsageError(
                    f"{named(run)} is in use by another process (tl train, tl eval or tl runs); wait until that ends, "
                    f"or stop it. Nothing was changed; tl runs {short_id(run)} shows the run"
                ) from error
        (now,) = store.again([run])
        check_stopped(now)
        yield now


@contextmanager
def reading(store: Store, run: Run) -> Iterator[None]:
    """Keep other processes from deleting a run; any number may read it at the same time."""
    with ExitStack() as locks:
        for folder in store.state_folders(run):
            path = folder / f"{_READER}{uuid.uuid4().hex}"
            # Whoever may not write there can still read.
            with suppress(StorageError):
                locks.callback(_remove, folder / f".{path.name}.lock")
                locks.enter_context(alone_with(path))
        yield


def _remove(lock: Path) -> None:
    with suppress(OSError):
        lock.unlink(missing_ok=True)

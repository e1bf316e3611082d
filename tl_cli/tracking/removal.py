"""Records dead runs as killed, and removes runs with their files."""

import os
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISDIR

from mlflow.entities import LifecycleStage

from tl_cli.errors import UsageError
from tl_cli.tracking.facts import status_of
from tl_cli.tracking.ownership import lock_run
from tl_cli.tracking.places import is_within, own_folder
from tl_cli.tracking.recorded import Run, describe_run, last_seen
from tl_cli.tracking.store import Store


def close(store: Store, run: Run) -> None:
    """Record a run as killed at its last heartbeat, if its process has ended or its state is unknown.

    Raises:
        UsageError: it is running, has ended already, or is used by another process.
        TrackingError: the store cannot be used.
    """
    with lock_run(store, run) as current, store.translated_errors():
        if current.info.status != "RUNNING":
            raise UsageError(f"{describe_run(current)} has ended already: {status_of(current)}")
        store.client.set_terminated(current.info.run_id, "KILLED", end_time=round(1000 * last_seen(current)))


def remove(store: Store, run: Run) -> None:
    """Remove a run from every list; until it is purged, MLflow can restore it and its models stay.

    Raises:
        UsageError: it is running, or another process uses it.
        RunNotFoundError: it has been removed in the meantime.
        TrackingError: the store cannot be used.
    """
    with lock_run(store, run, from_readers=True), store.translated_errors():
        store.client.delete_run(run.info.run_id)


def check_purgeable(store: Store, runs: Sequence[Run]) -> None:
    """Refuse to purge on a server, whose files are elsewhere, and to purge registered models.

    Raises:
        UsageError: it is a server, or a model is registered.
    """
    if store.is_remote:
        raise UsageError("--purge works on a local store; on the server's machine: mlflow gc --run-ids ID,ID")
    for run in runs:
        with store.translated_errors():
            versions = store.client.search_model_versions(f"run_id = '{run.info.run_id}'")
        if versions:
            names = ", ".join(f"{version.name} version {version.version}" for version in versions)
            raise UsageError(f"{describe_run(run)} is registered as {names}; remove it from the registry first")


@dataclass(frozen=True, slots=True)
class Files:
    """The folders of a run on this machine, none within another: artifacts, state, models.

    Attributes:
        inside: in the folder of the store's database.
        outside: elsewhere, such as on another disk, or in the project that this one is a copy of.
        shared: recorded folders that other runs use too; never deleted.
    """

    inside: tuple[Path, ...]
    outside: tuple[Path, ...]
    shared: tuple[Path, ...]

    def size(self, *, outside: bool = True) -> int:
        """Return how many bytes of disk space deleting them would free."""
        return _size((*self.inside, *self.outside) if outside else self.inside)


def files_of(store: Store, run: Run) -> Files:
    """Return the existing folders of a run."""
    existing = {folder.resolve() for folder in _recorded_folders(store, run) if folder.is_dir()}
    folders = {folder for folder in existing if not existing & set(folder.parents)}
    shared = {folder for folder in folders if folder.name not in (run.info.run_id, *store.models_of(run))}
    inside = {folder for folder in folders - shared if is_within(store.database, folder)}
    return Files(tuple(sorted(inside)), tuple(sorted(folders - shared - inside)), tuple(sorted(shared)))


def _recorded_folders(store: Store, run: Run) -> set[Path]:
    """Return the recorded folders of a run; links are not followed."""
    models = store.models_of(run)
    folders = [*store.artifact_folders(run, models), store.state_folder(run)]
    ids = (run.info.run_id, *models)
    return {own_folder(folder.absolute(), ids) or folder.absolute() for folder in folders}


def purge(store: Store, run: Run, folders: Sequence[Path]) -> list[str]:
    """Delete folders of a run and then, when they are gone, its record and those of its models.

    ``mlflow gc`` would also delete everything else that was ever removed.

    Returns:
        Files that could not be deleted, and why; the record then stays, so that another call can finish.

    Raises:
        UsageError: the store is a server, a model is registered, or another process uses the run.
        TrackingError: the store does not support it.
    """
    check_purgeable(store, [run])
    links = [folder for folder in _recorded_folders(store, run) if folder.is_symlink()]
    # Without the record, files on a disk that is not mounted now could not be found later.
    missing = [f"{link}: {link.readlink()} is not there" for link in links if not link.resolve().parent.is_dir()]
    if missing:
        return missing
    with lock_run(store, run, from_readers=True):
        # Removed first: if the process is killed later, no listed run lacks some of its files.
        with store.translated_errors():
            if run.info.lifecycle_stage == LifecycleStage.ACTIVE:
                store.client.delete_run(run.info.run_id)
        for path in [path for folder in folders for path in folder.rglob("*")]:
            # Locks are deleted last: some file systems cannot delete open files and their folders.
            if not path.name.endswith(".lock") and (path.is_symlink() or not path.is_dir()):
                with suppress(OSError):
                    path.unlink()
    remaining = [problem for folder in folders for problem in _delete(folder)]
    if not remaining:
        for link in links:
            if not link.exists():
                link.unlink()
        with store.translated_errors():
            store.delete_for_good(run, store.models_of(run))
    return remaining


def _delete(folder: Path) -> list[str]:
    """Delete a folder as far as possible; return the remaining files, the first with the reason."""
    shutil.rmtree(folder, ignore_errors=True)
    if not folder.exists():
        return []
    try:
        shutil.rmtree(folder)
    except OSError as error:
        files = sorted(str(path) for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
        return [f"{error.filename}: {error.strerror}", *(path for path in files if path != str(error.filename))]
    return []


def _size(folders: Iterable[Path]) -> int:
    """Return the bytes that deleting folders would free: blocks, not lengths, of files without another hard link."""
    names: dict[tuple[int, int], list[os.stat_result]] = {}
    for folder in folders:
        for path in folder.rglob("*"):
            with suppress(OSError):
                stat = path.lstat()
                if not S_ISDIR(stat.st_mode):
                    names.setdefault((stat.st_dev, stat.st_ino), []).append(stat)
    return sum(512 * stats[0].st_blocks for stats in names.values() if len(stats) >= stats[0].st_nlink)

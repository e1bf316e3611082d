"""Changes a store of runs: closes dead ones, sends journals, removes runs, records where moved files are."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Protocol

from tl_cli.api.observer import Observer
from tl_cli.errors import RunNotFoundError, TrackingError, UsageError, some
from tl_cli.text import plain_data
from tl_cli.tracking import removal
from tl_cli.tracking import sync as journals
from tl_cli.tracking.facts import RunFacts, status_of
from tl_cli.tracking.listing import facts_of
from tl_cli.tracking.overview import refresh_overviews
from tl_cli.tracking.ownership import check_stopped, lock_run
from tl_cli.tracking.places import find_moves
from tl_cli.tracking.places import relocate as record_moves
from tl_cli.tracking.recorded import Run, children_of, describe_run, is_parent
from tl_cli.tracking.store import Store, open_store

_TABLES = ("experiments", "runs", "logged_models")


@dataclass(frozen=True, slots=True)
class RunName:
    """A run that was changed.

    Attributes:
        run_id: its id in the store.
        name: its name, for people.
    """

    run_id: str
    name: str

    def __str__(self) -> str:
        return f"{self.run_id[:8]} ({self.name})"


@dataclass(frozen=True, slots=True)
class ClosedRuns:
    """The runs that are now recorded as killed."""

    runs: tuple[RunName, ...]

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON types."""
        return {"closed": [plain_data(run) for run in self.runs]}


@dataclass(frozen=True, slots=True)
class SentRun(RunName):
    """The part of a run's record that was sent to the store.

    Attributes:
        restored: whether the store had lost the run, which is recorded again.
        points: metric points sent.
        pieces: other items sent: parameters, tags, files, models.
        status: recorded with them; None if it was recorded already.
        refused: items that the store will never accept, and why.
        failed: items that could not be sent this time, and why.
    """

    restored: bool
    points: int
    pieces: int
    status: str | None
    refused: tuple[str, ...]
    failed: tuple[str, ...]

    @property
    def problems(self) -> list[str]:
        """What was not sent, in sentences."""
        return [*(f"the store refuses {each}" for each in self.refused), *(f"not sent: {each}" for each in self.failed)]


@dataclass(frozen=True, slots=True)
class SentRuns:
    """Result of sending journals.

    Attributes:
        runs: those for which something was sent, and all that were named.
        complete: whether the store has everything now.
        store: its address.
    """

    runs: tuple[SentRun, ...]
    complete: bool
    store: str

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON types."""
        return plain_data(self, exclude=("store",))


@dataclass(frozen=True, slots=True)
class Removal:
    """Runs to be removed, to be confirmed.

    Attributes:
        runs: facts of the runs.
        purge: whether files and records are deleted for good.
        size: of their files that would be deleted, in bytes.
        children: comparisons, each with the number of its training runs that would not be removed.
    """

    runs: tuple[RunFacts, ...]
    purge: bool
    size: int
    children: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class RemovedRun(RunName):
    """The result of removing a run.

    Attributes:
        complete: False if files could not be deleted; then the record stays.
        freed: bytes freed on the disk.
        remaining: files that could not be deleted, and why.
        kept: folders that were kept on request, or because they are shared.
    """

    complete: bool = True
    freed: int = 0
    remaining: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RemovedRuns:
    """Result of removing runs.

    Attributes:
        runs: empty if the removal was refused.
        purged: whether they were to be deleted for good.
        on_disk: bytes on the disk that removed runs still use.
    """

    runs: tuple[RemovedRun, ...]
    purged: bool
    on_disk: int

    @property
    def complete(self) -> bool:
        """Whether every run was removed."""
        return bool(self.runs) and all(run.complete for run in self.runs)

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON types."""
        return {
            "runs": [plain_data(run) for run in self.runs],
            "purged": self.purged,
            "bytes_on_disk": self.on_disk,
        }


class Consent(Protocol):
    """Confirms or refuses what would be deleted."""

    def remove(self, planned: Removal) -> bool:
        """Return whether to remove these runs."""

    def outside(self, run: RunName, folders: Sequence[Path], size: int) -> bool:
        """Return whether to delete folders of a run outside the folder of the store, too.

        Args:
            size: of the folders, in bytes.
        """


@dataclass(frozen=True, slots=True)
class Relocation:
    """Result of recording where files are.

    Attributes:
        moves: folders of experiments: before, and now.
        counts: changed records by table.
        missing: ids of runs and models whose files are not here, with the recorded folders.
        dry_run: whether nothing was changed.
    """

    moves: tuple[tuple[Path, Path], ...]
    counts: dict[str, int] = field(default_factory=dict)
    missing: tuple[tuple[str, Path], ...] = ()
    dry_run: bool = False

    @property
    def changes(self) -> int:
        """Number of records that point to another folder."""
        return sum(self.counts.values())

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON types."""
        return {
            "dry_run": self.dry_run,
            "moves": [{"old": str(old), "new": str(new)} for old, new in self.moves],
            "records": self.counts,
            "missing": [{"id": missing_id, "path": str(path)} for missing_id, path in self.missing],
        }


def close_runs(names: Sequence[str], tracking_uri: str | None, observer: Observer | None = None) -> ClosedRuns:
    """Record runs whose process has ended as killed, at their last heartbeat.

    Args:
        names: of runs; empty: all dead runs.
        observer: gets a warning for each dead run that another process uses.

    Raises:
        UsageError: a named run is running, has ended already, or is used by another process.
        RunNotFoundError: no run, or several, have one of the names.
        TrackingError: the store cannot be used.
    """
    observer = observer or Observer()
    store = open_store(tracking_uri)
    closed = []
    for run in _find(store, names) if names else [run for run in store.runs() if status_of(run) == "dead"]:
        try:
            removal.close(store, run)
            closed.append(RunName(*_id_and_name(run)))
        except UsageError as error:
            if names:
                raise
            observer.warn(str(error))  # it is being resumed, for example
    return ClosedRuns(tuple(closed))


def sync_runs(names: Sequence[str], tracking_uri: str | None, observer: Observer | None = None) -> SentRuns:
    """Send to the store what it did not receive during the runs, from their journals in this folder.

    Args:
        names: of runs; empty: all that were made in this folder.
        observer: gets a warning for everything that was not sent.

    Raises:
        UsageError: this folder has no journal, or a named run is running.
        RunNotFoundError: no run, or several, have one of the names.
        TrackingError: the store cannot be used.
    """
    observer = observer or Observer()
    store = open_store(tracking_uri)
    requested = names or journals.journaled_runs()
    if not requested:
        raise UsageError("no run was made in this folder: mlruns/ holds no journal")
    sent: list[SentRun] = []
    complete = True
    for name in requested:
        try:
            result = _send(store, name, is_named=bool(names))
        except TrackingError as error:
            if names:
                raise
            observer.warn(f"{name[:8]}: {error}")
            complete = False
            continue
        if result is None:
            continue
        for problem in result.problems:
            observer.warn(f"{result}: {problem}")
            complete = False
        if result.restored or result.points or result.pieces or result.status or names:
            sent.append(result)
    return SentRuns(tuple(sent), complete, store.uri)


def _send(store: Store, name: str, *, is_named: bool) -> SentRun | None:
    """Send the journal of one run; return None where there is nothing to do."""
    try:
        run = store.find(name)
    except RunNotFoundError:
        lost_id = journals.find_lost_run(store, name, is_named=is_named)
        if lost_id:
            sent = journals.restore_run(store, lost_id)
            return SentRun(*_id_and_name(store.find(lost_id)), True, *astuple(sent))
        if is_named:
            raise
        return None  # of another store, or removed
    if not journals.is_being_written(store, run):
        return SentRun(*_id_and_name(run), False, *astuple(journals.sync(store, run)))
    if is_named:
        raise UsageError(f"{describe_run(run)} is running and sends its own record")
    return None


def remove_runs(
    names: Sequence[str],
    consent: Consent | None,
    *,
    purge: bool = False,
    outside: bool | None = None,
    tracking_uri: str | None = None,
) -> RemovedRuns:
    """Remove runs from every list, so that MLflow can restore them, or delete them for good.

    Args:
        consent: called before anything is removed; None removes without asking.
        purge: delete files, models and records.
        outside: with ``purge``: whether files outside the folder of the store's database are deleted too; None asks.

    Raises:
        UsageError: a run is running or in use, a model is registered, or ``consent`` and ``outside`` are both None.
        RunNotFoundError: no run, or several, have one of the names.
        TrackingError: the store cannot be used.
    """
    store = open_store(tracking_uri)
    runs = _find(store, names, or_removed=purge)
    _check_removable(store, runs, purge=purge)
    files = [removal.files_of(store, run) for run in runs]
    if purge and consent is None and outside is None:
        _refuse_outside(store, runs, files)
    size = sum(each.size(outside=not purge) for each in files)
    if consent is not None and not consent.remove(_planned(store, runs, size, purge=purge)):
        return RemovedRuns((), purge, 0)
    removed = []
    for run, each in zip(runs, files, strict=True):
        if purge:
            removed.append(_purge(store, run, each, outside=_ask_outside(run, each, outside, consent)))
        else:
            removal.remove(store, run)
            removed.append(RemovedRun(*_id_and_name(run)))
    refresh_overviews(store, {str(run.info.experiment_id) for run in runs})
    return RemovedRuns(tuple(removed), purge, 0 if purge else sum(each.size() for each in files))


def _check_removable(store: Store, runs: Sequence[Run], *, purge: bool) -> None:
    """Refuse all of the runs before the first is removed."""
    for run in runs:
        with lock_run(store, run, from_readers=True):
            pass
    if purge:
        removal.check_purgeable(store, runs)


def _planned(store: Store, runs: Sequence[Run], size: int, *, purge: bool) -> Removal:
    every = store.runs()
    removed = {run.info.run_id for run in runs}
    children = []
    for run in runs:
        left = [each for each in children_of(every, run.info.run_id) if each.info.run_id not in removed]
        if is_parent(run) and left:
            children.append((describe_run(run), len(left)))
    return Removal(tuple(facts_of(store, runs, every)), purge, size, tuple(children))


def _refuse_outside(store: Store, runs: Sequence[Run], files: Sequence[removal.Files]) -> None:
    """Refuse to delete files that may belong to another project without asking.

    Raises:
        UsageError: files of a run are not in the folder of the store's database.
    """
    for run, each in zip(runs, files, strict=True):
        if each.outside:
            raise UsageError(
                f"files of {describe_run(run)} are outside the folder of {store.uri}: "
                f"{some(list(map(str, each.outside)))}. --outside deletes them too, --keep-outside leaves them. "
                "If this project was copied or moved: tl runs relocate"
            )


def _ask_outside(run: Run, files: removal.Files, outside: bool | None, consent: Consent | None) -> bool:
    if outside is not None or not files.outside or consent is None:
        return bool(outside)
    return consent.outside(RunName(*_id_and_name(run)), files.outside, files.size() - files.size(outside=False))


def _purge(store: Store, run: Run, files: removal.Files, *, outside: bool) -> RemovedRun:
    size = files.size()
    remaining = removal.purge(store, run, (*files.inside, *(files.outside if outside else ())))
    kept_folders = (*files.shared, *(() if outside else files.outside))
    freed = size - files.size()
    return RemovedRun(*_id_and_name(run), not remaining, freed, tuple(remaining), tuple(map(str, kept_folders)))


def relocate_runs(folder: Path | None, *, dry_run: bool = False, tracking_uri: str | None = None) -> Relocation:
    """Record where the files of runs are, after a project was copied or moved; no file is touched.

    Args:
        folder: with the files; None is the folder of the store's database.
        dry_run: change nothing.

    Raises:
        UsageError: the store is not a sqlite database, or a run is running.
        TrackingError: the database cannot be used.
    """
    database = _idle_database(open_store(tracking_uri))
    moves = find_moves(database, folder)
    if not dry_run:
        record_moves(database, moves)
    folders = tuple((move.old, move.new) for move in moves.moves if move.is_experiment)
    return Relocation(folders, {table: moves.count(table) for table in _TABLES}, moves.strays, dry_run)


def _idle_database(store: Store) -> Path:
    """Return the file of a local store in which no run is running."""
    if store.database is None:
        raise UsageError(f"{store.uri} is not a sqlite database; relocate works only on those")
    for run in store.runs(matching="attributes.status = 'RUNNING'"):
        check_stopped(run)
    return store.database


def _find(store: Store, names: Sequence[str], *, or_removed: bool = False) -> list[Run]:
    """Return the named runs, each once.

    Args:
        or_removed: also find runs that were removed earlier.
    """
    runs: dict[str, Run] = {}
    for name in names:
        try:
            run = store.find(name)
        except RunNotFoundError:
            removed = store.find_removed(name) if or_removed else None
            if removed is None:
                raise
            run = removed
        runs[run.info.run_id] = run
    return list(runs.values())


def _id_and_name(run: Run) -> tuple[str, str]:
    return str(run.info.run_id), str(run.info.run_name)

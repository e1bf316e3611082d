"""Recorded runs as a list: their facts, what tells them apart, closing dead ones and removing them."""

import math
import os
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from stat import S_ISDIR

from mlflow.entities import LifecycleStage, Run

from tl_cli.errors import UsageError
from tl_cli.tracking.facts import Differences, Kind, RunFacts, Status
from tl_cli.tracking.liveness import HOST_TAG
from tl_cli.tracking.ownership import owned, process_state
from tl_cli.tracking.parsing import whole
from tl_cli.tracking.places import is_within, own_folder
from tl_cli.tracking.reader import read_sparks
from tl_cli.tracking.store import CHILD_TAG, Store, dataset_digest, is_parent, last_seen, named, recorded_split
from tl_cli.training.config import phase_ends

_STATUS: Mapping[str, Status] = {
    "FINISHED": "finished",
    "FAILED": "failed",
    "KILLED": "killed",
    "SCHEDULED": "scheduled",
}
_RESULTS = (
    "best/val_accuracy",
    "best/epoch",
    "test/accuracy",
    "test/loss",
    "clean_train/accuracy",
    "time/train_seconds",
)
_MOST_EPOCHS = 100_000  # whose phases are told apart
_IMAGES = {"training": "training images", "validation": "validation images", "testing": "test images"}


def facts_of(store: Store, runs: Sequence[Run], among: Sequence[Run] | None = None) -> list[RunFacts]:
    """Return what is known of runs, in their order, without their curves.

    Args:
        among: all runs of the store, of which some are the best; None: those of the list itself. Runs of earlier
            versions on files have a best one of their own: their digests are of another scheme than those of today.
    """
    experiments = {experiment_id: name for name, experiment_id in store.experiments().items()}
    facts = [_facts(run, experiments.get(run.info.experiment_id, "")) for run in runs]
    all_facts = facts if among is None else [_facts(run, experiments.get(run.info.experiment_id, "")) for run in among]
    best: dict[tuple[str, str], RunFacts] = {}
    # Of equal ones the earlier stands.
    for each in sorted(all_facts, key=lambda each: each.started):
        if each.val_digest and each.val_accuracy is not None:
            other = best.setdefault((each.experiment, each.val_digest), each)
            if each.val_accuracy > (other.val_accuracy or 0.0):
                best[each.experiment, each.val_digest] = each
    found = {each.run_id for each in best.values()}
    return [replace(each, is_best=each.run_id in found) for each in facts]


def with_curves(store: Store, runs: Sequence[Run], facts: Sequence[RunFacts]) -> list[RunFacts]:
    """Return the facts with the validation accuracy by epoch of those runs."""
    sparks = read_sparks(store, [run for run in runs if run.info.run_id in {each.run_id for each in facts}])
    return [_with_curve(each, sparks.get(each.run_id, ())) for each in facts]


def with_accuracies(store: Store, runs: Sequence[Run], facts: Sequence[RunFacts]) -> list[RunFacts]:
    """Return the facts with the best accuracy so far of runs that have not recorded one at their end."""
    unfinished = [each for each in facts if each.val_accuracy is None]
    known = {each.run_id: each for each in with_curves(store, runs, unfinished)}
    return [known.get(each.run_id, each) for each in facts]


def _with_curve(facts: RunFacts, curve: tuple[float, ...]) -> RunFacts:
    judged = [(value, -place) for place, value in enumerate(curve, 1) if math.isfinite(value)]
    if facts.val_accuracy is not None or not judged:
        return replace(facts, curve=curve)
    # A run that has not ended has recorded no best epoch yet.
    best, place = max(judged)
    return replace(facts, curve=curve, val_accuracy=best, best_epoch=-place)


def status_of(run: Run) -> Status:
    """Return how a run stands, with what has become of one that is recorded as running."""
    known = _STATUS.get(run.info.status)
    if known is not None:
        return known
    state = process_state(run)
    return state if state in ("dead", "silent") else "running"


def close(store: Store, run: Run) -> None:
    """Record a run whose process is gone, or cannot be told, as killed, at the time when it was last heard of.

    Raises:
        UsageError: it goes on, has ended already, or another process works on it.
        TrackingError: the store cannot be used.
    """
    with owned(store, run) as now, store.reported():
        if now.info.status != "RUNNING":
            raise UsageError(f"{named(now)} has ended already: {status_of(now)}")
        store.client.set_terminated(now.info.run_id, "KILLED", end_time=round(1000 * last_seen(now)))


def remove(store: Store, run: Run) -> None:
    """Take a run out of every list; MLflow can restore it, and its models stay, until it is purged.

    Raises:
        UsageError: it goes on, or another process works on it.
        RunNotFoundError: it has been removed meanwhile.
        TrackingError: the store cannot be used.
    """
    with owned(store, run, from_readers=True), store.reported():
        store.client.delete_run(run.info.run_id)


def check_purgeable(store: Store, runs: Sequence[Run]) -> None:
    """Refuse a store whose files are not here, and models that others may be using.

    Raises:
        UsageError: it is a server, or a model is registered.
    """
    if store.is_remote:
        raise UsageError("--purge works on a local store; on the server's machine: mlflow gc --run-ids ID,ID")
    for run in runs:
        with store.reported():
            versions = store.client.search_model_versions(f"run_id = '{run.info.run_id}'")
        if versions:
            names = ", ".join(f"{each.name} version {each.version}" for each in versions)
            raise UsageError(f"{named(run)} is registered as {names}; take it out of the registry first")


@dataclass(frozen=True, slots=True)
class Files:
    """The folders of a run on this machine, none within another: artifacts, state, models.

    Attributes:
        inside: in the folder of the store's database.
        outside: elsewhere, such as on another disk, or in the project that this one is a copy of.
        shared: where the record leads that is no folder of the run alone; never deleted.
    """

    inside: tuple[Path, ...]
    outside: tuple[Path, ...]
    shared: tuple[Path, ...]

    def size(self, *, outside: bool = True) -> int:
        """Return how many bytes of the disk deleting them would free."""
        return _size((*self.inside, *self.outside) if outside else self.inside)


def files_of(store: Store, run: Run) -> Files:
    """Return the folders of a run that are there."""
    found = {folder.resolve() for folder in _recorded_folders(store, run) if folder.is_dir()}
    found = {folder for folder in found if not found & set(folder.parents)}
    shared = {folder for folder in found if folder.name not in (run.info.run_id, *store.models_of(run))}
    inside = {folder for folder in found - shared if is_within(store.database, folder)}
    return Files(tuple(sorted(inside)), tuple(sorted(found - shared - inside)), tuple(sorted(shared)))


def _recorded_folders(store: Store, run: Run) -> set[Path]:
    """Return where a run's folders should be, links not followed."""
    models = store.models_of(run)
    places = [*store.artifact_places(run, models), store.state_folder(run)]
    ids = (str(run.info.run_id), *models)
    return {own_folder(place.absolute(), ids) or place.absolute() for place in places}


def purge(store: Store, run: Run, folders: Sequence[Path]) -> list[str]:
    """Delete folders of a run and then, when they are gone, its record and those of its models.

    Not by ``mlflow gc``, which takes along everything else that has ever been removed.

    Returns:
        What could not be deleted, and why; the record then stays, so that another call can finish.

    Raises:
        UsageError: the store is a server, a model is registered, or another process works on the run.
        TrackingError: the store cannot do it.
    """
    check_purgeable(store, [run])
    links = [place for place in _recorded_folders(store, run) if place.is_symlink()]
    # What is on a disk that is away now would be found by nobody afterwards.
    away = [f"{link}: {link.readlink()} is not there" for link in links if not link.resolve().parent.is_dir()]
    if away:
        return away
    with owned(store, run, from_readers=True):
        # A process that is killed from here on leaves no run in the list that lacks some of its files.
        with store.reported():
            if run.info.lifecycle_stage == LifecycleStage.ACTIVE:
                store.client.delete_run(run.info.run_id)
        for path in [path for folder in folders for path in folder.rglob("*")]:
            # The locks last: some file systems keep an open file, and the folder around it.
            if not path.name.endswith(".lock") and (path.is_symlink() or not path.is_dir()):
                with suppress(OSError):
                    path.unlink()
    stays = [problem for folder in folders for problem in _delete(folder)]
    if not stays:
        for link in links:
            if not link.exists():
                link.unlink()
        with store.reported():
            store.delete_for_good(run, store.models_of(run))
    return stays


def _delete(folder: Path) -> list[str]:
    """Delete a folder as far as possible; return the files that stay, the first with the reason."""
    shutil.rmtree(folder, ignore_errors=True)
    if not folder.exists():
        return []
    try:
        shutil.rmtree(folder)
    except OSError as error:
        files = sorted(str(path) for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
        return [f"{error.filename}: {error.strerror}", *(path for path in files if path != str(error.filename))]
    return []


def differences(store: Store, runs: Sequence[Run]) -> tuple[Differences, dict[str, str]]:
    """Return what tells runs apart, and the settings that are equal in all.

    Raises:
        TrackingError: the store cannot be used.
    """
    settings = _table([run.data.params for run in runs])
    made_with = _table([_made_with(run) for run in runs])
    images = {name: _images(runs, context) for context, name in _IMAGES.items()}
    made_with |= {name: values for name, values in images.items() if any(values)}
    results = {key: [run.data.metrics.get(key) for run in runs] for key in _RESULTS}
    apart = {key: values for key, values in settings.items() if len(set(values)) > 1}
    alike = {key: str(values[0]) for key, values in settings.items() if len(set(values)) == 1}
    return (
        Differences(
            runs=facts_of(store, runs, store.runs()),
            settings=apart,
            made_with={key: values for key, values in made_with.items() if len(set(values)) > 1},
            results={key: values for key, values in results.items() if any(value is not None for value in values)},
            alike=len(alike),
        ),
        alike,
    )


def _facts(run: Run, experiment: str) -> RunFacts:
    tags, metrics, params = run.data.tags, run.data.metrics, run.data.params
    status = status_of(run)
    end = time.time() if status == "running" else last_seen(run)
    best_epoch = metrics.get("best/epoch")
    return RunFacts(
        run_id=str(run.info.run_id),
        name=str(run.info.run_name),
        experiment=experiment,
        status=status,
        kind=_kind(run),
        parent_id=tags.get(CHILD_TAG),
        started=run.info.start_time / 1000,
        seconds=max(0.0, end - run.info.start_time / 1000),
        last_seen=last_seen(run) if status != "running" else end,
        host=tags.get(HOST_TAG),
        model=params.get("model"),
        data=tags.get("tl.data") or params.get("data"),
        epochs=(whole(metrics.get("epoch")), whole(params.get("epochs"))),
        val_accuracy=metrics.get("best/val_accuracy"),
        best_epoch=whole(best_epoch),
        test_accuracy=metrics.get("test/accuracy"),
        val_digest=dataset_digest(run, "validation"),
        phase_ends=_phase_ends(params),
    )


def _phase_ends(params: Mapping[str, str]) -> tuple[int, ...]:
    recorded = [whole(params.get(name)) for name in ("freeze_epochs", "epochs", "unfreeze_stages")]
    known = [number for number in recorded if number is not None]
    if len(known) < len(recorded) or not 0 < known[2] <= known[1] <= _MOST_EPOCHS:
        return ()
    return phase_ends(*known)


def _kind(run: Run) -> Kind:
    if is_parent(run):
        return "comparison"
    return "training" if "tl.version" in run.data.tags else "other"


def _made_with(run: Run) -> dict[str, str]:
    found = {"tl": run.data.tags.get("tl.version"), "machine": run.data.tags.get(HOST_TAG)}
    return {key: value for key, value in found.items() if value is not None}


def _images(runs: Sequence[Run], context: str) -> list[str | None]:
    """Return the digests of the runs' images; beside newer ones, what can be said of those of an earlier version."""
    digests = [dataset_digest(run, context) for run in runs]
    splits = [recorded_split(run, context) for run in runs]
    if len({split.scheme for split in splits if split}) < 2 or len(set(digests) - {None}) < 2:
        return digests
    shown = {"lengths": "contents not comparable: earlier version"}
    return [f"{split.count:,} ({shown.get(split.scheme, split.digest)})" if split else None for split in splits]


def _table(columns: Sequence[Mapping[str, str]]) -> dict[str, list[str | None]]:
    keys = dict.fromkeys(key for column in columns for key in column)
    return {key: [column.get(key) for column in columns] for key in keys}


def _size(folders: Iterable[Path]) -> int:
    """Return what deleting folders frees: blocks, not lengths, of files that have no other name elsewhere."""
    names: dict[tuple[int, int], list[os.stat_result]] = {}
    for folder in folders:
        for path in folder.rglob("*"):
            with suppress(OSError):
                stat = path.lstat()
                if not S_ISDIR(stat.st_mode):
                    names.setdefault((stat.st_dev, stat.st_ino), []).append(stat)
    return sum(512 * stats[0].st_blocks for stats in names.values() if len(stats) >= stats[0].st_nlink)

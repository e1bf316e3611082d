"""Sends what is in a run's journal but not in its store, once the store answers again."""

import os
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import mlflow
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

from tl_cli.errors import TrackingError, UsageError
from tl_cli.models.bundle import read_card
from tl_cli.tracking import journal
from tl_cli.tracking.evaluations import EVALUATIONS, NOTE_TAG, TEST_LOGITS, dataset_inputs, set_note
from tl_cli.tracking.facts import status_of
from tl_cli.tracking.journal import JOURNAL, RECORD, Journal, Left, alone_with, forget_left, read
from tl_cli.tracking.logged_model import Naming, log_model, share_weights
from tl_cli.tracking.overview import refresh
from tl_cli.tracking.reasons import reason
from tl_cli.tracking.recorded import Point, Run
from tl_cli.tracking.store import BATCH, DEFAULT_EXPERIMENT, STATE_ROOT, Store
from tl_cli.training.state import BEST_FOLDER, CARD_FILE, CONFIG_FILE, remove_checkpoints

# Errors that would come again on each attempt.
_FOR_EVER = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST")


@dataclass(frozen=True, slots=True)
class Synced:
    """What was sent: points of curves, other pieces of the record, and how the run ended.

    Attributes:
        refused: pieces that the store will never accept, and why; they are not tried again.
        failed: pieces that could not be sent this time, and why; they stay in the journal.
    """

    points: int
    pieces: int
    status: str | None
    refused: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()


def journaled_runs() -> list[str]:
    """Return the ids of the runs whose journals are in this folder."""
    return [path.parents[1].name for path in sorted(STATE_ROOT.glob(f"*/*/state/{JOURNAL}"))]


def goes_on(store: Store, run: Run) -> bool:
    """Whether a run is still writing its journal."""
    has_ended = read(store.state_folder(run) / JOURNAL, run.info.run_id).ending is not None
    return not has_ended and status_of(run) == "running"


def lost(store: Store, name: str, *, is_named: bool) -> str:
    """Return the id of a run of this folder that its store has lost; "" if it was removed on purpose.

    Args:
        name: id of the run, or its unique beginning.
        is_named: by the user; otherwise only runs of this store that still have artifacts are restored, as
            ``mlflow gc`` deletes artifacts with the record.
    """
    run_ids = [run_id for run_id in journaled_runs() if run_id.startswith(name)]
    if len(name) < 3 or len(run_ids) != 1 or store.run(run_ids[0]) is not None:
        return ""
    folder = next(STATE_ROOT.glob(f"*/{run_ids[0]}/state/{JOURNAL}")).parent
    is_ours = _tags(read(folder / RECORD, run_ids[0]).left).get(journal.STORE_TAG) == store.uri
    return run_ids[0] if is_named or (is_ours and folder.with_name("artifacts").is_dir()) else ""


def restore(store: Store, run_id: str) -> Synced:
    """Record a run again that its store has lost, from its folder here, with its id and all data.

    Raises:
        TrackingError: the store cannot record it, or the run is running.
        StorageError: its folder cannot be written.
    """
    (path,) = STATE_ROOT.glob(f"*/{run_id}/state/{JOURNAL}")
    with alone_with(path):
        record, known = read(path.with_name(RECORD), run_id).left or _record_of(path.parent), read(path, run_id)
        tags = _tags(record)
        started = min((point.timestamp for point in known.points), default=int(time.time() * 1000))
        experiment_id = store.experiment(tags.get(journal.EXPERIMENT_TAG, DEFAULT_EXPERIMENT))
        # The experiment may have another id now.
        old, new = path.parents[1], STATE_ROOT / experiment_id / run_id
        todo = [_moved(each, new) for each in record]
        if known.left[-len(todo) :] != todo:  # an earlier call was interrupted
            with Journal(path) as unsent:
                unsent.leave(todo)
    if new != old:
        new.parent.mkdir(parents=True, exist_ok=True)
        old.rename(new)
    # Last, as an interrupted call is repeated only while the store does not have the run.
    name, started_at = tags.get(journal.NAME_TAG, run_id[:8]), int(tags.get(journal.STARTED_TAG, started))
    store.add_run(run_id, experiment_id, name, started_at)
    return sync(store, store.known_run(run_id))


def _moved(work: Left, folder: Path) -> Left:
    """Return work with the path of its file in the run's new folder."""
    _, inside, path = work.name.partition(f"/{folder.name}/")
    return replace(work, name=str(folder / path)) if inside else work


def _tags(record: Iterable[Left]) -> dict[str, str]:
    return {work.name: work.value for work in record if work.kind == "tag"}


def _record_of(folder: Path) -> list[Left]:
    """Return settings, data, files and model of a run of an earlier version, which wrote no record file."""
    if not (folder / CARD_FILE).exists():
        return []
    card = read_card(folder, CARD_FILE)
    tags = {"tl.version": card.tl_version, "tl.model": card.architecture, "tl.data": card.data.source}
    naming = Naming(card.architecture, {"model": card.architecture})
    return [
        *(Left("param", key, str(value)) for key, value in card.config.items()),
        *(Left("tag", key, value) for key, value in tags.items()),
        Left("data", str(folder / CARD_FILE), ""),
        *(Left("file", str(folder / name), "") for name in (CONFIG_FILE, "training_batch.png")),
        Left("file", str(folder / TEST_LOGITS), EVALUATIONS),
        Left("model", str(folder / BEST_FOLDER), naming.to_json()),
    ]


def sync(store: Store, run: Run) -> Synced:
    """Send what the store does not have: each point once, with the time at which it was measured.

    Raises:
        TrackingError: the store cannot be used, or another process is sending.
        StorageError: the journal cannot be written.
    """
    path = store.state_folder(run) / JOURNAL
    if not path.exists():
        return Synced(0, 0, None)
    # A read-only folder needs no lock: no process writes its journal.
    with alone_with(path) if os.access(path.parent, os.W_OK) else nullcontext():
        sent = _sync(store, run, path)
        if not sent.refused:
            free_disk(store, run.info.run_id, path.parent)
        return sent


def free_disk(store: Store, run_id: str, folder: Path) -> None:
    """Delete the checkpoints of a finished run that is completely recorded, and share its weights with the store.

    Args:
        folder: the run's state folder.
    """
    with suppress(MlflowException, OSError, TrackingError):
        run, ended = store.run(run_id), read(folder / JOURNAL, run_id).ending
        if run is not None and run.info.status == "FINISHED" and ended is not None and ended.status == "FINISHED":
            remove_checkpoints(folder)
            store.check_place(run)
            share_weights(store, run, folder / BEST_FOLDER)


def _sync(store: Store, run: Run, path: Path) -> Synced:
    run_id = run.info.run_id
    recorded = read(path, run_id)
    refused: list[str] = []
    failed: dict[Left, str] = {}
    if recorded.left:
        store.check_place(run)
    with store.reported():
        for work in recorded.left:
            try:
                perform(store, run_id, [work])
            except Exception as error:  # a broken answer may raise anything in MLflow's client
                problem = f"the {work.kind} {work.name}: {reason(error)}"
                if isinstance(error, UsageError | UnicodeError) or getattr(error, "error_code", None) in _FOR_EVER:
                    refused.append(problem)
                elif store.answers():
                    failed[work] = problem
                else:
                    raise
        waiting = _of_models(store, run_id, missing(store, run_id, recorded.points))
        for start in range(0, len(waiting), BATCH):
            store.client.log_batch(run_id, metrics=waiting[start : start + BATCH])
        status = None
        if recorded.ending is not None and run.info.status == "RUNNING":
            status = recorded.ending.status
            # The clock may have been set back.
            store.client.set_terminated(run_id, status, end_time=max(recorded.ending.at, run.info.start_time))
    if recorded.left:
        forget_left(path, failed)
    if waiting or recorded.left or status:
        refresh(store, [run.info.experiment_id])
    done = len(recorded.left) - len(refused) - len(failed)
    return Synced(len(waiting), done, status, tuple(refused), tuple(failed.values()))


def perform(store: Store, run_id: str, work: Sequence[Left]) -> str | None:
    """Record tags, parameters, files, a model or the data sets; skip files that are gone.

    Returns:
        The id of a recorded model.
    """
    params = [Param(each.name, each.value) for each in work if each.kind == "param"]
    if params:
        store.client.log_batch(run_id, params=params)
    model_id = None
    for each in work:
        path = Path(each.name)
        if each.kind == "tag" and each.name == NOTE_TAG:
            set_note(store, run_id, each.value)
        elif each.kind == "tag":
            store.client.set_tag(run_id, each.name, each.value)
        elif each.kind == "data":
            store.client.log_inputs(run_id, dataset_inputs(read_card(path.parent, path.name).data))
        elif each.kind == "file" and path.exists():
            store.client.log_artifact(run_id, each.name, each.value or None)
        elif each.kind == "model" and path.exists():
            with _active(run_id):
                model_id = log_model(path, Naming.from_json(each.value))
    return model_id


@contextmanager
def _active(run_id: str) -> Iterator[None]:
    """Make a run the one that MLflow logs models with, and keep its status."""
    active = mlflow.active_run()
    if active is not None and active.info.run_id == run_id:
        yield
        return
    status = mlflow.MlflowClient().get_run(run_id).info.status
    mlflow.start_run(run_id=run_id, log_system_metrics=False)
    try:
        yield
    finally:
        # start_run changed the status to RUNNING.
        mlflow.end_run(status)


def missing(store: Store, run_id: str, points: Iterable[Metric]) -> list[Metric]:
    """Return the points that a store does not have, compared by metric and step, or time for those without a step."""
    by_key: dict[str, list[Metric]] = defaultdict(list)
    for point in points:
        by_key[point.key].append(point)
    lacking: list[Metric] = []
    for key, of_key in by_key.items():
        known = {_moment(point) for point in store.metric_history(run_id, key)}
        lacking += [point for point in of_key if _moment(point) not in known]
    return lacking


def _of_models(store: Store, run_id: str, points: Sequence[Metric]) -> list[Metric]:
    """Return points linked to models of the run: in a run that was recorded again, its model has another id."""
    run = store.run(run_id)
    known = {model_id: model_id for model_id in (run.model_ids if run is not None else ())}
    lost_ids = [point.model_id for point in points if point.model_id and point.model_id not in known]
    if lost_ids and len(known) == 1:
        known[lost_ids[-1]] = next(iter(known))
    return [Metric(**{**dict(each), "model_id": known.get(each.model_id or ""), "run_id": run_id}) for each in points]


def _moment(point: Metric | Point) -> tuple[int, int]:
    return (point.step, 0 if point.step else point.timestamp)

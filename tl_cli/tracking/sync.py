"""Sends what is in a run's journal but not in its store, when the store responds again."""

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
from tl_cli.tracking.journal import JOURNAL, RECORD, Item, Journal, hold_lock, read, remove_items
from tl_cli.tracking.logged_model import Naming, log_model, share_weights
from tl_cli.tracking.overview import refresh_overviews
from tl_cli.tracking.reasons import reason
from tl_cli.tracking.recorded import Point, Run
from tl_cli.tracking.store import BATCH, DEFAULT_EXPERIMENT, STATE_ROOT, Store
from tl_cli.training.state import BEST_FOLDER, CARD_FILE, CONFIG_FILE, remove_checkpoints

# Errors that each attempt would raise again.
_PERMANENT = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST")


@dataclass(frozen=True, slots=True)
class Synced:
    """What was sent: points of curves, other items of the record, and how the run ended.

    Attributes:
        pieces: number of items.
        refused: items that the store will never accept, and why; they are not tried again.
        failed: items that could not be sent this time, and why; they stay in the journal.
    """

    points: int
    pieces: int
    status: str | None
    refused: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()


def journaled_runs() -> list[str]:
    """Return the ids of the runs whose journals are in this folder."""
    return [path.parents[1].name for path in sorted(STATE_ROOT.glob(f"*/*/state/{JOURNAL}"))]


def is_being_written(store: Store, run: Run) -> bool:
    """Whether a process is still writing the journal of a run."""
    has_ended = read(store.state_folder(run) / JOURNAL, run.info.run_id).ending is not None
    return not has_ended and status_of(run) == "running"


def find_lost_run(store: Store, name: str, *, is_named: bool) -> str:
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
    is_ours = _tags(read(folder / RECORD, run_ids[0]).items).get(journal.STORE_TAG) == store.uri
    return run_ids[0] if is_named or (is_ours and folder.with_name("artifacts").is_dir()) else ""


def restore_run(store: Store, run_id: str) -> Synced:
    """Record a run again that its store has lost, from its folder here, with its id and all data.

    Raises:
        TrackingError: the store cannot record it, or the run is running.
        StorageError: its folder cannot be written.
    """
    (path,) = STATE_ROOT.glob(f"*/{run_id}/state/{JOURNAL}")
    with hold_lock(path):
        record, recorded = read(path.with_name(RECORD), run_id).items or _record_of(path.parent), read(path, run_id)
        tags = _tags(record)
        started = min((point.timestamp for point in recorded.points), default=int(time.time() * 1000))
        experiment_id = store.experiment(tags.get(journal.EXPERIMENT_TAG, DEFAULT_EXPERIMENT))
        # The experiment may have another id now.
        old, new = path.parents[1], STATE_ROOT / experiment_id / run_id
        unsent = [_with_folder(item, new) for item in record]
        if recorded.items[-len(unsent) :] != unsent:  # else an earlier call added them and was interrupted
            with Journal(path) as file:
                file.add_items(unsent)
    if new != old:
        new.parent.mkdir(parents=True, exist_ok=True)
        old.rename(new)
    # Last, as an interrupted call is repeated only while the store does not have the run.
    name, started_at = tags.get(journal.NAME_TAG, run_id[:8]), int(tags.get(journal.STARTED_TAG, started))
    store.add_run(run_id, experiment_id, name, started_at)
    return sync(store, store.require_run(run_id))


def _with_folder(item: Item, folder: Path) -> Item:
    """Return an item with the path of its file in the run's new folder."""
    _, inside, path = item.name.partition(f"/{folder.name}/")
    return replace(item, name=str(folder / path)) if inside else item


def _tags(record: Iterable[Item]) -> dict[str, str]:
    return {item.name: item.value for item in record if item.kind == "tag"}


def _record_of(folder: Path) -> list[Item]:
    """Return settings, data, files and model of a run of an earlier version, which wrote no record file."""
    if not (folder / CARD_FILE).exists():
        return []
    card = read_card(folder, CARD_FILE)
    tags = {"tl.version": card.tl_version, "tl.model": card.architecture, "tl.data": card.data.source}
    naming = Naming(card.architecture, {"model": card.architecture})
    return [
        *(Item("param", key, str(value)) for key, value in card.config.items()),
        *(Item("tag", key, value) for key, value in tags.items()),
        Item("data", str(folder / CARD_FILE), ""),
        *(Item("file", str(folder / name), "") for name in (CONFIG_FILE, "training_batch.png")),
        Item("file", str(folder / TEST_LOGITS), EVALUATIONS),
        Item("model", str(folder / BEST_FOLDER), naming.to_json()),
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
    with hold_lock(path) if os.access(path.parent, os.W_OK) else nullcontext():
        synced = _sync(store, run, path)
        if not synced.refused:
            free_disk(store, run.info.run_id, path.parent)
        return synced


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
    failed: dict[Item, str] = {}
    if recorded.items:
        store.check_place(run)
    with store.translated_errors():
        for item in recorded.items:
            try:
                record_items(store, run_id, [item])
            except Exception as error:  # an invalid response may raise anything in MLflow's client
                problem = f"the {item.kind} {item.name}: {reason(error)}"
                if isinstance(error, UsageError | UnicodeError) or getattr(error, "error_code", None) in _PERMANENT:
                    refused.append(problem)
                elif store.is_reachable():
                    failed[item] = problem
                else:
                    raise
        unsent = _with_model_ids(store, run_id, find_missing(store, run_id, recorded.points))
        for start in range(0, len(unsent), BATCH):
            store.client.log_batch(run_id, metrics=unsent[start : start + BATCH])
        status = None
        if recorded.ending is not None and run.info.status == "RUNNING":
            status = recorded.ending.status
            # The clock may have been set back.
            store.client.set_terminated(run_id, status, end_time=max(recorded.ending.at, run.info.start_time))
    if recorded.items:
        remove_items(path, failed)
    if unsent or recorded.items or status:
        refresh_overviews(store, [run.info.experiment_id])
    num_sent = len(recorded.items) - len(refused) - len(failed)
    return Synced(len(unsent), num_sent, status, tuple(refused), tuple(failed.values()))


def record_items(store: Store, run_id: str, items: Sequence[Item]) -> str | None:
    """Record tags, parameters, files, a model or the data sets; skip files that no longer exist.

    Returns:
        The id of a recorded model.
    """
    params = [Param(each.name, each.value) for each in items if each.kind == "param"]
    if params:
        store.client.log_batch(run_id, params=params)
    model_id = None
    for item in items:
        path = Path(item.name)
        if item.kind == "tag" and item.name == NOTE_TAG:
            set_note(store, run_id, item.value)
        elif item.kind == "tag":
            store.client.set_tag(run_id, item.name, item.value)
        elif item.kind == "data":
            store.client.log_inputs(run_id, dataset_inputs(read_card(path.parent, path.name).data))
        elif item.kind == "file" and path.exists():
            store.client.log_artifact(run_id, item.name, item.value or None)
        elif item.kind == "model" and path.exists():
            with _activated(run_id):
                model_id = log_model(path, Naming.from_json(item.value))
    return model_id


@contextmanager
def _activated(run_id: str) -> Iterator[None]:
    """Make a run MLflow's active run, to which it logs models, without changing its status."""
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


def find_missing(store: Store, run_id: str, points: Iterable[Metric]) -> list[Metric]:
    """Return the points that a store does not have, compared by metric and step, or time for those without a step."""
    by_key: dict[str, list[Metric]] = defaultdict(list)
    for point in points:
        by_key[point.key].append(point)
    missing: list[Metric] = []
    for key, own in by_key.items():
        recorded = {_position(point) for point in store.metric_history(run_id, key)}
        missing += [point for point in own if _position(point) not in recorded]
    return missing


def _with_model_ids(store: Store, run_id: str, points: Sequence[Metric]) -> list[Metric]:
    """Return points with the ids of the run's models: in a run that was recorded again, its model has another id."""
    run = store.run(run_id)
    current = {model_id: model_id for model_id in (run.model_ids if run is not None else ())}
    old = [point.model_id for point in points if point.model_id and point.model_id not in current]
    if old and len(current) == 1:
        current[old[-1]] = next(iter(current))
    return [Metric(**{**dict(each), "model_id": current.get(each.model_id or ""), "run_id": run_id}) for each in points]


def _position(point: Metric | Point) -> tuple[int, int]:
    return (point.step, 0 if point.step else point.timestamp)

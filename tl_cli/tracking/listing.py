"""Recorded runs as a list: their facts, what tells them apart, closing dead ones and removing them."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mlflow.entities import Run

from tl_cli.errors import TrackingError, UsageError
from tl_cli.tracking.history import read_sparks
from tl_cli.tracking.liveness import HOST_TAG, state_of
from tl_cli.tracking.store import CHILD_TAG, Store, dataset_digest, is_parent, last_seen, short_id
from tl_cli.training.record import Differences, Kind, RunFacts, Status

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
_IMAGES = {"training": "training images", "validation": "validation images", "testing": "test images"}


def facts_of(store: Store, runs: Sequence[Run]) -> list[RunFacts]:
    """Return what is known of runs, in their order, without their curves."""
    experiments = {experiment_id: name for name, experiment_id in store.experiments().items()}
    facts = [_facts(run, experiments.get(run.info.experiment_id, "")) for run in runs]
    best: dict[tuple[str, str], RunFacts] = {}
    # Of equal ones the earlier stands.
    for each in sorted(facts, key=lambda each: each.started):
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


def _with_curve(facts: RunFacts, curve: tuple[float, ...]) -> RunFacts:
    if facts.val_accuracy is not None or not curve:
        return replace(facts, curve=curve)
    # A run that has not ended has recorded no best epoch yet.
    best = max(curve)
    return replace(facts, curve=curve, val_accuracy=best, best_epoch=curve.index(best) + 1)


def status_of(run: Run) -> Status:
    """Return how a run stands, with what has become of one that is recorded as running."""
    known = _STATUS.get(run.info.status)
    if known is not None:
        return known
    state = state_of(run.data.tags, time.time())
    return "running" if state == "alive" else state


def close(store: Store, run: Run) -> None:
    """Record a run whose process is gone as killed, at the time when it was last heard of.

    Raises:
        UsageError: it goes on, or has ended already.
        TrackingError: the store cannot be used.
    """
    check_stopped(run)
    status = status_of(run)
    if status not in ("dead", "silent"):
        raise UsageError(f"{_named(run)} has ended already: {status}")
    with store.reported():
        store.client.set_terminated(run.info.run_id, "KILLED", end_time=round(1000 * last_seen(run)))


def remove(store: Store, run: Run) -> None:
    """Take a run and its models out of every list; MLflow can restore the run until ``mlflow gc`` has been there.

    Raises:
        UsageError: it goes on.
        TrackingError: the store cannot be used.
    """
    check_stopped(run)
    with store.reported():
        for model_id in _models(run):
            store.client.delete_logged_model(model_id)
        store.client.delete_run(run.info.run_id)


def check_stopped(run: Run) -> None:
    """Refuse a run that goes on.

    Raises:
        UsageError: it does.
    """
    if status_of(run) == "running":
        raise UsageError(f"{_named(run)} is running{_where(run)}; stop it first, there with Ctrl-C")


def check_purgeable(store: Store) -> None:
    """Refuse a store whose files are not here.

    Raises:
        UsageError: it is a server, which keeps them to itself.
    """
    if store.is_remote:
        raise UsageError("--purge works on a local store; on the server's machine: mlflow gc --run-ids ID,ID")


def purge(store: Store, runs: Sequence[Run]) -> None:
    """Delete removed runs for good: their records, artifacts, models and what is needed to resume them.

    Raises:
        UsageError: the store is a server, which keeps its files to itself.
        TrackingError: MLflow could not do it.
    """
    check_purgeable(store)
    uri = store.local_uri()
    command = [sys.executable, "-m", "mlflow", "gc", "--backend-store-uri", uri]
    command += ["--run-ids", ",".join(run.info.run_id for run in runs)]
    models = [model_id for run in runs for model_id in _models(run)]
    if models:
        command += ["--logged-model-ids", ",".join(models)]
    done = subprocess.run(  # noqa: S603 (MLflow's own)
        command, env={**os.environ, "MLFLOW_TRACKING_URI": uri}, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise TrackingError(f"mlflow gc failed: {reason[:300]}")
    for run in runs:
        shutil.rmtree(store.state_folder(run).parent, ignore_errors=True)


def bytes_of(store: Store, run: Run) -> int:
    """Return how much of the disk here a run takes: state, artifacts and models, as far as they are local."""
    roots = [store.state_folder(run), *store.local_artifacts(run), *store.local_models(_models(run))]
    return sum(_size(root) for root in roots)


def differences(store: Store, runs: Sequence[Run]) -> tuple[Differences, dict[str, str]]:
    """Return what tells runs apart, and the settings that are equal in all.

    Raises:
        TrackingError: the store cannot be used.
    """
    settings = _table([run.data.params for run in runs])
    made_with = _table([_made_with(run) for run in runs])
    results = {key: [run.data.metrics.get(key) for run in runs] for key in _RESULTS}
    apart = {key: values for key, values in settings.items() if len(set(values)) > 1}
    alike = {key: str(values[0]) for key, values in settings.items() if len(set(values)) == 1}
    return (
        Differences(
            runs=facts_of(store, runs),
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
        epochs=(_whole(metrics.get("epoch")), _whole(params.get("epochs"))),
        val_accuracy=metrics.get("best/val_accuracy"),
        best_epoch=_whole(best_epoch),
        test_accuracy=metrics.get("test/accuracy"),
        val_digest=dataset_digest(run, "validation"),
    )


def _kind(run: Run) -> Kind:
    if is_parent(run):
        return "comparison"
    return "training" if "tl.version" in run.data.tags else "other"


def _whole(value: object) -> int | None:
    try:
        return round(float(str(value)))
    except (ValueError, OverflowError):
        return None


def _models(run: Run) -> list[str]:
    return [str(output.model_id) for output in (run.outputs.model_outputs if run.outputs else [])]


def _made_with(run: Run) -> dict[str, str]:
    found = {"tl": run.data.tags.get("tl.version"), "machine": run.data.tags.get(HOST_TAG)}
    found |= {name: dataset_digest(run, context) for context, name in _IMAGES.items()}
    return {key: value for key, value in found.items() if value is not None}


def _table(columns: Sequence[Mapping[str, str]]) -> dict[str, list[str | None]]:
    keys = dict.fromkeys(key for column in columns for key in column)
    return {key: [column.get(key) for column in columns] for key in keys}


def _named(run: Run) -> str:
    return f"{short_id(run)} ({run.info.run_name})"


def _where(run: Run) -> str:
    host = run.data.tags.get(HOST_TAG)
    return f" on {host}" if host else ""


def _size(root: Path) -> int:
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file() and not path.is_symlink())

"""Recorded runs as a list: their facts and their differences. No torch and no MLflow here."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from tl_cli.tracking.facts import Differences, Kind, RunFacts, Status
from tl_cli.tracking.liveness import HOST_TAG, state_of
from tl_cli.tracking.parsing import whole
from tl_cli.tracking.reader import read_sparks
from tl_cli.tracking.recorded import CHILD_TAG, Run, RunReader, dataset_digest, is_parent, last_seen, recorded_split
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


def facts_of(store: RunReader, runs: Sequence[Run], among: Sequence[Run] | None = None) -> list[RunFacts]:
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


def with_curves(store: RunReader, runs: Sequence[Run], facts: Sequence[RunFacts]) -> list[RunFacts]:
    """Return the facts with the validation accuracy by epoch of those runs."""
    sparks = read_sparks(store, [run for run in runs if run.info.run_id in {each.run_id for each in facts}])
    return [_with_curve(each, sparks.get(each.run_id, ())) for each in facts]


def with_accuracies(store: RunReader, runs: Sequence[Run], facts: Sequence[RunFacts]) -> list[RunFacts]:
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
    state = state_of(run.data.tags, run.info.start_time / 1000, time.time())
    return state if state in ("dead", "silent") else "running"


def differences(store: RunReader, runs: Sequence[Run]) -> tuple[Differences, dict[str, str]]:
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

"""Lists of recorded runs: which are best, their curves, and their differences. No torch and no MLflow here."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from tl_cli.evaluation.scores import RESULTS
from tl_cli.tracking import recorded
from tl_cli.tracking.facts import Differences, RunFacts, read_facts
from tl_cli.tracking.liveness import HOST_TAG
from tl_cli.tracking.reader import read_sparks
from tl_cli.tracking.recorded import Run, RunReader

_RESULTS = [score.key for score in RESULTS.values() if score.in_line]
_IMAGES = {"training": "training images", "validation": "validation images", "testing": "test images"}


def facts_of(store: RunReader, runs: Sequence[Run], among: Sequence[Run] | None = None) -> list[RunFacts]:
    """Return the facts of runs, in their order, without their curves.

    Args:
        among: the runs to compare for ``is_best``, such as all runs of the store; None: the listed runs. Runs of
            earlier versions on image files are compared separately, since their digests have another scheme.
    """
    experiments = {experiment_id: name for name, experiment_id in store.experiments().items()}
    listed, compared = (
        [read_facts(run, experiments.get(run.info.experiment_id, "")) for run in group]
        for group in (runs, runs if among is None else among)
    )
    best_ids = _find_best(compared)
    return [replace(run, is_best=run.run_id in best_ids) for run in listed]


def _find_best(runs: Sequence[RunFacts]) -> set[str]:
    """Return the ids of the runs with the highest validation accuracy in each experiment, on the same images."""
    best: dict[tuple[str, str], RunFacts] = {}
    # If accuracies are equal, the earlier run is the best.
    for run in sorted(runs, key=lambda run: run.started):
        if run.val_digest and run.val_accuracy is not None:
            other = best.setdefault((run.experiment, run.val_digest), run)
            if run.val_accuracy > (other.val_accuracy or 0.0):
                best[run.experiment, run.val_digest] = run
    return {run.run_id for run in best.values()}


def with_curves(store: RunReader, runs: Sequence[Run], facts: Sequence[RunFacts]) -> list[RunFacts]:
    """Return the facts with the validation accuracy by epoch; for a run that has not ended, its best epoch so far too.

    Args:
        runs: the runs of the facts; may contain others.
    """
    listed = {each.run_id for each in facts}
    sparks = read_sparks(store, [run for run in runs if run.info.run_id in listed])
    return [_with_curve(each, sparks.get(each.run_id, ())) for each in facts]


def with_accuracies(store: RunReader, runs: Sequence[Run], facts: Sequence[RunFacts]) -> list[RunFacts]:
    """Return the facts with the best accuracy so far of runs that have not ended."""
    unfinished = [each for each in facts if each.val_accuracy is None]
    known = {each.run_id: each for each in with_curves(store, runs, unfinished)}
    return [known.get(each.run_id, each) for each in facts]


def _with_curve(facts: RunFacts, curve: tuple[float, ...]) -> RunFacts:
    finite = [(value, -epoch) for epoch, value in enumerate(curve, 1) if math.isfinite(value)]
    if facts.val_accuracy is not None or not finite:
        return replace(facts, curve=curve)
    # A run that has not ended has recorded no best epoch yet.
    best, epoch = max(finite)
    return replace(facts, curve=curve, val_accuracy=best, best_epoch=-epoch)


def differences(store: RunReader, runs: Sequence[Run]) -> tuple[Differences, dict[str, str]]:
    """Return the differences between runs, and the settings that are equal in all.

    Raises:
        TrackingError: the store cannot be used.
    """
    settings = _table([run.data.params for run in runs])
    made_with = _table([_made_with(run) for run in runs])
    images = {name: _images(runs, context) for context, name in _IMAGES.items()}
    made_with |= {name: values for name, values in images.items() if any(values)}
    results = {key: [run.data.metrics.get(key) for run in runs] for key in _RESULTS}
    equal = {key: str(values[0]) for key, values in settings.items() if len(set(values)) == 1}
    different = Differences(
        runs=facts_of(store, runs, store.runs()),
        settings={key: values for key, values in settings.items() if len(set(values)) > 1},
        made_with={key: values for key, values in made_with.items() if len(set(values)) > 1},
        results={key: values for key, values in results.items() if any(value is not None for value in values)},
        num_equal=len(equal),
    )
    return different, equal


def _made_with(run: Run) -> dict[str, str]:
    tags = {"tl": "tl.version", "machine": HOST_TAG}
    return {name: run.data.tags[tag] for name, tag in tags.items() if tag in run.data.tags}


def _images(runs: Sequence[Run], context: str) -> list[str | None]:
    """Return the digests of the runs' images; digests of an earlier version are marked where newer ones are listed."""
    digests = [recorded.dataset_digest(run, context) for run in runs]
    splits = [recorded.recorded_split(run, context) for run in runs]
    if len({split.scheme for split in splits if split}) < 2 or len(set(digests) - {None}) < 2:
        return digests
    notes = {"lengths": "contents not comparable: earlier version"}
    return [f"{split.count:,} ({notes.get(split.scheme, split.digest)})" if split else None for split in splits]


def _table(columns: Sequence[Mapping[str, str]]) -> dict[str, list[str | None]]:
    keys = dict.fromkeys(key for column in columns for key in column)
    return {key: [column.get(key) for column in columns] for key in keys}

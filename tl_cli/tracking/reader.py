"""Reads the curves of a run from MLflow, wherever the run was made."""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from tl_cli.errors import UsageError, suggest
from tl_cli.evaluation.scores import EPOCH_KEY, EPOCH_SCORES, LOSS_KEY, EpochEnded, Results
from tl_cli.tracking.liveness import read_pauses
from tl_cli.tracking.recorded import Point, Run, RunReader
from tl_cli.training.history import History

_EPOCH_KEYS = {name: score.key for name, score in EPOCH_SCORES.items()}
# MLflow stores infinity as the largest double.
_INFINITY = 1e308
# The steps of system metrics count samples, not optimizer steps.
_SYSTEM = "system/"
_CONCURRENT_REQUESTS = 8

T = TypeVar("T")


def read_history(store: RunReader, run: Run, metrics: Sequence[str] = ()) -> History:
    """Return the curves of a run, without numbers that are not finite; ``not_finite`` lists their steps.

    Args:
        metrics: other metrics to read. For a run without any of tl's metrics, all metrics are read.
    """
    recorded, results = run.data.metrics, Results.of(run.data.metrics)
    own = [key for key in (LOSS_KEY, *_EPOCH_KEYS.values()) if key in recorded]
    others = [key for key in metrics if key in recorded]
    # Other programs record a metric with this name too.
    if own and EPOCH_KEY in recorded:
        own.append(EPOCH_KEY)
    if not own and not others:
        others = [key for key in recorded if not key.startswith(_SYSTEM)]
    keys = sorted({*own, *others})
    points = _read_each(store, keys, lambda key: _points(store, run.info.run_id, key))
    timed = [*points.get(LOSS_KEY, []), *points.get(EPOCH_KEY, [])]
    clock = _clock(run, timed or [point for series in points.values() for point in series])
    by_step = {
        key: _with_steps(points[key], clock, run) if key.startswith(_SYSTEM) and clock else points[key]
        for key in others
    }
    return History(
        name=run.info.run_name,
        keep="last" if run.data.params.get("keep_epoch") == "last" else "best",
        losses=sorted(_finite(points.get(LOSS_KEY, [])).items()),
        epochs=_epochs(points) if own else [],
        test_accuracy=results.test_accuracy,
        test_loss=results.test_loss,
        clock=clock,
        others={key: sorted(_finite(series).items()) for key, series in by_step.items()},
        not_finite={key: steps for key, series in points.items() if (steps := _steps_not_finite(series))},
    )


def _epochs(points: Mapping[str, list[Point]]) -> list[EpochEnded]:
    columns = {name: _finite(points.get(key, [])) for name, key in _EPOCH_KEYS.items()}
    epochs = []
    for step, number in sorted(_finite(points.get(EPOCH_KEY, [])).items()):
        scores: dict[str, Any] = {name: column.get(step) for name, column in columns.items()}
        epochs.append(EpochEnded(round(number), step, **scores))
    return epochs


def read_sparks(store: RunReader, runs: Iterable[Run]) -> dict[str, tuple[float, ...]]:
    """Return the validation accuracies of each run's epochs, by run id; NaN where one was not finite."""
    ids = [run.info.run_id for run in runs if _EPOCH_KEYS["val_accuracy"] in run.data.metrics]

    def read(run_id: str) -> tuple[float, ...]:
        points = sorted(_points(store, run_id, _EPOCH_KEYS["val_accuracy"]), key=lambda point: point.step)
        return tuple(point.value if _is_finite(point.value) else math.nan for point in points)

    return _read_each(store, ids, read)


def matching_metrics(runs: Sequence[Run], patterns: Sequence[str], *, strict: bool = True) -> list[str]:
    """Return the recorded metrics that match names, or patterns such as ``val/*``.

    Args:
        strict: raise an error for a pattern that matches nothing; otherwise it may be recorded later.

    Raises:
        UsageError: no run has recorded a matching metric.
    """
    recorded = list(dict.fromkeys(key for run in runs for key in run.data.metrics))
    chosen: dict[str, None] = {}  # a set in the order of the patterns
    for pattern in patterns:
        matching = [key for key in recorded if key == pattern] or [key for key in recorded if fnmatchcase(key, pattern)]
        if not matching and strict:
            raise UsageError(f"no metric {pattern!r} is recorded.{suggest(pattern, recorded)}")
        chosen |= dict.fromkeys(matching)
    return list(chosen)


def _read_each(store: RunReader, names: Sequence[str], read: Callable[[str], T]) -> dict[str, T]:
    """Return what ``read`` returns for each name; a server gets several requests concurrently."""
    with store.translated_errors(), ThreadPoolExecutor(_CONCURRENT_REQUESTS if store.is_remote else 1) as pool:
        return dict(zip(names, pool.map(read, names), strict=True))


def _points(store: RunReader, run_id: str, key: str) -> list[Point]:
    """Return one point per step: the first, if a resumed run repeated the step.

    Points without steps are numbered in the order of their times.
    """
    history = sorted(store.metric_history(run_id, key), key=lambda point: point.timestamp)
    if len(history) > 1 and not any(point.step for point in history):
        return [Point(key, point.value, point.timestamp, step) for step, point in enumerate(history, 1)]
    points: dict[int, Point] = {}
    for point in history:
        points.setdefault(point.step, point)
    return list(points.values())


def _clock(run: Run, points: Iterable[Point]) -> list[tuple[int, float]]:
    """Return (step, seconds since the run began), in order."""
    elapsed = _elapsed(run)
    clock: dict[int, float] = {}
    latest = 0.0
    for point in sorted(points, key=lambda point: point.step):
        latest = max(latest, elapsed(point))
        clock.setdefault(point.step, latest)
    return list(clock.items())


def _elapsed(run: Run) -> Callable[[Point], float]:
    """Return a function that gives the seconds from the start of the run to a point, without pauses."""
    started, pauses = run.info.start_time, read_pauses(run.data.tags)

    def seconds(point: Point) -> float:
        paused = sum(min(end, point.timestamp) - start for start, end in pauses if start < point.timestamp)
        return float(point.timestamp - started - paused) / 1000

    return seconds


def _with_steps(points: Sequence[Point], clock: Sequence[tuple[int, float]], run: Run) -> list[Point]:
    """Return the points with the optimizer step at their time."""
    seconds, elapsed = [second for _, second in clock], _elapsed(run)
    by_step: dict[int, Point] = {}
    for point in points:
        after = bisect_right(seconds, elapsed(point))
        step = clock[after - 1][0] if after else 0
        by_step.setdefault(step, Point(point.key, point.value, point.timestamp, step))
    return list(by_step.values())


def _steps_not_finite(points: Iterable[Point]) -> list[int]:
    return sorted({point.step for point in points if not _is_finite(point.value)})


def _finite(points: Iterable[Point]) -> dict[int, float]:
    return {point.step: point.value for point in points if _is_finite(point.value)}


def _is_finite(value: float) -> bool:
    return abs(value) < _INFINITY  # False for NaN

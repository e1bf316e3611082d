"""The curves of a run as MLflow keeps them, so that a run made on another machine can be drawn too."""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from typing import TypeVar

from tl_cli.errors import UsageError, suggest
from tl_cli.tracking.liveness import paused
from tl_cli.tracking.recorded import MetricPoint, Point, Run, RunReader
from tl_cli.training.history import EpochPoint, History

_EPOCH_KEYS = {
    "train_loss": "train/loss",
    "train_accuracy": "train/accuracy",
    "val_loss": "val/loss",
    "val_accuracy": "val/accuracy",
    "lr_head": "lr/head",
    "lr_backbone": "lr/backbone",
    "seconds": "time/epoch_seconds",
    "ema_val_accuracy": "val/ema_accuracy",
    "ema_val_loss": "val/ema_loss",
    "images_per_second": "time/images_per_second",
}
_LOSS, _EPOCH, _VAL_ACCURACY = "step/loss", "epoch", "val/accuracy"
# MLflow stores infinity as the largest double.
_LARGEST = 1e308
# Counted in samples of their own, not in optimizer steps.
_SYSTEM = "system/"
_AT_ONCE = 8

T = TypeVar("T")


def read_history(store: RunReader, run: Run, metrics: Sequence[str] = ()) -> History:
    """Return the curves of a run; numbers that are not finite are in none, and are named.

    Args:
        metrics: others to read as well; of a run that recorded none of tl's own, all that were recorded over time.
    """
    recorded = run.data.metrics
    own = [key for key in (_LOSS, *_EPOCH_KEYS.values()) if key in recorded]
    others = [key for key in metrics if key in recorded]
    # Other programs count epochs under that name too.
    if own and _EPOCH in recorded:
        own.append(_EPOCH)
    if not own and not others:
        others = [key for key in recorded if not key.startswith(_SYSTEM)]
    found = _read(store, run.info.run_id, {*own, *others})
    clock = _clock(run, [*found.get(_LOSS, []), *found.get(_EPOCH, [])] or [p for each in found.values() for p in each])
    columns = {name: _finite(found.get(key, [])) for name, key in _EPOCH_KEYS.items()}
    history = History(
        name=str(run.info.run_name),
        losses=sorted(_finite(found.get(_LOSS, [])).items()),
        epochs=[
            EpochPoint(epoch=round(number), step=step, **{name: column.get(step) for name, column in columns.items()})
            for step, number in sorted(_finite(found.get(_EPOCH, []) if own else []).items())
        ],
        test_accuracy=recorded.get("test/accuracy"),
        test_loss=recorded.get("test/loss"),
        clock=clock,
    )
    for key in others:
        points = found[key]
        if key.startswith(_SYSTEM) and clock:
            points = _by_time(points, clock, run)
        history.others[key] = sorted(_finite(points).items())
    for key, points in found.items():
        if bad := sorted({point.step for point in points if not _is_finite(point.value)}):
            history.not_finite[key] = bad
    return history


def read_sparks(store: RunReader, runs: Iterable[Run]) -> dict[str, tuple[float, ...]]:
    """Return the validation accuracy by epoch of runs, by their ids; NaN where it was no number."""
    asked = [run.info.run_id for run in runs if _VAL_ACCURACY in run.data.metrics]

    def read(run_id: str) -> tuple[float, ...]:
        points = sorted(_points(store, run_id, _VAL_ACCURACY), key=lambda point: point.step)
        return tuple(point.value if _is_finite(point.value) else math.nan for point in points)

    return _ask(store, asked, read)


def matching_metrics(runs: Sequence[Run], wanted: Sequence[str], *, strict: bool = True) -> list[str]:
    """Return the recorded metrics that are meant: names, or patterns such as ``val/*``.

    Args:
        strict: refuse what no run has recorded; else it may come yet.

    Raises:
        UsageError: no run has recorded such a one.
    """
    recorded = list(dict.fromkeys(key for run in runs for key in run.data.metrics))
    found: list[str] = []
    for pattern in wanted:
        some = [key for key in recorded if key == pattern] or [key for key in recorded if fnmatchcase(key, pattern)]
        if not some and strict:
            raise UsageError(f"no metric {pattern!r} is recorded.{suggest(pattern, recorded)}")
        found += [key for key in some if key not in found]
    return found


def _read(store: RunReader, run_id: str, keys: Iterable[str]) -> dict[str, list[MetricPoint]]:
    """Return the points by metric."""
    return _ask(store, sorted(keys), lambda key: _points(store, run_id, key))


def _ask(store: RunReader, names: Sequence[str], question: Callable[[str], T]) -> dict[str, T]:
    """Return the answer to a question about each name; a server is asked for several at once."""
    with store.reported(), ThreadPoolExecutor(_AT_ONCE if store.is_remote else 1) as pool:
        return dict(zip(names, pool.map(question, names), strict=True))


def _points(store: RunReader, run_id: str, key: str) -> list[MetricPoint]:
    """Return the points, one a step. Of a step that was recorded twice the first stands, as a resumed run repeats it.

    Where nobody has named steps they are counted, as the points came.
    """
    history = sorted(store.metric_history(run_id, key), key=lambda point: point.timestamp)
    if len(history) > 1 and not any(point.step for point in history):
        return [Point(key, point.value, point.timestamp, place) for place, point in enumerate(history, 1)]
    points: dict[int, MetricPoint] = {}
    for point in history:
        points.setdefault(point.step, point)
    return list(points.values())


def _clock(run: Run, points: Iterable[MetricPoint]) -> list[tuple[int, float]]:
    """Return the seconds since the run began at each of its steps, in order."""
    elapsed = _elapsed(run)
    clock: dict[int, float] = {}
    latest = 0.0
    for point in sorted(points, key=lambda point: point.step):
        latest = max(latest, elapsed(point))
        clock.setdefault(point.step, latest)
    return list(clock.items())


def _elapsed(run: Run) -> Callable[[MetricPoint], float]:
    """Return how many seconds of its run lie before a point, less those in which the run was stopped."""
    began, breaks = run.info.start_time, paused(run.data.tags)

    def seconds(point: MetricPoint) -> float:
        stopped = sum(min(end, point.timestamp) - start for start, end in breaks if start < point.timestamp)
        return float(point.timestamp - began - stopped) / 1000

    return seconds


def _by_time(points: Sequence[MetricPoint], clock: Sequence[tuple[int, float]], run: Run) -> list[MetricPoint]:
    """Place points at the optimizer step of their time."""
    seconds, elapsed = [second for _, second in clock], _elapsed(run)
    placed: dict[int, MetricPoint] = {}
    for point in points:
        place = bisect_right(seconds, elapsed(point))
        step = clock[place - 1][0] if place else 0
        placed.setdefault(step, Point(point.key, point.value, point.timestamp, step))
    return list(placed.values())


def _finite(points: Iterable[MetricPoint]) -> dict[int, float]:
    return {point.step: point.value for point in points if _is_finite(point.value)}


def _is_finite(value: float) -> bool:
    return abs(value) < _LARGEST  # False for NaN

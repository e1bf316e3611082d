"""The curves of recorded runs: read once, or repeatedly until the runs end."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from tl_cli.api.observer import Observer
from tl_cli.errors import RunNotFoundError, TrackingError
from tl_cli.evaluation.scores import EPOCH_SCORES
from tl_cli.tracking.facts import RunFacts, status_of
from tl_cli.tracking.listing import facts_of
from tl_cli.tracking.reader import matching_metrics, read_history
from tl_cli.tracking.recorded import Run, RunReader, children_of, is_parent, started_or_resumed
from tl_cli.tracking.sqlite_reader import open_to_read
from tl_cli.training.history import History

POLL_S = 2.0


@dataclass(frozen=True, slots=True)
class CurvesRequest:
    """Which curves to read.

    Attributes:
        names: ids or their beginnings, names, ``latest``, ``best``; a comparison stands for its trainings. If empty:
            the latest run, or to follow the one that trains.
        metrics: names or patterns such as ``val/*`` of recorded metrics; empty reads those that tl records.
        tracking_uri: MLflow store or server; None is the default one.
    """

    names: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    tracking_uri: str | None = None


class RunCurves(NamedTuple):
    """A run, and its curves."""

    facts: RunFacts
    history: History


@dataclass(frozen=True, slots=True)
class CurvesResult:
    """The curves of some runs.

    Attributes:
        runs: in the order of the request; if two have the same name, the name of the history includes the id.
        metrics: recorded metrics that match the request's names and patterns.
    """

    runs: tuple[RunCurves, ...]
    metrics: tuple[str, ...] = ()

    @property
    def is_running(self) -> bool:
        """Whether any of the runs has not ended."""
        return any(each.facts.status == "running" for each in self.runs)

    def to_dict(self) -> dict[str, object]:
        """Return what ``tl plot --json`` prints; its schema is ``schemas/plot.json``."""
        return {
            "runs": [
                {
                    "run_id": facts.run_id,
                    "name": facts.name,
                    "status": facts.status,
                    "metrics": {
                        name: [{"step": step, "value": value} for step, value in points]
                        for name, points in _points(history, with_own=not self.metrics).items()
                    },
                    "not_finite": history.not_finite,
                }
                for facts, history in self.runs
            ]
        }


class FollowObserver(Observer):
    """Receives the curves of runs while they train; override any method."""

    def waiting(self) -> None:
        """Called once if no run is training yet."""

    def curves(self, result: CurvesResult, trouble: str = "") -> None:
        """Receive the curves after each reading; ``trouble`` is why they may be out of date, or empty."""


def read_curves(request: CurvesRequest) -> CurvesResult:
    """Return the curves of runs as they are recorded now.

    Raises:
        RunNotFoundError: no run, or several, have one of the names.
        UsageError: no run has recorded a metric of that name.
        TrackingError: the store cannot be used.
    """
    store = open_to_read(request.tracking_uri)
    runs: Sequence[Run] = _find(store, request.names or ("latest",))
    return _read(store, runs, tuple(matching_metrics(runs, request.metrics)))


def follow_curves(request: CurvesRequest, observer: FollowObserver, *, poll_s: float = POLL_S) -> CurvesResult:
    """Read the curves of runs until all have ended, and return them; without names, first wait for a run that trains.

    Args:
        request: its metrics may be recorded later.
        poll_s: seconds between two readings.

    Raises:
        RunNotFoundError: no run, or several, have one of the names.
        TrackingError: a run was removed, or the store could not be used from the beginning.
    """
    from tl_cli.tracking.store import open_store  # imports MLflow, which reading curves once does not need

    store = open_store(request.tracking_uri)
    names = request.names
    runs: Sequence[Run] = _find(store, names) if names else [_wait_for_training(store, observer, poll_s)]
    result: CurvesResult | None = None
    while result is None or result.is_running:
        began = time.monotonic()
        try:
            runs = store.reload(runs)
            result = _read(store, runs, tuple(matching_metrics(runs, request.metrics, strict=False)))
            observer.curves(result)
        except RunNotFoundError as error:
            raise TrackingError(str(error)) from error
        except TrackingError as error:
            if result is None:
                raise
            observer.curves(result, f"{error}; trying again")
        if result.is_running:
            # A long history takes long to read: spend at most half of the time on it.
            time.sleep(max(poll_s, time.monotonic() - began))
    return result


def _find(store: RunReader, names: Sequence[str]) -> list[Run]:
    """Return the runs with these names, each once; a comparison stands for its trainings."""
    runs: dict[str, Run] = {}
    for name in dict.fromkeys(names):
        run = store.find(name)
        for each in (children_of(store.runs(), run.info.run_id) if is_parent(run) else []) or [run]:
            runs.setdefault(each.info.run_id, each)
    return list(runs.values())


def _wait_for_training(store: RunReader, observer: FollowObserver, poll_s: float) -> Run:
    """Return the run that trains now; if there are several, the one that was started or resumed last."""
    is_first = True
    while True:
        running = [run for run in store.runs() if not is_parent(run) and status_of(run) == "running"]
        if running:
            return max(running, key=started_or_resumed)
        if is_first:
            observer.waiting()
        is_first = False
        time.sleep(poll_s)


def _read(store: RunReader, runs: Sequence[Run], metrics: tuple[str, ...]) -> CurvesResult:
    histories = [read_history(store, run, metrics) for run in runs]
    names = [history.name for history in histories]
    curves = [
        RunCurves(facts, replace(history, name=f"{history.name} ({facts.short_id})"))
        if names.count(history.name) > 1
        else RunCurves(facts, history)
        for facts, history in zip(facts_of(store, runs), histories, strict=True)
    ]
    return CurvesResult(tuple(curves), metrics)


def _points(history: History, *, with_own: bool) -> dict[str, list[tuple[int, float]]]:
    """Return (step, value) by metric: of the metrics that tl records, and of others."""
    own: dict[str, list[tuple[int, float]]] = {"step/loss": history.losses} if with_own else {}
    for field, score in EPOCH_SCORES.items() if with_own else ():
        own[score.key] = [
            (point.step, value) for point in history.epochs if (value := getattr(point, field)) is not None
        ]
    return {name: points for name, points in (own | history.others).items() if points}

"""Recorded runs, whether MLflow or the sqlite reader has read them: their names, times and images. No MLflow here."""

# ruff: noqa: D102 (what the members of the protocols are is in MLflow's documentation of its entities)

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from tl_cli.contract import Split
from tl_cli.errors import RunNotFoundError, suggest
from tl_cli.tracking.liveness import HEARTBEAT_TAG, paused

# On a run that groups the runs of a comparison and has no model of its own.
PARENT_TAG = "tl.compares"
CHILD_TAG = "mlflow.parentRunId"
# What the digest of a data set covers. A tag of the run's input, as MLflow keeps one data set per name and digest.
SCHEME_TAG = "tl.digest_scheme"
_BEST = "best/val_accuracy"
# Prefixes of MLflow's addresses of runs and models.
RUNS, MODELS = "runs:/", "models:/"


class RunInfo(Protocol):
    """The part of MLflow's ``RunInfo`` that is used here; times in milliseconds since 1970."""

    @property
    def run_id(self) -> str: ...
    @property
    def run_name(self) -> str | None: ...
    @property
    def experiment_id(self) -> str: ...
    @property
    def status(self) -> str: ...
    @property
    def start_time(self) -> int: ...
    @property
    def end_time(self) -> int | None: ...
    @property
    def lifecycle_stage(self) -> str: ...


class RunData(Protocol):
    """The last value of each metric, and the parameters and tags."""

    @property
    def metrics(self) -> dict[str, float]: ...
    @property
    def params(self) -> dict[str, str]: ...
    @property
    def tags(self) -> dict[str, str]: ...


class Tag(Protocol):
    """A tag of an input."""

    @property
    def key(self) -> str: ...
    @property
    def value(self) -> str: ...


class Dataset(Protocol):
    """A recorded data set."""

    @property
    def digest(self) -> str: ...
    @property
    def profile(self) -> str | None: ...


class DatasetInput(Protocol):
    """A data set with the tags of its use in a run."""

    @property
    def dataset(self) -> Dataset: ...
    @property
    def tags(self) -> Sequence[Tag]: ...


class RunInputs(Protocol):
    """The data sets of a run."""

    @property
    def dataset_inputs(self) -> Sequence[DatasetInput]: ...


class Run(Protocol):
    """MLflow's ``Run``, or that of ``sqlite_reader``."""

    @property
    def info(self) -> RunInfo: ...
    @property
    def data(self) -> RunData: ...
    @property
    def inputs(self) -> RunInputs | None: ...


R = TypeVar("R", bound=Run)


class MetricPoint(Protocol):
    """One point of a metric's history: MLflow's ``Metric``, or ``Point``."""

    @property
    def key(self) -> str: ...
    @property
    def value(self) -> float: ...
    @property
    def timestamp(self) -> int: ...
    @property
    def step(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Point:
    """One point of a metric's history; ``timestamp`` in milliseconds since 1970."""

    key: str
    value: float
    timestamp: int
    step: int


class RunReader(Protocol):
    """A store that can be read: ``store.Store``, or ``sqlite_reader.SqliteStore``."""

    @property
    def uri(self) -> str: ...
    @property
    def is_remote(self) -> bool: ...
    @property
    def database(self) -> Path | None: ...

    def reported(self) -> AbstractContextManager[None]:
        """Return a context in which a failure of the store becomes a TrackingError."""

    def experiments(self) -> dict[str, str]:
        """Return the ids of the experiments that are not deleted, by their names."""

    def runs(self, experiment: str | None = None, *, removed: bool = False) -> Sequence[Run]:
        """Return the runs of one experiment, or of all, latest start first."""

    def find(self, name: str) -> Run:
        """Return the run with that id, unique beginning of an id, name, or MLflow URI."""

    def metric_history(self, run_id: str, key: str) -> Sequence[MetricPoint]:
        """Return every recorded point of a metric."""


def find_run(runs: Sequence[R], name: str, uri: str) -> R:
    """Return the run of that id, unique beginning of an id, name, or ``runs:/`` URI.

    ``latest`` is the training run that was started or resumed last. ``best`` is the run with the highest validation
    accuracy in the experiment of the latest one, on the same validation images.

    Args:
        runs: all runs of a store.
        uri: of the store, for messages.

    Raises:
        RunNotFoundError: no run, or several, have that name; the message lists what there is.
    """
    name, _ = run_and_model(name)
    runs = sorted(runs, key=started_or_resumed, reverse=True)
    if not runs:
        raise RunNotFoundError(f"there are no runs in {uri} yet; make one with tl train")
    if name == "latest":
        return next((run for run in runs if not is_parent(run)), runs[0])
    if name == "best":
        return _best(runs, uri)
    exact = [run for run in runs if name in (run.info.run_id, run.info.run_name)]
    found = exact or [run for run in runs if len(name) >= 3 and run.info.run_id.startswith(name)]
    if len(found) == 1:
        return found[0]
    if found:
        listed = ", ".join(f"{named(run)}" for run in found[:5])
        raise RunNotFoundError(f"{len(found)} runs are called {name!r}: {listed}; use the id")
    known = [str(name) for run in runs for name in (run.info.run_name, short_id(run))]
    raise RunNotFoundError(f"no run is called {name!r} in {uri}.{suggest(name, known)}")


def find_removed(removed: Sequence[R], name: str) -> R | None:
    """Return the run of that id, unique beginning of an id, or name, if there is exactly one."""
    name, _ = run_and_model(name)
    found = [
        run
        for run in removed
        if name in (run.info.run_id, run.info.run_name) or (len(name) >= 3 and run.info.run_id.startswith(name))
    ]
    return found[0] if len(found) == 1 else None


def _best(runs: Sequence[R], uri: str) -> R:
    evaluated = [run for run in runs if _BEST in run.data.metrics and dataset_digest(run, "validation")]
    if not evaluated:
        raise RunNotFoundError(f"no run in {uri} has a validation accuracy yet; give an id or a name")
    comparable = [run for run in evaluated if _validation(run) == _validation(evaluated[0])]
    # The earliest of equally good ones.
    return max(reversed(comparable), key=lambda run: float(run.data.metrics[_BEST]))


def run_and_model(name: str) -> tuple[str, str]:
    """Return the run and the path of ``runs:/RUN/PATH``; of any other name itself and nothing."""
    if not name.startswith(RUNS):
        return name, ""
    run, _, path = name.removeprefix(RUNS).strip("/").partition("/")
    return run, path


def _validation(run: Run) -> tuple[str, str | None]:
    """Return what runs share whose validation accuracies can be compared.

    Earlier versions recorded the digests of files by another scheme, so their runs are compared with each other only.
    """
    return str(run.info.experiment_id), dataset_digest(run, "validation")


def is_parent(run: Run) -> bool:
    """Whether a run groups the training runs of a comparison."""
    return PARENT_TAG in run.data.tags


def children_of(runs: Sequence[R], parent_id: str) -> list[R]:
    """Return the runs of a comparison, whatever their status, the first of them first.

    Args:
        runs: all runs of the store, latest first.
    """
    return [run for run in reversed(runs) if run.data.tags.get(CHILD_TAG) == parent_id]


def dataset_digest(run: Run, context: str) -> str | None:
    """Return the digest of a run's images of one context: ``training``, ``validation`` or ``testing``."""
    found = _dataset_input(run, context)
    return str(found.dataset.digest) if found else None


def recorded_split(run: Run, context: str) -> Split | None:
    """Return the number of a run's images of one context and the beginning of their digest."""
    found = _dataset_input(run, context)
    if found is None:
        return None
    # Earlier versions did not record the scheme: it is the default.
    scheme = next((tag.value for tag in found.tags if tag.key == SCHEME_TAG), Split.model_fields["scheme"].default)
    try:
        count = json.loads(found.dataset.profile or "{}")["num_rows"]
        return Split.model_validate({"count": count, "digest": str(found.dataset.digest), "scheme": scheme})
    except (ValueError, KeyError, TypeError, RecursionError):
        return None  # recorded by another program


def _dataset_input(run: Run, context: str) -> DatasetInput | None:
    for each in run.inputs.dataset_inputs if run.inputs else []:
        if any(tag.key == "mlflow.data.context" and tag.value == context for tag in each.tags):
            return each
    return None


def last_seen(run: Run) -> float:
    """Return when a run ended, or when its process last reported, in seconds since 1970."""
    if run.info.end_time and run.info.status != "RUNNING":
        return float(run.info.end_time) / 1000
    with suppress(ValueError):
        return max(float(run.info.start_time) / 1000, float(run.data.tags.get(HEARTBEAT_TAG, "")))
    return float(run.info.start_time) / 1000


def started_or_resumed(run: Run) -> float:
    """Return when a run was started, or resumed for the last time, in milliseconds since 1970."""
    return float(max([run.info.start_time, *(end for _, end in paused(run.data.tags))]))


def short_id(run: Run) -> str:
    """Return the first characters of a run's id: what people type."""
    return str(run.info.run_id)[:8]


def named(run: Run) -> str:
    """Return what a message calls a run: its short id and its name."""
    return f"{short_id(run)} ({run.info.run_name})"

"""Recorded runs, whether MLflow or the sqlite reader has read them: their names, times and images. No MLflow here."""

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tl_cli.contract import Split
from tl_cli.errors import RunNotFoundError, suggest
from tl_cli.evaluation.scores import Results
from tl_cli.tracking.liveness import HEARTBEAT_TAG, State, read_pauses, state_of

# Marks a run that groups the runs of a comparison and has no model.
PARENT_TAG = "tl.compares"
CHILD_TAG = "mlflow.parentRunId"
# Marks the mean of the weights of other runs, with their ids.
SOUP_TAG = "tl.soup"
# Tags of the images that a run used: what for, and what their digest covers (MLflow keeps one data set per name and
# digest, so this is not a property of the data set).
CONTEXT_TAG, SCHEME_TAG = "mlflow.data.context", "tl.digest_scheme"
# Prefixes of MLflow's addresses of runs and models.
RUNS, MODELS = "runs:/", "models:/"


@dataclass(frozen=True, slots=True)
class RunInfo:
    """As MLflow's ``RunInfo``; times in milliseconds since 1970."""

    run_id: str
    run_name: str
    experiment_id: str
    status: str
    start_time: int
    end_time: int | None
    lifecycle_stage: str
    artifact_uri: str


@dataclass(frozen=True, slots=True)
class RunData:
    """The last value of each metric, and the parameters and tags."""

    metrics: dict[str, float]
    params: dict[str, str]
    tags: dict[str, str]


@dataclass(frozen=True, slots=True)
class RecordedImages:
    """Images that a run used: their digest, what it covers, and MLflow's profile of them, which is JSON."""

    digest: str
    profile: str | None
    scheme: str


@dataclass(frozen=True, slots=True)
class Run:
    """A recorded run.

    Attributes:
        images: by context: ``training``, ``validation`` or ``testing``.
        model_ids: of the models that it logged or used; the sqlite reader leaves them out.
    """

    info: RunInfo
    data: RunData
    images: Mapping[str, RecordedImages]
    model_ids: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Point:
    """One point of a metric; ``timestamp`` in milliseconds since 1970."""

    key: str
    value: float
    timestamp: int
    step: int


class RunReader(Protocol):
    """A store that can be read: ``store.Store``, or ``sqlite_reader.SqliteStore``."""

    @property
    def uri(self) -> str:
        """For messages, without credentials."""

    @property
    def is_remote(self) -> bool:
        """Whether it is a server."""

    @property
    def database(self) -> Path | None:
        """The file of a local database; None for a server or another kind of database."""

    def translated_errors(self) -> AbstractContextManager[None]:
        """Return a context in which a failure of the store becomes a TrackingError."""

    def experiments(self) -> dict[str, str]:
        """Return the ids of the experiments that are not deleted, by their names."""

    def runs(self, experiment: str | None = None, *, removed: bool = False) -> list[Run]:
        """Return the runs of one experiment, or of all, latest start first."""

    def find(self, name: str) -> Run:
        """Return the run with that id, unique beginning of an id, name, or MLflow URI."""

    def metric_history(self, run_id: str, key: str) -> list[Point]:
        """Return every recorded point of a metric."""

    def model_folder(self, run: Run, name: str = "", warn: Callable[[str], None] | None = None) -> Path:
        """Return the folder of a run's saved model, downloaded if the store is remote."""


def images_by_context(uses: Iterable[tuple[str, str | None, Mapping[str, str]]]) -> dict[str, RecordedImages]:
    """Return the images of a run by context.

    Args:
        uses: the digest and the profile of each data set, and the tags of its use.
    """
    images: dict[str, RecordedImages] = {}
    for digest, profile, tags in uses:
        if CONTEXT_TAG in tags:
            # Earlier versions did not record the scheme: it is the default.
            scheme = tags.get(SCHEME_TAG, Split.model_fields["scheme"].default)
            images.setdefault(tags[CONTEXT_TAG], RecordedImages(digest, profile, scheme))
    return images


def find_run(runs: Sequence[Run], name: str, uri: str) -> Run:
    """Return the run with that id, unique beginning of an id, name, or ``runs:/`` URI.

    ``latest`` is the training run that was started or resumed last. ``best`` is the run with the highest validation
    accuracy in the experiment of the latest one, on the same validation images.

    Args:
        runs: all runs of a store.
        uri: of the store, for messages.

    Raises:
        RunNotFoundError: no run, or several, have that name; the message lists the candidates.
    """
    name, _ = run_and_model(name)
    runs = sorted(runs, key=started_or_resumed, reverse=True)
    if not runs:
        raise RunNotFoundError(f"there are no runs in {uri} yet; make one with tl train")
    if name == "latest":
        return next((run for run in runs if not is_parent(run)), runs[0])
    if name == "best":
        return _find_best(runs, uri)
    matching = _matching(runs, name)
    if len(matching) == 1:
        return matching[0]
    if matching:
        listed = ", ".join(map(describe_run, matching[:5]))
        raise RunNotFoundError(f"{len(matching)} runs are called {name!r}: {listed}; use the id")
    known = [name for run in runs for name in (run.info.run_name, short_id(run))]
    raise RunNotFoundError(f"no run is called {name!r} in {uri}.{suggest(name, known)}")


def find_removed(removed: Sequence[Run], name: str) -> Run | None:
    """Return the run with that id, unique beginning of an id, or name, if there is exactly one."""
    matching = _matching(removed, run_and_model(name)[0])
    return matching[0] if len(matching) == 1 else None


def _matching(runs: Sequence[Run], name: str) -> list[Run]:
    exact = [run for run in runs if name in (run.info.run_id, run.info.run_name)]
    return exact or [run for run in runs if len(name) >= 3 and run.info.run_id.startswith(name)]


def _find_best(runs: Sequence[Run], uri: str) -> Run:
    validated = [run for run in runs if val_accuracy(run) is not None and dataset_digest(run, "validation")]
    if not validated:
        raise RunNotFoundError(f"no run in {uri} has a validation accuracy yet; give an id or a name")
    # Earlier versions recorded the digests of files by another scheme, so their runs are compared with each other only.
    images = [(run.info.experiment_id, dataset_digest(run, "validation")) for run in validated]
    comparable = [run for run, on in zip(validated, images, strict=True) if on == images[0]]
    # If accuracies are equal, the earliest.
    return max(reversed(comparable), key=lambda run: val_accuracy(run) or 0.0)


def val_accuracy(run: Run) -> float | None:
    """Return the validation accuracy of a run's best epoch, a fraction; None before its end."""
    return Results.of(run.data.metrics).val_accuracy


def run_and_model(name: str) -> tuple[str, str]:
    """Return the run and the path of ``runs:/RUN/PATH``; for any other name, the name and ""."""
    if not name.startswith(RUNS):
        return name, ""
    run, _, path = name.removeprefix(RUNS).strip("/").partition("/")
    return run, path


def is_parent(run: Run) -> bool:
    """Whether a run groups the training runs of a comparison."""
    return PARENT_TAG in run.data.tags


def children_of(runs: Sequence[Run], parent_id: str) -> list[Run]:
    """Return the runs of a comparison with any status, in the order of their start.

    Args:
        runs: all runs of the store, latest first.
    """
    return [run for run in reversed(runs) if run.data.tags.get(CHILD_TAG) == parent_id]


def dataset_digest(run: Run, context: str) -> str | None:
    """Return the digest of a run's images in one context: ``training``, ``validation`` or ``testing``."""
    return run.images[context].digest if context in run.images else None


def recorded_split(run: Run, context: str) -> Split | None:
    """Return the number of a run's images in one context and the beginning of their digest; None if not recorded."""
    images = run.images.get(context)
    if images is None:
        return None
    try:
        count = json.loads(images.profile or "{}")["num_rows"]
        return Split.model_validate({"count": count, "digest": images.digest, "scheme": images.scheme})
    except (ValueError, KeyError, TypeError, RecursionError):
        return None  # recorded by another program


def last_seen(run: Run) -> float:
    """Return when a run ended, or when its process last reported, in seconds since 1970."""
    if run.info.end_time and run.info.status != "RUNNING":
        return run.info.end_time / 1000
    with suppress(ValueError):
        return max(run.info.start_time / 1000, float(run.data.tags.get(HEARTBEAT_TAG, "")))
    return run.info.start_time / 1000


def process_state(run: Run) -> State:
    """Return the state of the process that recorded a run."""
    return state_of(run.data.tags, run.info.start_time / 1000, time.time())


def started_or_resumed(run: Run) -> int:
    """Return when a run was started, or resumed for the last time, in milliseconds since 1970."""
    return max([run.info.start_time, *(end for _, end in read_pauses(run.data.tags))])


def short_id(run: Run) -> str:
    """Return the first characters of a run's id: what people type."""
    return run.info.run_id[:8]


def describe_run(run: Run) -> str:
    """Return the short id and the name of a run, for messages."""
    return f"{short_id(run)} ({run.info.run_name})"

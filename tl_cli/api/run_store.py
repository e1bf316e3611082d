"""Lists recorded runs, shows the epochs of one, and finds the differences between several.

A local store is read without importing MLflow; nothing here imports torch.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from tl_cli.api.observer import Observer
from tl_cli.errors import UsageError, suggest
from tl_cli.tracking.facts import Differences, RunFacts, Status
from tl_cli.tracking.listing import differences, facts_of, with_accuracies, with_curves
from tl_cli.tracking.places import find_moves
from tl_cli.tracking.reader import read_history
from tl_cli.tracking.recorded import Run, RunReader, describe_run, is_parent, short_id
from tl_cli.tracking.sqlite_reader import open_to_read
from tl_cli.training.history import History

SortKey = Literal["started", "val", "test", "time", "name", "model"]
_NUMBERS = {"started": "started", "val": "val_accuracy", "test": "test_accuracy", "time": "seconds"}


@dataclass(frozen=True, slots=True)
class RunFilter:
    """Which runs are listed, and in which order.

    Attributes:
        pattern: part of a name, id, model or data, or a glob.
        experiment: name of an MLflow experiment.
        model: architecture, or a glob.
        data: part of the data's name, or a glob.
        status: of the run.
        tags: ``KEY`` or ``KEY=VALUE``; a run needs all of them.
        since_s: maximum age in seconds.
        sort: latest, best, fastest first; names from a to z.
        reverse: the opposite order.
        limit: maximum number of runs; 0 is all.
        tracking_uri: of the store; None is MLflow's default.
    """

    pattern: str | None = None
    experiment: str | None = None
    model: str | None = None
    data: str | None = None
    status: Status | None = None
    tags: Sequence[str] = ()
    since_s: float | None = None
    sort: SortKey = "started"
    reverse: bool = False
    limit: int = 0
    tracking_uri: str | None = None


@dataclass(frozen=True, slots=True)
class RunList:
    """The listed runs.

    Attributes:
        runs: in the requested order, with their curves.
        total: number of runs that pass the filters.
        filtered: whether the filters exclude any run.
        store: address of the store.
    """

    runs: tuple[RunFacts, ...]
    total: int
    filtered: bool
    store: str

    def to_list(self) -> list[dict[str, object]]:
        """Return plain JSON types, one object per run."""
        return [run.to_dict() for run in self.runs]


@dataclass(frozen=True, slots=True)
class RunDetails:
    """One run with its curves."""

    run: RunFacts
    history: History

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON types."""
        return {**self.run.to_dict(), "by_epoch": [epoch.to_dict() for epoch in self.history.epochs]}


@dataclass(frozen=True, slots=True)
class RunDifferences:
    """The differences between runs, and the settings that are equal in all of them; None if not requested."""

    differences: Differences
    equal: dict[str, str] | None = None

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON types."""
        different = self.differences
        return {
            "runs": [run.to_dict() for run in different.runs],
            "settings": different.settings,
            "made_with": different.made_with,
            "results": different.results,
            **({"alike": self.equal} if self.equal is not None else {}),
        }


def list_runs(request: RunFilter, observer: Observer | None = None) -> RunList:
    """Return the runs of a store that pass the filters.

    Args:
        observer: gets a warning if the store was copied or moved.

    Raises:
        UsageError: the experiment does not exist.
        TrackingError: the store cannot be used.
    """
    observer = observer or Observer()
    store = open_to_read(request.tracking_uri)
    known = store.experiments()
    if request.experiment is not None and request.experiment not in known:
        raise UsageError(
            f"no experiment is called {request.experiment!r} in {store.uri}.{suggest(request.experiment, known)}"
        )
    recorded = store.runs()
    passing = _passing(store, recorded, request)
    if request.sort == "val":
        passing = with_accuracies(store, recorded, passing)
    passing = _sorted(passing, request.sort, reverse=request.reverse)
    shown = with_curves(store, recorded, passing[: request.limit] if request.limit else passing)
    _warn_of_moves(store, observer)
    return RunList(tuple(shown), len(passing), len(passing) < len(recorded), store.uri)


def show_run(name: str, tracking_uri: str | None = None) -> RunDetails:
    """Return a run with all recorded epochs.

    Raises:
        UsageError: it is a comparison, which has no epochs.
        RunNotFoundError: no run, or several, have that name.
        TrackingError: the store cannot be used.
    """
    store = open_to_read(tracking_uri)
    run = store.find(name)
    if is_parent(run):
        raise UsageError(f"{describe_run(run)} is a comparison and has no epochs; see tl compare {short_id(run)}")
    (facts,) = with_curves(store, [run], facts_of(store, [run], store.runs()))
    return RunDetails(facts, read_history(store, run))


def compare_settings(names: Sequence[str], *, equal: bool = False, tracking_uri: str | None = None) -> RunDifferences:
    """Return the settings and results that differ between two or more runs.

    Args:
        equal: return the settings that are equal in all runs, too.

    Raises:
        UsageError: the names are those of a single run.
        RunNotFoundError: no run, or several, have one of the names.
        TrackingError: the store cannot be used.
    """
    store = open_to_read(tracking_uri)
    runs = list({run.info.run_id: run for run in map(store.find, names)}.values())
    if len(runs) < 2:
        raise UsageError(_explain_single(store, names, runs[0]))
    different, equal_settings = differences(store, runs)
    return RunDifferences(different, equal_settings if equal else None)


def _warn_of_moves(store: RunReader, observer: Observer) -> None:
    if store.database is None:
        return
    moves = find_moves(store.database)
    if count := moves.count("runs"):
        observer.warn(
            f"this store was copied or moved: the files of {count:,} {'run' if count == 1 else 'runs'} are recorded "
            f"elsewhere, such as in {moves.moves[0].old}; tl runs relocate --dry-run shows what would change, "
            "tl runs relocate repairs it"
        )


def _explain_single(store: RunReader, names: Sequence[str], run: Run) -> str:
    """Return why a single run cannot be compared, and a command that compares it with the latest of the others."""
    problem = f"{' and '.join(names)} {'are' if len(names) > 1 else 'is'} the run {describe_run(run)}"
    others = [each for each in store.runs() if each.info.run_id != run.info.run_id and not is_parent(each)]
    if not others:
        return f"{problem}, and there is no other; make another one with tl train"
    return f"{problem}; to compare it with another: tl runs diff {short_id(run)} {short_id(others[0])}"


def _passing(store: RunReader, recorded: Sequence[Run], request: RunFilter) -> list[RunFacts]:
    oldest = None if request.since_s is None else time.time() - request.since_s
    pairs = zip(facts_of(store, recorded), recorded, strict=True)
    return [facts for facts, run in pairs if _passes(facts, request, oldest) and _has_tags(run, request.tags)]


def _passes(facts: RunFacts, request: RunFilter, oldest: float | None) -> bool:
    names = (facts.name, facts.run_id, facts.model or "", facts.data or "")
    return (
        request.status in (None, facts.status)
        and (oldest is None or facts.started >= oldest)
        and request.experiment in (None, facts.experiment)
        and (request.pattern is None or any(_matches(name, request.pattern) for name in names))
        and (request.model is None or _matches(facts.model or "", request.model, whole=True))
        and (request.data is None or _matches(facts.data or "", request.data))
    )


def _matches(name: str, pattern: str, *, whole: bool = False) -> bool:
    name, pattern = name.lower(), pattern.lower()
    if set(pattern) & set("*?["):
        return fnmatchcase(name, pattern)
    return name == pattern if whole else pattern in name


def _has_tags(run: Run, required: Sequence[str]) -> bool:
    tags = run.data.tags
    pairs = [pair.partition("=") for pair in required]
    return all(key in tags and (not equals or tags[key] == value) for key, equals, value in pairs)


def _sorted(runs: Sequence[RunFacts], key: SortKey, *, reverse: bool) -> list[RunFacts]:
    """Return runs in order; runs without a value come last in both directions."""
    if key in ("name", "model"):
        return sorted(runs, key=lambda facts: str(getattr(facts, key) or "~").lower(), reverse=reverse)
    # Times in ascending order, everything else in descending order.
    sign = 1 if key == "time" else -1
    known = [(sign * value, facts) for facts in runs if (value := getattr(facts, _NUMBERS[key])) is not None]
    unknown = [facts for facts in runs if getattr(facts, _NUMBERS[key]) is None]
    return [facts for _, facts in sorted(known, key=lambda pair: pair[0], reverse=reverse)] + unknown

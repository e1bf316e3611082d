"""Records a run in MLflow while it trains: parameters, metrics, data, figures and the model."""

import threading
import time
from collections import deque
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import mlflow
from mlflow.entities import Metric
from mlflow.entities import Run as MlflowRun

from tl_cli.contract import DataSpec, ModelCard, SplitName, tl_version
from tl_cli.data.packed_names import Names
from tl_cli.errors import StorageError, TlError, TrackingError, UsageError, first_line
from tl_cli.evaluation.logits import LabelledLogits, save_logits
from tl_cli.evaluation.measure import Measured
from tl_cli.evaluation.scores import EPOCH_KEY, LOSS_KEY, RESULTS, EpochEnded, Results, values_by_key
from tl_cli.models import bundle
from tl_cli.tracking import journal
from tl_cli.tracking.evaluations import EVALUATIONS, NOTE_TAG, TEST_LOGITS, datasets_of
from tl_cli.tracking.journal import JOURNAL, Ending, Item, Journal, hold_lock, read
from tl_cli.tracking.liveness import BEAT_EVERY_S, HEARTBEAT_TAG, add_pause, process_tags
from tl_cli.tracking.logged_model import Naming
from tl_cli.tracking.overview import in_cell, refresh_overview
from tl_cli.tracking.reasons import reason
from tl_cli.tracking.recorded import last_seen
from tl_cli.tracking.store import BATCH, NOT_FOUND, Store, ending, state_folder
from tl_cli.tracking.sync import free_disk, record_items, sync
from tl_cli.training.events import Event, LossSampled
from tl_cli.training.outcome import Outcome
from tl_cli.training.plan import Plan
from tl_cli.training.state import CARD_FILE, CONFIG_FILE, write_toml

_PARAM_LENGTH = 6000
CHANGED_TAG = "tl.images_changed"  # of a run whose images changed while it trained
_RECORDED = (LossSampled, EpochEnded)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Pace:
    """How often a recorder writes, in seconds."""

    journal_s: float = 0.25
    """To the journal: a killed process loses at most this much of its curves, and nothing that a checkpoint covers."""
    send_s: float = 3.0
    """To the store."""
    beat_s: float = BEAT_EVERY_S
    """The heartbeat."""
    last_wait_s: float = 60.0
    """Longest wait for the last points at the end."""


class Recorder:
    """An observer and a context manager: the run ends FINISHED, FAILED or KILLED as the block is left.

    Events are kept in memory, written to the journal on disk a few times per second, and sent by a thread every few
    seconds: training never waits for a server, and steps of a millisecond do not wait for a disk.

    Attributes:
        is_described: whether a resumed run had recorded what ``log_start`` records.
        is_complete: whether the run has ended as FINISHED.
        is_recorded: whether the store has the run; valid after the block.

    Args:
        warn: called once if the store stops responding; training continues.
        clock: seconds since 1970, for the times of points and for when to write them.
        pace: how often to write.
    """

    def __init__(
        self,
        store: Store,
        *,
        experiment_id: str,
        run_name: str | None = None,
        run_id: str | None = None,
        tags: Mapping[str, str] | None = None,
        warn: Callable[[str], None],
        clock: Callable[[], float] = time.time,
        pace: Pace = Pace(),
    ) -> None:
        self._store = store
        self._clock = clock
        self._pace = pace
        self._experiment_id = experiment_id
        self._run_name = run_name
        self._resumed_id = run_id
        self._tags = dict(tags or {})
        self._warn = warn
        self._events: list[tuple[float, LossSampled | EpochEnded]] = []  # with times; not yet in the journal
        self._journaled_at = 0.0
        self._journaling = threading.Lock()
        # Not a queue: that would wake the thread for each point.
        self._points: deque[Metric] = deque()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._send_points, name="tl-recorder", daemon=True)
        self._seen: set[tuple[str, int]] = set()
        self._results: dict[str, float] = {}
        self._warned: set[str] = set()
        self._is_unreachable = False
        self._has_unsent = False  # points or items for sync
        self._is_journaled = True  # whether all points are in the journal
        self._params: frozenset[str] = frozenset()  # already in the store
        self._lock = ExitStack()  # of the journal: keeps other processes from changing the run
        self.is_described = False
        self.is_complete = False
        self.is_recorded = False
        self.run_id = ""
        self.run_name = ""

    def __enter__(self) -> Self:
        with ExitStack() as lock:
            if self._resumed_id:
                # Before anything changes in the store: another process may hold the run.
                path = state_folder(self._experiment_id, self._resumed_id) / JOURNAL
                lock.enter_context(hold_lock(path, timeout_s=0))
            run = self._start()
            try:
                if not self._resumed_id:
                    lock.enter_context(hold_lock(self.folder / JOURNAL))
                self._open_journal(run, lock)
                if self._resumed_id:
                    self._load_recorded()
                self._thread.start()
            except BaseException as error:
                self._end(type(error))
                if isinstance(error, Exception) and not isinstance(error, TlError):
                    raise TrackingError(f"cannot start a run: {reason(error)}") from error
                raise
            self._lock = lock.pop_all()
        return self

    def _start(self) -> MlflowRun:
        """Create the run in the store, or reopen it there."""
        now = time.time()
        tags = {"tl.version": tl_version(), **process_tags(), HEARTBEAT_TAG: f"{now:.0f}", **self._tags}
        try:
            if self._resumed_id and (resumed := self._store.run(self._resumed_id)) is not None:
                tags |= add_pause(resumed.data.tags, round(1000 * last_seen(resumed)), round(1000 * now))
            run = mlflow.start_run(
                run_id=self._resumed_id,
                experiment_id=None if self._resumed_id else self._experiment_id,
                run_name=self._run_name,
                tags=tags,
            )
        except Exception as error:
            raise TrackingError(f"cannot start a run: {reason(error)}") from error
        self.run_id, self.run_name = run.info.run_id, run.info.run_name
        self._experiment_id = run.info.experiment_id
        return run

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._close(kind)

    def _close(self, kind: type[BaseException] | None) -> None:
        try:
            try:
                self.write_journal()
            except StorageError:
                self._is_journaled = False
                self._points.extend(self._new_points())  # the store may have room
            self._closing.set()
            self._thread.join(timeout=self._pace.last_wait_s)
            # A slow store must not keep the command from ending.
            self._has_unsent |= self._thread.is_alive()
            with suppress(StorageError):
                self._journal.end(Ending(ending(kind), int(time.time() * 1000)))
        finally:
            self._end(kind)
            problem = self._check_recorded()
            self.is_recorded = not problem
        if self._has_unsent and kind is None and not self._thread.is_alive():
            # The store may respond again.
            synced = self._try(lambda: sync(self._store, self._store.require_run(self.run_id)))
            self._has_unsent = synced is None or bool(synced.failed)
        if not self.is_recorded:
            self._warn(
                f"the tracking store {self._store.uri} does not have the run {self.run_id[:8]} ({problem}); "
                f"everything is in {self.folder}; tl runs sync {self.run_id[:8]} records it again"
            )
            return
        if not self._has_unsent:
            self._try(lambda: refresh_overview(self._store, self._experiment_id))
            self._try(lambda: free_disk(self._store, self.run_id, self.folder))
            return
        self._warn(
            f"some data could not be sent to the tracking store; it is in {self.folder / JOURNAL}; to send it later: "
            f"tl runs sync {self.run_id[:8]}" + (f" --tracking-uri {self._store.uri}" if self._store.is_remote else "")
        )

    def __call__(self, event: Event) -> None:
        """Keep the numbers of a sampled step or of an epoch.

        Raises:
            StorageError: the disk of the journal is full.
        """
        # Called after each step, so its cost limits the smallest models: see the benchmark ``telling``.
        if isinstance(event, _RECORDED):
            now = self._clock()
            self._events.append((now, event))
            if now - self._journaled_at >= self._pace.journal_s:
                self.write_journal()

    def write_journal(self) -> None:
        """Write the events so far to the journal: a resumed run does not repeat what a checkpoint covers.

        Raises:
            StorageError: the disk of the journal is full.
        """
        with self._journaling:
            self._journaled_at = self._clock()
            count = len(self._events)
            points = self._new_points(count)
            self._journal.add(points)
            self._points.extend(points)
            del self._events[:count]

    @property
    def folder(self) -> Path:
        """Folder of the files on this machine that resuming the run needs."""
        return state_folder(self._experiment_id, self.run_id)

    def log_start(self, plan: Plan, command: str, pictures: Sequence[Path]) -> None:
        """Record what the run will do: each effective setting, the data, the config file, one batch as an image."""
        config_file = self.folder / CONFIG_FILE
        if not config_file.exists():
            write_toml(config_file, plan.config)
        settings: dict[str, object] = {
            **plan.config.model_dump(),
            "device": plan.machine.device.type,
            "weights": plan.classifier.weights.name,
            "head_start": plan.classifier.head_start.reason if plan.classifier.head_start else "random",
            "preprocessing": plan.classifier.preprocessing.model_dump_json(),
            "num_classes": len(plan.data.classes),
        }
        self._log_settings(settings, plan.config.model, plan.data.spec.source, command)
        for path in (config_file, *pictures):
            self.log(Item("file", str(path), ""))
        self.log(Item("tag", NOTE_TAG, _note(plan, self.run_id, command, None)))

    def log_end(
        self, plan: Plan, outcome: Outcome, command: str, curves: Sequence[Path], best: Path, register: str | None
    ) -> None:
        """Record the results: numbers, curves, test logits, the model and the note.

        Args:
            best: folder of the best saved model.
            register: name in the model registry, or None.
        """
        for path in curves:
            self.log(Item("file", str(path), "curves"))
        if outcome.test_logits is not None and outcome.test_ids is not None:
            self._log_test_logits(outcome.test_logits, outcome.test_ids, plan.data.classes)
        model_id = self._log_model(plan, best, register)
        self._queue_results(plan.data.spec, _results(outcome), model_id, changed=outcome.changed)
        if outcome.changes:
            self.log(Item("tag", CHANGED_TAG, "; ".join(outcome.changes)))
        self.log(Item("tag", NOTE_TAG, _note(plan, self.run_id, command, outcome)))

    def log_unfinished(self, plan: Plan, card: ModelCard, best: Path) -> None:
        """Record the best model of a run that ends early.

        Args:
            card: of that model.
        """
        results = Results(val_accuracy=card.val_accuracy or 0.0, best_epoch=card.epoch)
        self._queue_results(plan.data.spec, results, self._log_model(plan, best, None))

    def log_soup(
        self,
        card: ModelCard,
        folder: Path,
        results: Results,
        settings: Mapping[str, object],
        parents: Sequence[tuple[str, str, str, float]],
        command: str,
        tested: Measured | None,
    ) -> None:
        """Record a model that is the mean of others.

        Args:
            folder: of the saved model.
            settings: those that the runs have in common.
            parents: id, experiment, name and validation accuracy of each run.
            tested: logits of the test images.
        """
        bundle.write_card(self.folder, card, CARD_FILE)
        facts = {"preprocessing": card.preprocessing.model_dump_json(), "num_classes": len(card.classes)}
        self._log_settings({**settings, **facts}, card.architecture, card.data.source, command)
        if tested is not None:
            self._log_test_logits(tested.labelled, tested.images.ids, card.classes)
        params = {"model": card.architecture, "data": card.data.source, "recipe": card.recipe}
        model_id = self.log(Item("model", str(folder), Naming(self.run_name, params).to_json()))
        self._queue_results(card.data, results, model_id)
        links = [
            f"- [{in_cell(name)}](#/experiments/{experiment}/runs/{run_id}), {accuracy:.2%} on validation images"
            for run_id, experiment, name, accuracy in parents
        ]
        lines = [", ".join(_scores(results)), "", f"`{command}`", "", "Mean of the weights of:", "", *links]
        self.log(Item("tag", NOTE_TAG, "\n".join([*lines, "", _LAST_LINE.format(self.run_id[:8])])))

    def _log_settings(self, settings: Mapping[str, object], model: str, source: str, command: str) -> None:
        """Record the settings, what lists of runs show of them, and the data sets of the run's card."""
        # MLflow's parameters cannot be changed; an interrupted run may have recorded some.
        new = {key: str(value)[:_PARAM_LENGTH] for key, value in settings.items() if key not in self._params}
        tags = {"tl.model": model, "tl.data": source, "tl.command": command}
        self.log(*(Item("param", key, value) for key, value in new.items()))
        self.log(*(Item("tag", key, value) for key, value in tags.items()))
        self.log(Item("data", str(self.folder / CARD_FILE), ""))

    def _log_test_logits(self, labelled: LabelledLogits, ids: Names, classes: tuple[str, ...]) -> None:
        path = self.folder / TEST_LOGITS
        save_logits(path, labelled, ids, classes)
        self.log(Item("file", str(path), EVALUATIONS))

    def log(self, *items: Item) -> str | None:
        """Record tags, parameters, files, a model or the data sets; keep them for ``tl runs sync`` if the store fails.

        Returns:
            The id of a recorded model.
        """
        return self._try(lambda: record_items(self._store, self.run_id, items), *items)

    def _log_model(self, plan: Plan, folder: Path, register: str | None) -> str | None:
        """Record a saved model; return its id, or None if the store failed."""
        settings = plan.config.model_dump()
        params = {key: str(settings[key])[:500] for key in ("model", "data", "recipe", "epochs", "input_size")}
        return self.log(Item("model", str(folder), Naming(plan.name, params, register).to_json()))

    def _new_points(self, count: int | None = None) -> list[Metric]:
        # A resumed run repeats steps that were recorded already, with equal values.
        return [
            Metric(key, float(value), int(1000 * at), event.step, run_id=self.run_id)
            for at, event in self._events[:count]
            for key, value in _values(event).items()
            if (key, event.step) not in self._seen
        ]

    def _queue_results(
        self, spec: DataSpec, results: Results, model_id: str | None, changed: Container[SplitName] = ()
    ) -> None:
        """Queue the numbers of the whole run. Without a step, MLflow draws such numbers of several runs as bars.

        A resumed run replaces them.

        Args:
            changed: splits whose images changed during training: a number must not be linked to the digest of other
                images.
        """
        datasets = datasets_of(spec)
        now = int(time.time() * 1000)
        points = []
        for score in RESULTS.values():
            value = values_by_key(results).get(score.key)
            if value is None or value == self._results.get(score.key):
                continue  # recorded before an interruption
            images = datasets[score.measured_on] if score.measured_on and score.measured_on not in changed else None
            name, digest = (images.name, images.digest) if images else (None, None)
            points.append(Metric(score.key, float(value), now, 0, model_id, name, digest, self.run_id))
        self._journal.add(points)
        self._points.extend(points)

    def _send_points(self) -> None:
        unsent: list[Metric] = []
        closed = False
        last_beat = time.monotonic()
        while not closed:
            closed = self._closing.wait(self._pace.send_s)
            if not closed and time.monotonic() - last_beat >= self._pace.beat_s:
                last_beat = time.monotonic()
                # On other machines, only this distinguishes a running process from a killed one.
                self._try(lambda: self._store.beat(self.run_id))
            with suppress(StorageError):  # the training thread raises the same error
                self.write_journal()
            while self._points:
                unsent.append(self._points.popleft())
            unsent = self._send(unsent)
        self._has_unsent |= bool(unsent)
        if unsent and not self._is_journaled:
            self._warn(
                f"{len(unsent)} points of the curves are lost: the disk is full and the tracking store does not answer"
            )

    def _send(self, points: list[Metric]) -> list[Metric]:
        """Send points; return those that could not be sent, to try again later."""
        while points:
            try:
                self._store.client.log_batch(self.run_id, metrics=points[:BATCH])
            except Exception as error:  # an invalid response may raise anything in MLflow's client
                self._warn_once(error)
                return points
            self._is_unreachable = False
            points = points[BATCH:]
        return points

    def _open_journal(self, run: MlflowRun, lock: ExitStack) -> None:
        tags = {
            **run.data.tags,
            journal.NAME_TAG: self.run_name,
            journal.STARTED_TAG: str(run.info.start_time),
            journal.STORE_TAG: self._store.uri,
            journal.EXPERIMENT_TAG: self._store.client.get_experiment(self._experiment_id).name,
        }
        path = self.folder / JOURNAL
        self._journal = lock.enter_context(Journal(path))
        self._record = lock.enter_context(Journal(path.with_name(journal.RECORD)))
        self._record.add_items(Item("tag", key, value) for key, value in tags.items())

    def _end(self, kind: type[BaseException] | None) -> None:
        self.is_complete = kind is None

        def end() -> bool:
            mlflow.end_run(ending(kind))
            run = self._store.client.get_run(self.run_id).info
            if run.end_time < run.start_time:  # the clock was set back
                self._store.client.set_terminated(self.run_id, run.status, end_time=run.start_time)
            return True

        if not self._try(end):
            self._has_unsent = True
            _drop_active_run(self.run_id)

    def _check_recorded(self) -> str:
        """Return why the store does not have the run; "" if it has, or is a server that may respond again."""
        if self._is_unreachable and not self._store.is_reachable():
            return ""
        try:
            self._store.check_has_run(self.run_id)
        except Exception as error:  # an invalid response may raise anything in MLflow's client
            is_missing = getattr(error, "error_code", None) in NOT_FOUND
            return "" if self._store.is_remote and not is_missing else reason(error)
        return ""

    def _load_recorded(self) -> None:
        """Read which metrics and steps this run has recorded already, here or in the store."""
        points = read(self.folder / JOURNAL, self.run_id).points
        recorded = self._store.client.get_run(self.run_id).data
        # ``log_start`` writes the note last.
        self.is_described = _LAST_LINE.format(self.run_id[:8]) in recorded.tags.get(NOTE_TAG, "")
        self._params = frozenset(recorded.params)
        for key in recorded.metrics:
            points += self._store.client.get_metric_history(self.run_id, key)
        self._seen = {(point.key, point.step) for point in points}
        latest = sorted((point for point in points if point.step == 0), key=lambda point: point.timestamp)
        self._results = {point.key: point.value for point in latest}

    def _try(self, call: Callable[[], T], *items: Item) -> T | None:
        """Call a function; turn errors of the store into warnings, so that training continues.

        Args:
            items: kept for ``tl runs sync`` if the store fails.
        """
        with suppress(StorageError):
            self._record.add_items(items)
        # Each call to a server that does not respond waits for its whole timeout.
        if not self._is_unreachable or self._store.is_reachable():
            try:
                return call()
            except UsageError as error:  # the file or model to record is damaged
                self._warn(f"not recorded: {first_line(error)}")
                return None
            except Exception as error:  # an invalid response may raise anything in MLflow's client
                self._warn_once(error)
        if items:
            self._has_unsent = True
            with suppress(StorageError):
                self._journal.add_items(items)
        return None

    def _warn_once(self, error: Exception) -> None:
        self._is_unreachable = True
        message = f"the tracking store {self._store.uri} failed: {reason(error)}"
        if message not in self._warned:
            self._warned.add(message)
            self._warn(message)


def _drop_active_run(run_id: str) -> None:
    """Remove a run that could not be ended from MLflow's active runs: at exit MLflow would record it as FINISHED."""
    fluent = mlflow.tracking.fluent
    with suppress(AttributeError, KeyError):
        fluent._active_run_stack.get().clear()
        fluent.run_id_to_system_metrics_monitor.pop(run_id).finish()


def _values(event: LossSampled | EpochEnded) -> dict[str, float]:
    """Return the numbers of an event by their names in MLflow."""
    if isinstance(event, LossSampled):
        return {LOSS_KEY: event.loss}
    return {EPOCH_KEY: event.epoch, **values_by_key(event)}


def _results(outcome: Outcome) -> Results:
    counters, test, clean_train = outcome.counters, outcome.test, outcome.clean_train
    return Results(
        val_accuracy=counters.best_val_accuracy,
        val_loss=counters.best_val_loss,
        best_epoch=counters.best_epoch,
        test_accuracy=test.accuracy.value if test else None,
        test_loss=test.loss.value if test else None,
        clean_train_accuracy=clean_train.accuracy.value if clean_train else None,
        clean_train_loss=clean_train.loss.value if clean_train else None,
        seconds=counters.seconds,
    )


# `set_note` and `_load_recorded` recognise the note by this line, in records of earlier versions too.
_LAST_LINE = "Look again: `tl eval {0}`, `tl plot --terminal {0}`"
_MEASURED_ON = {"test_accuracy": "test", "val_accuracy": "validation"}
_NOTED = ("test_accuracy", "val_accuracy", "clean_train_accuracy", "best_epoch")


def _scores(results: Results) -> list[str]:
    """Return the accuracies in words, the most important one in bold."""
    known = {name: getattr(results, name) for name in _MEASURED_ON}
    scores = [
        f"{RESULTS[name].text(value)} on {_MEASURED_ON[name]} images"
        for name, value in known.items()
        if value is not None
    ]
    return [f"**{scores[0]}**", *scores[1:]]


def _note(plan: Plan, run_id: str, command: str, outcome: Outcome | None) -> str:
    """Return the run's description, Markdown."""
    lines = [f"{plan.config.model} ({plan.classifier.weights.name}) on `{plan.data.spec.source}`", "", f"`{command}`"]
    if outcome is not None:
        results = _results(outcome)
        texts = {name: RESULTS[name].text(value) for name in _NOTED if (value := getattr(results, name)) is not None}
        # MLflow shows only the first line of a long note.
        lines = [", ".join(_scores(results)), "", *lines]
        lines += [line for warning in outcome.warnings for line in ("", f"**Warning:** {warning.splitlines()[0]}")]
        texts["best_epoch"] += f" of {outcome.counters.epoch}"
        if outcome.test is not None:
            accuracy = outcome.test.accuracy
            interval = f"95% interval {100 * accuracy.low:.2f} to {accuracy.high:.2%}, {accuracy.count:,} images"
            mirrored = ", mirror images averaged" if plan.config.tta == "flip" else ""
            texts["test_accuracy"] += f" ({interval}{mirrored})"
        lines += ["", "| result | |", "|---|---|"]
        lines += [f"| {RESULTS[name].title} | {text} |" for name, text in texts.items()]
    return "\n".join([*lines, "", _LAST_LINE.format(run_id[:8])])

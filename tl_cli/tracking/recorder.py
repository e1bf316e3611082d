"""Records a run in MLflow while it trains: parameters, metrics, data, figures and the model."""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import mlflow
from mlflow.entities import Dataset, Metric, Param, Run

from tl_cli.contract import DataSpec, ModelCard, SplitName, tl_version
from tl_cli.errors import StorageError, TlError, TrackingError, UsageError, first_line
from tl_cli.evaluation.logits import save_logits
from tl_cli.evaluation.scores import EPOCH_SCORES, EpochEnded
from tl_cli.tracking.evaluations import EVALUATIONS, NOTE_TAG, TEST_LOGITS, dataset_inputs, datasets_of, set_note
from tl_cli.tracking.journal import (
    EXPERIMENT_TAG,
    JOURNAL,
    NAME_TAG,
    RECORD,
    STARTED_TAG,
    STORE_TAG,
    Ending,
    Journal,
    Left,
    alone_with,
    read,
)
from tl_cli.tracking.liveness import BEAT_EVERY_S, HEARTBEAT_TAG, identity, with_pause
from tl_cli.tracking.logged_model import Naming, log_model
from tl_cli.tracking.overview import refresh_overview
from tl_cli.tracking.reasons import reason
from tl_cli.tracking.recorded import last_seen
from tl_cli.tracking.store import NOT_THERE, Store, ending, state_folder
from tl_cli.tracking.sync import free_disk, sync
from tl_cli.training.events import Event, LossSampled
from tl_cli.training.outcome import Outcome
from tl_cli.training.plan import Plan
from tl_cli.training.state import CARD_FILE, CONFIG_FILE, write_toml

_FLUSH_EVERY_S = 3.0
_SETTLE_EVERY_S = 0.25  # a killed process loses no more of its curves, and nothing that a checkpoint covers
_BATCH = 1000  # MLflow's limit per request
_PARAM_LENGTH = 6000
_LAST_WAIT_S = 60.0  # at the end, for the last points
CHANGED_TAG = "tl.images_changed"  # for a run whose images changed while it trained
_RECORDED = (LossSampled, EpochEnded)
T = TypeVar("T")


class Recorder:
    """An observer and a context manager: the run ends FINISHED, FAILED or KILLED as the block is left.

    Events are kept in memory, written to the journal on disk a few times per second, and sent by a thread every few
    seconds: training never waits for a server, and steps of a millisecond do not wait for a disk.

    Attributes:
        is_described: whether an interrupted run already recorded what ``log_start`` records.
        is_complete: whether the run has ended as FINISHED.
        is_recorded: whether the store has the run; valid after the block.

    Args:
        warn: called once when the store stops answering; training continues.
        clock: seconds since 1970, for the times of points and for when to write them.
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
    ) -> None:
        self._store = store
        self._clock = clock
        self._experiment_id = experiment_id
        self._run_name = run_name
        self._resumed_id = run_id
        self._tags = dict(tags or {})
        self._warn = warn
        self._events: list[tuple[float, LossSampled | EpochEnded]] = []  # with times; not yet in the journal
        self._settled_at = 0.0
        self._settling = threading.Lock()
        # Not a queue, which would wake the thread at each point.
        self._points: deque[Metric] = deque()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._write, name="tl-recorder", daemon=True)
        self._seen: set[tuple[str, int]] = set()
        self._results: dict[str, float] = {}
        self._warned: set[str] = set()
        self._is_away = False
        self._has_left = False  # work for sync
        self._is_kept = True  # whether all points are in the journal
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
                journal = state_folder(self._experiment_id, self._resumed_id) / JOURNAL
                lock.enter_context(alone_with(journal, patience_s=0))
            run = self._start()
            try:
                if not self._resumed_id:
                    lock.enter_context(alone_with(self.folder / JOURNAL))
                self._open_journal(run, lock)
                if self._resumed_id:
                    self._recall()
                self._thread.start()
            except BaseException as error:
                self._end(type(error))
                if isinstance(error, Exception) and not isinstance(error, TlError):
                    raise TrackingError(f"cannot start a run: {reason(error)}") from error
                raise
            self._lock = lock.pop_all()
        return self

    def _start(self) -> Run:
        """Create the run in the store, or reopen it there."""
        tags = {"tl.version": tl_version(), **identity(), HEARTBEAT_TAG: f"{time.time():.0f}", **self._tags}
        try:
            if self._resumed_id:
                tags |= self._pause(self._resumed_id)
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
                self.settle()
            except StorageError:
                self._is_kept = False
                self._points.extend(self._new_points())  # the store may have room
            self._closing.set()
            self._thread.join(timeout=_LAST_WAIT_S)
            # A slow store must not keep the command from ending.
            self._has_left |= self._thread.is_alive()
            with suppress(StorageError):
                self._journal.end(Ending(ending(kind), int(time.time() * 1000)))
        finally:
            self._end(kind)
            self._problem = self._lost()
            self.is_recorded = not self._problem
        if self._has_left and kind is None and not self._thread.is_alive():
            # The store may answer again.
            done = self._try(lambda: sync(self._store, self._store.client.get_run(self.run_id)))
            self._has_left = done is None or bool(done.failed)
        if not self.is_recorded:
            self._warn(
                f"the tracking store {self._store.uri} does not have the run {self.run_id[:8]} ({self._problem}); "
                f"everything is in {self.folder}; tl runs sync {self.run_id[:8]} records it again"
            )
            return
        if not self._has_left:
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
            if now - self._settled_at >= _SETTLE_EVERY_S:
                self.settle()

    def settle(self) -> None:
        """Write the events so far to the journal, as what a checkpoint covers is never measured again.

        Raises:
            StorageError: the disk of the journal is full.
        """
        with self._settling:
            self._settled_at = self._clock()
            count = len(self._events)
            points = self._new_points(count)
            self._journal.add(points)
            self._points.extend(points)
            del self._events[:count]

    @property
    def folder(self) -> Path:
        """Where this machine keeps what resuming the run needs."""
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
        # MLflow's parameters cannot be changed; an interrupted run may have recorded some.
        params = [Param(key, str(value)[:_PARAM_LENGTH]) for key, value in settings.items() if key not in self._params]
        self._try(
            lambda: self._store.client.log_batch(self.run_id, params=params),
            *(Left("param", param.key, param.value) for param in params),
        )
        tags = {"tl.model": plan.config.model, "tl.data": plan.data.spec.source, "tl.command": command}
        self._try(lambda: mlflow.set_tags(tags), *(Left("tag", key, value) for key, value in tags.items()))
        self._log_data(plan.data.spec)
        for path in (config_file, *pictures):
            self._log_file(path)
        self._set_note(_note(plan, self.run_id, command, None))

    def log_end(
        self, plan: Plan, outcome: Outcome, command: str, curves: Sequence[Path], best: Path, register: str | None
    ) -> None:
        """Record the results: numbers, curves, test logits, the model and the note.

        Args:
            best: folder of the best saved model.
            register: name in the model registry, or None.
        """
        counters = outcome.counters
        results: dict[str, tuple[float, SplitName | None]] = {
            "best/val_accuracy": (counters.best_val_accuracy, "val"),
            "best/val_loss": (counters.best_val_loss, "val"),
            "best/epoch": (counters.best_epoch, None),
            "time/train_seconds": (counters.seconds, None),
        }
        if outcome.clean_train is not None:
            results["clean_train/accuracy"] = (outcome.clean_train.accuracy.value, "train")
            results["clean_train/loss"] = (outcome.clean_train.loss.value, "train")
        if outcome.test is not None:
            results["test/accuracy"] = (outcome.test.accuracy.value, "test")
            results["test/loss"] = (outcome.test.loss.value, "test")
        for path in curves:
            self._log_file(path, "curves")
        if outcome.test_logits is not None and outcome.test_ids is not None:
            logits = self.folder / TEST_LOGITS
            save_logits(logits, outcome.test_logits, outcome.test_ids, plan.data.classes)
            self._log_file(logits, EVALUATIONS)
        model_id = self._log_model(plan, best, register)
        datasets = datasets_of(plan.data.spec)
        for key, (value, part) in results.items():
            # A number must not be linked to the digest of images that it was not measured on.
            measured_on = datasets[part] if part and part not in outcome.changed else None
            self._put_result(key, value, model_id, measured_on)
        if outcome.changes:
            changes = "; ".join(outcome.changes)
            self._try(
                lambda: self._store.client.set_tag(self.run_id, CHANGED_TAG, changes), Left("tag", CHANGED_TAG, changes)
            )
        self._set_note(_note(plan, self.run_id, command, outcome))

    def log_unfinished(self, plan: Plan, card: ModelCard, best: Path) -> None:
        """Record the best model of a run that ends early.

        Args:
            card: of that model.
        """
        model_id, measured_on = self._log_model(plan, best, None), datasets_of(plan.data.spec)["val"]
        self._put_result("best/val_accuracy", card.val_accuracy or 0.0, model_id, measured_on)
        self._put_result("best/epoch", card.epoch, model_id, None)

    def _log_data(self, spec: DataSpec) -> None:
        self._try(
            lambda: self._store.client.log_inputs(self.run_id, dataset_inputs(spec)),
            Left("data", str(self.folder / CARD_FILE), ""),
        )

    def _log_file(self, path: Path, folder: str | None = None) -> None:
        self._try(
            lambda: self._store.client.log_artifact(self.run_id, str(path), folder),
            Left("file", str(path), folder or ""),
        )

    def _set_note(self, text: str) -> None:
        self._try(lambda: set_note(self._store, self.run_id, text), Left("tag", NOTE_TAG, text))

    def _log_model(self, plan: Plan, folder: Path, register: str | None) -> str | None:
        """Record a saved model; return its id, or None if the store failed."""
        settings = plan.config.model_dump()
        params = {key: str(settings[key])[:500] for key in ("model", "data", "recipe", "epochs", "input_size")}
        naming = Naming(plan.name, params, register)
        return self._try(lambda: log_model(folder, naming), Left("model", str(folder), naming.to_json()))

    def _new_points(self, count: int | None = None) -> list[Metric]:
        # A resumed run repeats steps that were recorded already, with equal values.
        return [
            Metric(key, float(value), int(1000 * at), event.step, run_id=self.run_id)
            for at, event in self._events[:count]
            for key, value in _values(event).items()
            if (key, event.step) not in self._seen
        ]

    def _put_result(self, key: str, value: float, model_id: str | None, measured_on: Dataset | None) -> None:
        """Queue a number of the whole run. Without a step, MLflow draws such numbers of several runs as bars.

        A resumed run replaces it.
        """
        if self._results.get(key) == value:
            return  # recorded before an interruption
        name, digest = (measured_on.name, measured_on.digest) if measured_on else (None, None)
        point = Metric(key, float(value), int(time.time() * 1000), 0, model_id, name, digest, self.run_id)
        self._journal.add([point])
        self._points.append(point)

    def _write(self) -> None:
        waiting: list[Metric] = []
        closed = False
        beaten = time.monotonic()
        while not closed:
            closed = self._closing.wait(_FLUSH_EVERY_S)
            if not closed and time.monotonic() - beaten >= BEAT_EVERY_S:
                beaten = time.monotonic()
                self._beat()
            with suppress(StorageError):  # the training thread raises the same error
                self.settle()
            while self._points:
                waiting.append(self._points.popleft())
            waiting = self._flush(waiting)
        self._has_left |= bool(waiting)
        if waiting and not self._is_kept:
            self._warn(
                f"{len(waiting)} points of the curves are lost: the disk is full and the tracking store does not answer"
            )

    def _flush(self, points: list[Metric]) -> list[Metric]:
        """Send points; return those that could not be sent, to try again later."""
        while points:
            try:
                self._store.client.log_batch(self.run_id, metrics=points[:_BATCH])
            except Exception as error:  # a broken answer may raise anything in MLflow's client
                self._warn_once(error)
                return points
            self._is_away = False
            points = points[_BATCH:]
        return points

    def _open_journal(self, run: Run, lock: ExitStack) -> None:
        tags = dict(run.data.tags)
        tags |= {NAME_TAG: self.run_name, STARTED_TAG: str(run.info.start_time), STORE_TAG: self._store.uri}
        tags[EXPERIMENT_TAG] = self._store.client.get_experiment(self._experiment_id).name
        path = self.folder / JOURNAL
        self._journal = lock.enter_context(Journal(path))
        self._record = lock.enter_context(Journal(path.with_name(RECORD)))
        self._record.leave(Left("tag", key, value) for key, value in tags.items())

    def _end(self, kind: type[BaseException] | None) -> None:
        self.is_complete = kind is None

        def end() -> bool:
            mlflow.end_run(ending(kind))
            run = self._store.client.get_run(self.run_id).info
            if run.end_time < run.start_time:  # the clock was set back
                self._store.client.set_terminated(self.run_id, run.status, end_time=run.start_time)
            return True

        if not self._try(end):
            self._has_left = True
            _let_go(self.run_id)

    def _lost(self) -> str:
        """Return why the store does not have the run; "" if it has, or is a server that may answer again."""
        if self._is_away and not self._store.answers():
            return ""
        try:
            self._store.check_has(self.run_id)
        except Exception as error:  # a broken answer may raise anything in MLflow's client
            is_gone = getattr(error, "error_code", None) in NOT_THERE
            return "" if self._store.is_remote and not is_gone else reason(error)
        return ""

    def _pause(self, run_id: str) -> dict[str, str]:
        run = self._store.client.get_run(run_id)
        return with_pause(run.data.tags, round(1000 * last_seen(run)), round(1000 * time.time()))

    def _beat(self) -> None:
        # On other machines, only this distinguishes a running process from a killed one.
        self._try(lambda: self._store.client.set_tag(self.run_id, HEARTBEAT_TAG, f"{time.time():.0f}"))

    def _recall(self) -> None:
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

    def _try(self, call: Callable[[], T], *left: Left) -> T | None:
        """Call a function; turn a failing store into a warning, as training must not fail for it.

        Args:
            left: the work for ``tl runs sync`` if the store fails.
        """
        with suppress(StorageError):
            self._record.leave(left)
        # Each call to a server that does not answer waits for its whole timeout.
        if not self._is_away or self._store.answers():
            try:
                return call()
            except UsageError as error:  # the file or model to record is damaged
                self._warn(f"not recorded: {first_line(error)}")
                return None
            except Exception as error:  # a broken answer may raise anything in MLflow's client
                self._warn_once(error)
        if left:
            self._has_left = True
            with suppress(StorageError):
                self._journal.leave(left)
        return None

    def _warn_once(self, error: Exception) -> None:
        self._is_away = True
        message = f"the tracking store {self._store.uri} failed: {reason(error)}"
        if message not in self._warned:
            self._warned.add(message)
            self._warn(message)


def _let_go(run_id: str) -> None:
    """Make MLflow forget a run that it could not end: at exit it would try again, with status FINISHED."""
    fluent = mlflow.tracking.fluent
    with suppress(AttributeError, KeyError):
        fluent._active_run_stack.get().clear()
        fluent.run_id_to_system_metrics_monitor.pop(run_id).finish()


def _values(event: LossSampled | EpochEnded) -> dict[str, float]:
    """Return the numbers of an event by their names in MLflow."""
    if isinstance(event, LossSampled):
        return {"step/loss": event.loss}
    scores = {EPOCH_SCORES[name].key: value for name, value in event.scores().items() if value is not None}
    return {"epoch": event.epoch, **scores}


# Also the mark by which `set_note` and `_recall` recognise the note, in records of earlier versions too.
_LAST_LINE = "Look again: `tl eval {0}`, `tl plot --terminal {0}`"


def _note(plan: Plan, run_id: str, command: str, outcome: Outcome | None) -> str:
    """Return the run's description, Markdown."""
    source = plan.data.spec.source
    lines = []
    if outcome is not None:
        # MLflow shows only the first line of a long note.
        validated = f"{outcome.counters.best_val_accuracy:.2%} on validation images"
        tested = (
            f"**{outcome.test.accuracy.value:.2%} on test images**, {validated}" if outcome.test else f"**{validated}**"
        )
        lines += [tested, ""]
    lines += [f"{plan.config.model} ({plan.classifier.weights.name}) on `{source}`", "", f"`{command}`"]
    if outcome is not None:
        lines += [line for warning in outcome.warnings for line in ("", f"**Warning:** {warning.splitlines()[0]}")]
        lines += ["", "| result | |", "|---|---|"]
        if outcome.test is not None:
            accuracy = outcome.test.accuracy
            interval = f"95% interval {100 * accuracy.low:.2f} to {accuracy.high:.2%}, {accuracy.count:,} images"
            lines.append(f"| test accuracy | {accuracy.value:.2%} ({interval}) |")
        lines.append(f"| validation accuracy | {outcome.counters.best_val_accuracy:.2%} |")
        if outcome.clean_train is not None:
            lines.append(f"| train accuracy (eval mode, no augmentation) | {outcome.clean_train.accuracy.value:.2%} |")
        lines.append(f"| best epoch | {outcome.counters.best_epoch} of {outcome.counters.epoch} |")
    lines += ["", _LAST_LINE.format(run_id[:8])]
    return "\n".join(lines)

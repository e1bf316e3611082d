"""Train a model, or forecast a training: a new run or a resumed one, recorded in MLflow."""

import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from tl_cli.api import resuming
from tl_cli.api.observer import Observer
from tl_cli.api.warm_start import with_model_of_weights, with_saved_weights
from tl_cli.contract import DataSpec
from tl_cli.errors import DivergedError, Interrupted, StorageError, uri_flag
from tl_cli.evaluation.logits import mirror_doubt
from tl_cli.io.download import Progress
from tl_cli.models.zoo import registry
from tl_cli.tracking.destination import find_destination
from tl_cli.tracking.overview import view_url
from tl_cli.tracking.ownership import lock_run
from tl_cli.tracking.reader import read_history
from tl_cli.tracking.recorder import Recorder
from tl_cli.tracking.store import Store, open_store, state_folder
from tl_cli.training import events
from tl_cli.training.conditions import random_backbone
from tl_cli.training.config import Given, Settings, read_toml, values_of
from tl_cli.training.fit import fit
from tl_cli.training.forecast import Estimate, estimate
from tl_cli.training.history import History
from tl_cli.training.outcome import Outcome, conclude
from tl_cli.training.plan import Plan, ToFetch, foresee, gather, new_state, to_fetch
from tl_cli.training.resolve import Resolved
from tl_cli.training.state import BEST_FOLDER, Every, Saver, TrainState
from tl_cli.training.time_plan import is_laid_out, lay_out

_SHEET_IMAGES = 64


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """A training to run.

    Attributes:
        settings: settings that override those of the config file and of the recipe.
        config: TOML file with settings by name.
        resume: run to resume: id, name or ``latest``; its own settings are used.
        run_name: name of the new run; None: from model and data.
        experiment: MLflow experiment; None: MLFLOW_EXPERIMENT_NAME, else ``tl``.
        tags: tags of the run.
        register: name in the model registry under which the model is registered.
        tracking_uri: MLflow store or server; None: MLFLOW_TRACKING_URI, else ``./mlflow.db``.
        command: recorded as the command that started the run.
        started: ``time.monotonic()`` at the start of the command; the forecast counts from there.
    """

    settings: Settings = field(default_factory=Settings)
    config: Path | None = None
    resume: str | None = None
    run_name: str | None = None
    experiment: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    register: str | None = None
    tracking_uri: str | None = None
    command: str = "tl_cli.api.training_run.train"
    started: float = field(default_factory=time.monotonic)


class TrainObserver(Observer):
    """What a training reports; override what should be shown or drawn. The pictures are recorded with the run."""

    def note(self, message: str) -> None:
        """Receive information that is neither a warning nor an error."""

    def preparation(self) -> AbstractContextManager[Progress]:
        """Return a context that receives the progress of downloads and decoding."""
        return nullcontext(self.progress)

    def planned(self, plan: Plan) -> None:
        """Receive the plan before training begins."""

    def training(self, run_name: str, plan: Plan, history: History) -> AbstractContextManager[events.Observer]:
        """Return a context that receives the events of the training."""
        return nullcontext(lambda event: None)

    def draw_batch(self, images: Tensor, labels: Sequence[str], path: Path, warn: Callable[[str], None]) -> list[Path]:
        """Draw augmented training images (N, 3, H, W) with their labels; return the files that were written."""
        return []

    def draw_curves(self, history: History, folder: Path, warn: Callable[[str], None]) -> list[Path]:
        """Draw the curves of a run; return the files that were written."""
        return []


@dataclass(frozen=True, slots=True)
class TrainResult:
    """A finished training.

    Attributes:
        run_id: id of the MLflow run.
        run_name: name of the MLflow run.
        folder: local state of the run.
        model: folder of the best saved model.
        is_recorded: whether the store has everything; ``tl runs sync`` sends what is missing.
        plan: settings, data and model (with the best weights).
        history: curves of the run.
        outcome: test results and counters.
        next_commands: commands that show more of the run.
    """

    run_id: str
    run_name: str
    folder: Path
    model: Path
    is_recorded: bool
    plan: Plan = field(repr=False)
    history: History = field(repr=False)
    outcome: Outcome = field(repr=False)
    next_commands: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types: accuracies and the gap as fractions, losses in nats."""
        counters, test, clean = self.outcome.counters, self.outcome.test, self.outcome.clean_train
        gain = self.outcome.tta_gain
        accuracy = test.accuracy if test else None
        return {
            "run_id": self.run_id,
            "run_name": self.run_name,
            "model": str(self.model),
            "is_recorded": self.is_recorded,
            "epochs": counters.epoch,
            "steps": counters.step,
            "seconds": counters.seconds,
            "best_epoch": counters.best_epoch,
            "val_accuracy": counters.best_val_accuracy,
            "val_loss": counters.best_val_loss,
            "test_images": accuracy.count if accuracy else None,
            "test_accuracy": accuracy.value if accuracy else None,
            "test_accuracy_low": accuracy.low if accuracy else None,
            "test_accuracy_high": accuracy.high if accuracy else None,
            "test_loss": test.loss.value if test else None,
            "tta_gain": gain.difference.value if gain else None,
            "clean_train_accuracy": clean.accuracy.value if clean else None,
            "gap": self.outcome.gap,
            "settings": self.plan.config.model_dump(mode="json"),
        }


@dataclass(frozen=True, slots=True)
class DryRun:
    """The settings and the forecast of a training; nothing is fetched, trained or recorded.

    Attributes:
        resolved: the settings with their reasons.
        to_fetch: weights and data that a run would fetch.
        plan: None if the images would have to be fetched.
        estimate: time and memory; None if the images would have to be fetched.
    """

    resolved: Resolved
    to_fetch: ToFetch
    plan: Plan | None = None
    estimate: Estimate | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        missing = (self.to_fetch.weights, self.to_fetch.data)
        origins = self.resolved.origins
        return {
            "settings": {
                name: {"value": value, "from": origins[name].source, "why": origins[name].why}
                for name, value in self.resolved.config.model_dump(mode="json").items()
            },
            "to_fetch": [str(each) for each in missing if each is not None],
            "seconds": dict(self.estimate.seconds) if self.estimate else None,
            "memory_bytes": self.estimate.memory_bytes if self.estimate else None,
        }


def train(request: TrainRequest, observer: TrainObserver | None = None) -> TrainResult:
    """Fine-tune a pretrained classifier and record it; the best model is kept however the training ends.

    Raises:
        UsageError: a setting, the data, the weights or the run to resume cannot be used.
        DownloadError: data or weights cannot be fetched.
        DivergedError: the loss is no longer finite.
        TrackingError: the MLflow store cannot be used.
        StorageError: a file cannot be written.
    """
    observer = observer or TrainObserver()
    return _start(request, observer) if request.resume is None else _resume(request, request.resume, observer)


def dry_run(request: TrainRequest, observer: TrainObserver | None = None) -> DryRun:
    """Return the settings of a training, their reasons and an estimate; if its images are missing, only the settings.

    Raises:
        UsageError: a setting, the data or the weights cannot be used.
    """
    observer = observer or TrainObserver()
    given = with_saved_weights(_given(request, observer), request.tracking_uri, observer)
    absent = to_fetch(given)
    if absent.data is not None:
        return DryRun(foresee(given).resolved, absent)
    with observer.preparation() as progress:
        plan = _plan(given, request, progress, is_dry=True)
    start_s = time.monotonic() - request.started
    _show_plan(plan, observer)
    return DryRun(plan.resolved, absent, plan, estimate(plan, start_s))


def _given(request: TrainRequest, observer: Observer) -> Given:
    file = read_toml(request.config) if request.config is not None else {}
    given = with_model_of_weights(Given.of(values_of(request.settings), file), request.tracking_uri, observer)
    # An unknown architecture is refused before anything is opened or fetched.
    registry.size_limits(given.model)
    return given


def _prepare(given: Given, request: TrainRequest, observer: TrainObserver, recorded: DataSpec | None = None) -> Plan:
    given = with_saved_weights(given, request.tracking_uri, observer)
    with observer.preparation() as progress:
        plan = _plan(given, request, progress, recorded=recorded)
    if recorded is None:
        _show_plan(plan, observer)
    return plan


def _plan(
    given: Given, request: TrainRequest, progress: Progress, *, recorded: DataSpec | None = None, is_dry: bool = False
) -> Plan:
    for_time = recorded is None and is_laid_out(given)
    material = gather(given, progress, recorded=recorded, is_dry=is_dry)
    return lay_out(material, request.started) if for_time else material.plan()


def _show_plan(plan: Plan, observer: TrainObserver) -> None:
    observer.planned(plan)
    for message in random_backbone(plan.config):
        observer.warn(message)
    if plan.config.tta == "flip" and (doubt := mirror_doubt(plan.card())):
        observer.warn(doubt)


def _start(request: TrainRequest, observer: TrainObserver) -> TrainResult:
    given = _given(request, observer)
    # Before the images are decoded, which may take minutes: an unreachable server is reported immediately.
    store = open_store(request.tracking_uri)
    destination = find_destination(store, request.experiment)
    plan = _prepare(given, request, observer)
    prepared = destination.run.info if destination.run is not None else None
    name = request.run_name or str(prepared.run_name if prepared else plan.name)
    run_id = str(prepared.run_id) if prepared else None
    return _Training(request, observer, plan, store, destination.experiment_id, name, run_id).run()


def _resume(request: TrainRequest, name: str, observer: TrainObserver) -> TrainResult:
    store = open_store(request.tracking_uri)
    # Locked until the training ends: two processes would write the same checkpoint.
    with lock_run(store, resuming.find_run(store, name)) as run:
        store.check_place(run)
        run = resuming.send_offline_record(store, run, observer)
        given, card = resuming.recorded_settings(store, run, request.settings, request.tracking_uri)
        resuming.check_config_file(store, run, card, observer)
        resuming.check_data_exist(given)
        plan = _prepare(given, request, observer, card.data)
        resuming.check_same_images(plan, run, card, observer)
        _show_plan(plan, observer)
        info, name = run.info, str(run.info.run_name)
        return _Training(request, observer, plan, store, info.experiment_id, name, info.run_id, is_resumed=True).run()


@dataclass(frozen=True, slots=True)
class _Training:
    """A training with its observer, and where it is recorded: fit, evaluate, record.

    Attributes:
        run_id: a run to resume, or one that another program has prepared; None: a new one.
        warnings: kept until the screen is closed.
    """

    request: TrainRequest
    observer: TrainObserver
    plan: Plan
    store: Store
    experiment_id: str
    run_name: str
    run_id: str | None = None
    is_resumed: bool = False
    warnings: list[str] = field(default_factory=list)

    def run(self) -> TrainResult:
        """Train and record."""
        state, history = self._starting_point()
        recorder = Recorder(
            self.store,
            experiment_id=self.experiment_id,
            run_name=self.run_name,
            run_id=self.run_id,
            tags=self.request.tags,
            warn=self.warnings.append,
        )
        with self._reporting(recorder):
            with recorder:
                saver = self._begin(recorder, state)
                with self._saving_on_error(recorder, saver):
                    outcome = self._train(recorder, saver, state, history)
            return TrainResult(
                run_id=recorder.run_id,
                run_name=recorder.run_name,
                folder=recorder.folder,
                model=recorder.folder / BEST_FOLDER,
                is_recorded=recorder.is_recorded,
                plan=self.plan,
                history=history,
                outcome=outcome,
                next_commands=tuple(self._next_commands(recorder, outcome)),
            )

    def _starting_point(self) -> tuple[TrainState, History]:
        state = new_state(self.plan)
        if not self.is_resumed or self.run_id is None:
            return state, History(self.run_name, keep=self.plan.config.keep_epoch)
        for problem in state.restore(state_folder(self.experiment_id, self.run_id)):
            self.observer.warn(f"{problem}; resuming from step {state.step}")
        history = read_history(self.store, self.store.find(self.run_id))
        if history.epochs and not state.step:
            self.observer.warn("no checkpoint is left; training starts again from the first step")
        history.cut_after(state.step)
        return state, history

    def _begin(self, recorder: Recorder, state: TrainState) -> Saver:
        plan, is_new = self.plan, not self.is_resumed
        every = Every.parse(plan.config.checkpoint_every)
        saver = Saver(recorder.folder, state, plan.card(), every, recorder.write_journal)
        if is_new:
            saver.begin()
        if is_new or not recorder.is_described:
            recorder.log_start(plan, self.request.command, self._draw_batch(recorder.folder))
        return saver

    def _draw_batch(self, folder: Path) -> list[Path]:
        """Draw one augmented batch with its labels, in which most mistakes in the data are visible."""
        plan = self.plan
        indices, images = next(plan.train_loader(plan.phases[-1]).augmented(plan.augmentation, plan.config.seed, 1))
        labels = [plan.data.classes[label] for label in plan.data.parts["train"].labels[indices]]
        path = folder / "training_batch.png"
        return self.observer.draw_batch(images[:_SHEET_IMAGES], labels[:_SHEET_IMAGES], path, self.warnings.append)

    def _train(self, recorder: Recorder, saver: Saver, state: TrainState, history: History) -> Outcome:
        plan, best, warnings = self.plan, recorder.folder / BEST_FOLDER, self.warnings
        with self.observer.training(recorder.run_name, plan, history) as screen:
            counters = fit(plan, state, events.notify_all(recorder, saver, history, screen))
            outcome = conclude(plan, counters, best, screen)
        if outcome.test is not None:
            history.test_accuracy, history.test_loss = outcome.test.accuracy.value, outcome.test.loss.value
        curves = self.observer.draw_curves(history, recorder.folder, warnings.append)
        warnings += outcome.warnings
        if "test" in outcome.failed:
            command = self._command("tl eval", recorder)
            warnings.append(f"no test accuracy is recorded; to add it: {command}")
        recorder.log_end(plan, outcome, self.request.command, curves, best, self.request.register)
        return outcome

    @contextmanager
    def _reporting(self, recorder: Recorder) -> Iterator[None]:
        """Report warnings at the end; if the command is stopped after the run was complete, report the run, too."""
        try:
            yield
            self._report_warnings()
        except Interrupted:
            if recorder.is_complete and recorder.is_recorded:
                see = self._command("tl eval", recorder)
                self.observer.note(f"run {recorder.run_id[:8]} is complete and recorded, with its model; see: {see}")
            raise
        finally:
            self._report_warnings()

    def _report_warnings(self) -> None:
        while self.warnings:
            self.observer.warn(self.warnings.pop(0))

    @contextmanager
    def _saving_on_error(self, recorder: Recorder, saver: Saver) -> Iterator[None]:
        """Keep the best model and the state of a training that stops early, and report where they are."""
        try:
            yield
        except BaseException as error:  # a signal, a full disk, no memory
            self._save_best(recorder, saver, error)
            raise

    def _save_best(self, recorder: Recorder, saver: Saver, error: BaseException) -> None:
        report, resume = self.observer.warn, f"resume with: {self._command('tl train --resume', recorder)}"
        if isinstance(error, DivergedError):
            resume = "resuming would diverge at the same step; start a new run with other settings"
        if isinstance(error, Interrupted):
            # After any other error the state may be its cause, so the checkpoint before it is kept.
            try:
                resume = f"step {saver.step} is saved; {resume}" if saver.save() else resume
                report = self.observer.note  # stopping a training is not a failure
            except StorageError as full:
                resume = f"{full}, so step {saver.step} is not saved; an earlier step is\n{resume}"
        # From the folder: the run may have been stopped while this epoch was being saved.
        best, folder = saver.best, saver.folder / BEST_FOLDER
        if best is None:
            report(f"no epoch finished, so no model is saved\n{resume}")
            return
        # Before the model is recorded: a second Ctrl-C ends the process.
        accuracy = f"epoch {best.epoch}, {best.val_accuracy or 0.0:.2%} on validation"
        report(f"kept the best model so far ({accuracy}): {folder}\n{resume}")
        recorder.log_unfinished(self.plan, best, folder)

    def _next_commands(self, recorder: Recorder, outcome: Outcome) -> Iterator[str]:
        if not recorder.is_recorded:
            yield self._command("tl runs sync", recorder)
            return
        # Only commands that work now: images may be missing.
        if outcome.test is not None or "test" not in self.plan.data.spec.splits:
            yield self._command("tl eval", recorder)
        yield self._command("tl plot --terminal", recorder)
        if "train" not in outcome.failed:
            yield self._command("tl inspect", recorder)
        uri = self.store.uri
        if uri.startswith("http"):
            yield view_url(uri, self.experiment_id)
        else:
            # mlflow ui reads no environment variable.
            is_default = self.store.database == Path.cwd() / "mlflow.db"
            yield "mlflow ui" if is_default else f"mlflow ui --backend-store-uri {shlex.quote(uri)}"

    def _command(self, command: str, recorder: Recorder) -> str:
        """Return a command for this run, with the option that finds its store."""
        return f"{command} {recorder.run_id[:8]}{uri_flag(self.request.tracking_uri)}"

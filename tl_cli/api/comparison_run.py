"""Comparing models on the same images: recorded runs, saved models, or architectures that are trained first."""

import html
import shlex
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from tl_cli import interrupts
from tl_cli.api.model_lookup import Target, find_model, target_of
from tl_cli.api.observer import Observer
from tl_cli.api.warm_start import with_saved_weights
from tl_cli.choices import DeviceName
from tl_cli.errors import Interrupted, RunNotFoundError, TrackingError, UsageError
from tl_cli.evaluation.logits import SavedLogits
from tl_cli.evaluation.measure import Evaluator
from tl_cli.evaluation.ranking import (
    Comparison,
    Contender,
    Cost,
    Training,
    advice,
    as_data,
    compare_all,
    rows,
    verdicts,
)
from tl_cli.evaluation.speed import inference_speeds
from tl_cli.evaluation.task import TASKS
from tl_cli.io.download import check_reachable
from tl_cli.models import bundle
from tl_cli.models.list import counting
from tl_cli.models.list.completion import is_architecture
from tl_cli.models.zoo import registry
from tl_cli.tracking.comparisons import CONTENDER_TAG, Parent, saved_logits, tested_on, training_of, trainings_of
from tl_cli.tracking.destination import find_destination
from tl_cli.tracking.evaluations import in_letters
from tl_cli.tracking.reader import read_history
from tl_cli.tracking.recorded import CHILD_TAG, is_parent
from tl_cli.tracking.store import Store, open_store
from tl_cli.training.conditions import are_digests_comparable, conditions
from tl_cli.training.config import Given
from tl_cli.training.history import History
from tl_cli.training.plan import to_fetch


@dataclass(frozen=True, slots=True)
class Trainings:
    """How architectures are trained before they are compared.

    Attributes:
        seeds: trainings of each architecture, with the seeds 0, 1, ...
        options: of ``tl train``, the same for all.
        settings: of each architecture; its weights are fetched before the first training begins.
        experiment: of MLflow; None is the usual one.
        on_stderr: whether what the trainings print goes to stderr.
    """

    seeds: int = 1
    options: tuple[str, ...] = ()
    settings: tuple[Given, ...] = ()
    experiment: str | None = None
    on_stderr: bool = True


@dataclass(frozen=True, slots=True)
class CompareRequest:
    """Which models to compare, and on which images.

    Attributes:
        names: runs or folders of saved models, or one comparison that was recorded; with ``trainings`` architectures.
        trainings: None where the models are trained already.
        data: images for the comparison, or for the trainings; None is each model's own.
        split: ``test`` or ``val``; None is the test images.
        data_dir: where downloaded data sets are kept.
        device: where to compute.
        workers: threads that decode image files; None chooses.
        measure_speed: whether to measure the speed of inference.
        tracking_uri: of MLflow's store; None is the usual one.
        command: what was typed, to be recorded; empty makes one of the names.
    """

    names: tuple[str, ...]
    trainings: Trainings | None = None
    data: str | None = None
    split: Literal["test", "val"] | None = None
    data_dir: Path | None = None
    device: DeviceName = "auto"
    workers: int | None = None
    measure_speed: bool = True
    tracking_uri: str | None = None
    command: str = ""

    @property
    def command_line(self) -> str:
        """The command, as a shell takes it."""
        return self.command or shlex.join(["tl", "compare", *self.names])


@dataclass(frozen=True, slots=True)
class CompareResult:
    """Models compared on the same images.

    Attributes:
        comparison: models, most accurate first, and the paired test of each two.
        curves: of the recorded trainings of each model, in the same order.
        failed: trainings that failed, by their titles; their models may be missing.
        run_id: of the run that records the comparison; None where nothing was trained.
    """

    comparison: Comparison
    curves: tuple[tuple[History, ...], ...]
    failed: tuple[str, ...] = ()
    run_id: str | None = None

    def to_dict(self) -> dict[str, object]:
        """Return what ``tl compare --json`` prints; its schema is ``schemas/compare.json``."""
        return as_data(self.comparison)

    def _repr_html_(self) -> str:
        lines = [
            f"<tr><td>{html.escape(str(row['model']))}</td><td>{row['accuracy']:.2%}</td>"
            f"<td>{row['accuracy_low']:.2%} to {row['accuracy_high']:.2%}</td><td>{row['parameters']:,}</td></tr>"
            for row in rows(self.comparison)
        ]
        sentences = [f"<li>{html.escape(each)}</li>" for each in (*verdicts(self.comparison), *advice(self.comparison))]
        head = "<tr><th>model</th><th>accuracy</th><th>95% interval</th><th>parameters</th></tr>"
        return f"<table>{head}{''.join(lines)}</table><ul>{''.join(sentences)}</ul>"


@dataclass(frozen=True, slots=True)
class Report:
    """What is recorded of a comparison beside its accuracies.

    Attributes:
        note: Markdown, the run's description.
        files: copied into the run.
    """

    note: str
    files: tuple[Path, ...] = ()


class CompareObserver(Observer):
    """Sees a comparison as it is made; override any method."""

    def training(self, title: str, number: int, total: int) -> None:
        """Called before each training, which prints its own progress."""

    def compared(self, result: CompareResult) -> Report:
        """Show the result, before it is recorded, and return what to record with it."""
        return Report("\n".join(f"- {sentence}" for sentence in verdicts(result.comparison)))


@dataclass(frozen=True, slots=True)
class _Entry:
    """A model to compare, and its trainings."""

    name: str
    targets: tuple[Target, ...]


def compare(request: CompareRequest, observer: CompareObserver | None = None) -> CompareResult:
    """Return the comparison of two or more models on the same images, trained first where the request says so.

    Trainings run one after another, each in a process of its own, under a run that records the comparison.

    Raises:
        UsageError: fewer than two models were found or trained, or they were evaluated on different images.
        RunNotFoundError: a name is no run and no saved model.
        TrackingError: the store cannot be used.
        DownloadError: weights or data cannot be fetched.
        Interrupted: a training was stopped by a signal.
    """
    observer = observer or CompareObserver()
    if request.trainings is None:
        result = _compared(_recorded(request, observer), request, observer)
        observer.compared(result)
        return result
    store = open_store(request.tracking_uri)
    destination = find_destination(store, request.trainings.experiment)
    _fetch_weights(request.trainings.settings, request.tracking_uri, observer)
    title = " against ".join(request.names) if len(request.names) < 4 else f"{len(request.names)} models"
    with Parent(store, destination.experiment_id, title, request.command_line, destination.run) as parent:
        failed = _train_all(store, parent, request, request.trainings, destination.experiment, observer)
        entries = _trained(store, parent.run_id, request.names, failed, observer)
        result = _compared(entries, replace(request, data=None), observer)
        result = replace(result, failed=tuple(failed), run_id=parent.run_id)
        report = observer.compared(result)
        pairs = zip(result.comparison.contenders, result.comparison.accuracies, strict=True)
        accuracies = {f"accuracy/{in_letters(model.name)}": accuracy.value for model, accuracy in pairs}
        parent.log(report.note, accuracies, report.files)
    return result


def _fetch_weights(settings: Sequence[Given], tracking_uri: str | None, observer: Observer) -> None:
    """Fetch the weights of each model before the first one trains.

    Raises:
        DownloadError: weights or data cannot be fetched; all that cannot be reached are named.
    """
    settings = [with_saved_weights(each, tracking_uri, observer) for each in settings]
    absent = [to_fetch(each) for each in settings]
    check_reachable([missing for each in absent for missing in (each.weights, each.data)])
    for each, missing in zip(settings, absent, strict=True):
        if missing.weights is not None:
            registry.find_weights(each.model, each.settings.weights, progress=observer.progress)


def _train_all(
    store: Store,
    parent: Parent,
    request: CompareRequest,
    trainings: Trainings,
    experiment: str,
    observer: CompareObserver,
) -> list[str]:
    """Train each model with each seed, one process after another; return the titles of those that failed.

    Raises:
        UsageError: the data have no test images to compare the models on.
        Interrupted: a training was stopped by a signal.
    """
    # The same flags for all; the parent's experiment may be another than the usual one.
    flags = {"--data": request.data, "--data-dir": request.data_dir, "--workers": request.workers,
             "--device": request.device if request.device != "auto" else None,
             "--tracking-uri": request.tracking_uri, "--experiment": experiment}  # fmt: skip
    shared = [
        *trainings.options,
        *(part for flag, value in flags.items() if value is not None for part in (flag, str(value))),
    ]
    failed: list[str] = []
    # Seed by seed, so that other load on the machine affects all models equally.
    work = [(model, seed) for seed in range(trainings.seeds) for model in request.names]
    for number, (model, seed) in enumerate(work, 1):
        title = f"{model}, seed {seed}" if trainings.seeds > 1 else model
        observer.training(title, number, len(work))
        command = [sys.executable, "-m", "tl_cli", "train", model, *shared, "--seed", str(seed), "--run-name", title]
        command += ["--tag", f"{CHILD_TAG}={parent.run_id}", "--tag", f"{CONTENDER_TAG}={model}"]
        code = _run(command, on_stderr=trainings.on_stderr)
        if code - 128 in interrupts.known():
            raise Interrupted(code - 128)
        if code != 0:
            failed.append(title)
        elif number == 1 + len(failed) and request.split is None:
            _check_test_images(store, parent.run_id)
    return failed


def _run(command: list[str], *, on_stderr: bool) -> int:
    """Run a training to its end and return its exit code; where this process is stopped, stop the training too."""
    process = subprocess.Popen(command, stdout=sys.stderr if on_stderr else None)  # noqa: S603 (this program itself)
    try:
        return process.wait()
    except BaseException:
        # In a terminal the training has had the signal as well, and ignores a second one that follows so soon.
        process.terminate()
        process.wait()
        raise


def _check_test_images(store: Store, parent_id: str) -> None:
    """Refuse, after the first training, data without test images."""
    found = []
    with suppress(TrackingError):  # the trainings continue where the store cannot be reached for a while
        found = [run for runs in trainings_of(store, parent_id).values() for run in runs]
    if found and tested_on(found[0]) is None:
        raise UsageError(
            "these data have no test images; give --split val to compare on the validation images, which favors all "
            "models, as they chose the epochs"
        )


def _trained(
    store: Store, parent_id: str, models: Sequence[str], failed: Sequence[str], observer: Observer
) -> list[_Entry]:
    """Return the models with complete trainings.

    Raises:
        UsageError: there are fewer than two.
    """
    groups = trainings_of(store, parent_id)
    found = [model for model in models if model in groups]
    if len(found) < 2:
        raise UsageError(
            f"only {len(found)} of {len(models)} models trained; two are needed to compare. Failed: {', '.join(failed)}"
        )
    return [_Entry(model, tuple(target_of(store, run, observer.warn) for run in groups[model])) for model in found]


def _recorded(request: CompareRequest, observer: Observer) -> list[_Entry]:
    """Return the runs and saved models that are named, each with a name of its own.

    Raises:
        UsageError: two names mean the same model.
    """
    names = request.names
    if len(names) == 1:
        return _trained_before(names[0], request.tracking_uri, observer)
    try:
        targets = [find_model(name, request.tracking_uri, observer.warn) for name in names]
    except RunNotFoundError as error:
        if not all(map(is_architecture, names)):
            raise
        command = request.command_line.replace(" compare", " compare --models", 1)
        raise UsageError(f"these are architectures, not runs; to train and then compare them: {command}") from error
    folders = [target.folder.resolve() for target in targets]
    for index, folder in enumerate(folders):
        if folder in folders[:index]:
            raise UsageError(f"{names[folders.index(folder)]} and {names[index]} are the same model")
    short = [str(target.run.info.run_name) if target.run else target.folder.resolve().name for target in targets]
    return [
        _Entry(target.name if short.count(name) > 1 else name, (target,))
        for name, target in zip(short, targets, strict=True)
    ]


def _trained_before(name: str, tracking_uri: str | None, observer: Observer) -> list[_Entry]:
    """Return the models of an earlier comparison that trained them.

    Raises:
        UsageError: the run is not such a comparison.
    """
    store = open_store(tracking_uri)
    run = store.find(name)
    groups = trainings_of(store, run.info.run_id)
    if not is_parent(run) or len(groups) < 2:
        raise UsageError(f"{name} is one run; give two or more to compare, or a run of tl compare --models")
    return [
        _Entry(model, tuple(target_of(store, run, observer.warn) for run in runs)) for model, runs in groups.items()
    ]


def _compared(entries: Sequence[_Entry], request: CompareRequest, observer: Observer) -> CompareResult:
    """Return the comparison of models: logits recorded or computed now, costs, and curves."""
    recorded = _recorded_logits(entries, request)
    cards = [bundle.read_card(target.folder) for entry in entries for target in entry.targets]
    with_digests = are_digests_comparable(cards)
    if not with_digests:
        observer.warn(
            "some of these models are of an earlier version, which recorded other digests of image files: their "
            "training and validation images are compared by number only, not by contents"
        )
    curves: dict[str, tuple[History, ...]] = {}
    trainings: list[tuple[Training, ...]] = []
    for entry in entries:
        histories = [read_history(each.store, each.run) if each.store and each.run else None for each in entry.targets]
        curves[entry.name] = tuple(history for history in histories if history is not None)
        trainings.append(
            tuple(
                _training(target, history, recorded.get(target.name), request, observer, with_digests=with_digests)
                for target, history in zip(entry.targets, histories, strict=True)
            )
        )
    first = [entry.targets[0] for entry in entries]
    speeds: list[float | None] = [None] * len(first)
    if request.measure_speed:
        classifiers = [registry.restore(target.folder)[0] for target in first]
        speeds = list(inference_speeds(classifiers, request.device, observer.progress))
    cards = [bundle.read_card(target.folder) for target in first]
    contenders = [
        Contender(entry.name, each, _cost(target, images_per_second), TASKS[card.data.task])
        for entry, each, target, images_per_second, card in zip(entries, trainings, first, speeds, cards, strict=True)
    ]
    source = request.data or cards[0].data.source
    comparison = compare_all(contenders, f"{source}, {request.split or 'test'}")
    return CompareResult(comparison, tuple(curves[model.name] for model in comparison.contenders))


def _training(
    target: Target,
    history: History | None,
    recorded: SavedLogits | None,
    request: CompareRequest,
    observer: Observer,
    *,
    with_digests: bool,
) -> Training:
    """Return a training with its recorded logits, or with logits that are computed now."""
    logits = recorded or _logits(target, request, observer)
    trained_with = conditions(bundle.read_card(target.folder), with_digests=with_digests)
    if target.run is None or history is None:
        return Training(target.name, logits, conditions=trained_with)
    training = replace(training_of(target.run, history, logits), conditions=trained_with)
    # The gap is between training and test images.
    on_test = request.data is None and request.split != "val"
    return training if on_test else replace(training, clean_train=None)


def _recorded_logits(entries: Sequence[_Entry], request: CompareRequest) -> dict[str, SavedLogits]:
    """Return the recorded test logits by target, if all models recorded them for the same images; else nothing.

    Digests of an earlier version are never those of today: its models are evaluated again beside newer ones.
    """
    targets = [target for entry in entries for target in entry.targets]
    if request.data is not None or request.split == "val":
        return {}
    if len({tested_on(target.run) if target.run else None for target in targets}) > 1:
        return {}
    found = {}
    for target in targets:
        logits = saved_logits(target.store, target.run) if target.store and target.run else None
        if logits is None:
            return {}
        found[target.name] = logits
    return found


def _logits(target: Target, request: CompareRequest, observer: Observer) -> SavedLogits:
    """Return the logits that a model computes now."""
    classifier, card = registry.restore(target.folder)
    if request.data is None and request.split is None and "test" not in card.data.splits:
        raise UsageError(
            f"{target.name} was trained on data without test images; give other images with --data, or --split val, "
            "which favors both models, as validation chose their epochs"
        )
    evaluator = Evaluator(
        classifier,
        card,
        source=request.data,
        data_dir=str(request.data_dir) if request.data_dir else None,
        device=request.device,
        workers=request.workers,
        progress=observer.progress,
    )
    measured = evaluator.measure(request.split)
    if measured.is_changed:
        observer.warn(f"the {measured.part} images are not those that {target.name} was trained with")
    if measured.trained_on:
        observer.warn(f"{target.name} was trained on {measured.trained_on:,} of these {measured.split.count:,} images")
    return SavedLogits(measured.labelled, tuple(measured.images.ids), card.classes)


def _cost(target: Target, images_per_second: float | None) -> Cost:
    card = bundle.read_card(target.folder)
    side = card.preprocessing.crop
    counts = counting.count(card.architecture, side, len(card.classes))
    size = (target.folder / bundle.WEIGHTS_FILE).stat().st_size
    # Where the architecture cannot be counted: four bytes per parameter.
    parameters = counts.parameters if counts else size // 4
    return Cost(parameters, counts.multiply_adds if counts else None, side, size, images_per_second)

"""Compares models on the same images: recorded runs, saved models, or architectures that are trained first."""

import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Literal

from tl_cli import interrupts
from tl_cli.api.model_lookup import Target, find_model
from tl_cli.api.observer import Observer
from tl_cli.api.recorded_model import RecordedModel, model_of
from tl_cli.api.warm_start import with_saved_weights
from tl_cli.choices import DeviceName
from tl_cli.errors import Interrupted, RunNotFoundError, TrackingError, UsageError
from tl_cli.evaluation import ranking
from tl_cli.evaluation.logits import SavedLogits
from tl_cli.evaluation.measure import Evaluator
from tl_cli.evaluation.ranking import Comparison, Contender, Cost, Training
from tl_cli.evaluation.speed import inference_speeds
from tl_cli.evaluation.task import TASKS
from tl_cli.io.download import check_reachable
from tl_cli.models import bundle
from tl_cli.models.list import counting
from tl_cli.models.list.completion import is_architecture
from tl_cli.models.zoo import registry
from tl_cli.text import html_table
from tl_cli.tracking.comparisons import CONTENDER_TAG, Parent, saved_logits, tested_on, training_of, trainings_of
from tl_cli.tracking.destination import find_destination
from tl_cli.tracking.evaluations import in_letters
from tl_cli.tracking.reader import read_history
from tl_cli.tracking.recorded import CHILD_TAG, Run, is_parent
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
        options: of ``tl train``, shared by all trainings.
        settings: of each architecture; its weights are fetched before the first training begins.
        experiment: MLflow experiment; None: MLFLOW_EXPERIMENT_NAME, else ``tl``.
        on_stderr: whether the trainings print to stderr.
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
        trainings: None if the models are trained already.
        data: images for the comparison, or for the trainings; None is each model's own.
        split: ``test`` or ``val``; None is the test images.
        data_dir: where downloaded data sets are kept.
        device: where to compute.
        workers: threads that decode image files; None chooses.
        measure_speed: whether to measure the speed of inference.
        tracking_uri: MLflow store or server; None is the default one.
        command: recorded as the command; empty: ``tl compare`` with the names.
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
        """The command, quoted for a shell."""
        return self.command or shlex.join(["tl", "compare", *self.names])


@dataclass(frozen=True, slots=True)
class CompareResult:
    """Models compared on the same images.

    Attributes:
        comparison: models, most accurate first, and the paired test of each two.
        curves: of the recorded trainings of each model, in the same order.
        failed: trainings that failed, by their titles; their models may be missing.
        run_id: of the run that records the comparison; None if nothing was trained.
    """

    comparison: Comparison
    curves: tuple[tuple[History, ...], ...]
    failed: tuple[str, ...] = ()
    run_id: str | None = None

    def to_dict(self) -> dict[str, object]:
        """Return what ``tl compare --json`` prints; its schema is ``schemas/compare.json``."""
        return ranking.as_data(self.comparison)

    def _repr_html_(self) -> str:
        heading = ("model", "accuracy", "95% interval", "parameters")
        lines = (
            (
                row["model"],
                f"{row['accuracy']:.2%}",
                f"{row['accuracy_low']:.2%} to {row['accuracy_high']:.2%}",
                f"{row['parameters']:,}",
            )
            for row in ranking.rows(self.comparison)
        )
        sentences = (*ranking.verdicts(self.comparison), *ranking.advice(self.comparison))
        return f"{html_table(heading, lines)}<ul>{''.join(f'<li>{escape(each)}</li>' for each in sentences)}</ul>"


@dataclass(frozen=True, slots=True)
class Report:
    """What is recorded with a comparison besides its accuracies.

    Attributes:
        note: description of the run, in Markdown.
        files: copied into the run.
    """

    note: str
    files: tuple[Path, ...] = ()


class CompareObserver(Observer):
    """Receives the progress of a comparison; override any method."""

    def training(self, title: str, number: int, total: int) -> None:
        """Receive the title of the next training, which prints its own progress."""

    def compared(self, result: CompareResult) -> Report:
        """Show the result, before it is recorded, and return what to record with it."""
        return Report("\n".join(f"- {sentence}" for sentence in ranking.verdicts(result.comparison)))


# The saved models to compare, by the name of the model; one per training.
_Models = Mapping[str, Sequence[Target]]


def compare(request: CompareRequest, observer: CompareObserver | None = None) -> CompareResult:
    """Return the comparison of two or more models on the same images, trained first if the request has trainings.

    Trainings run one after another, each in a new process, below a run that records the comparison.

    Raises:
        UsageError: fewer than two models were found or trained, or they were evaluated on different images.
        RunNotFoundError: a name is neither a run nor a saved model.
        TrackingError: the store cannot be used.
        DownloadError: weights or data cannot be fetched.
        Interrupted: a training was stopped by a signal.
    """
    observer = observer or CompareObserver()
    if request.trainings is None:
        result = _compared(_recorded(request, observer), request, observer)
        observer.compared(result)
        return result
    return _train_and_compare(request, request.trainings, observer)


def _train_and_compare(request: CompareRequest, trainings: Trainings, observer: CompareObserver) -> CompareResult:
    """Train the models, and record their comparison as a run that contains the trainings."""
    store = open_store(request.tracking_uri)
    destination = find_destination(store, trainings.experiment)
    _fetch_weights(trainings.settings, request.tracking_uri, observer)
    title = " against ".join(request.names) if len(request.names) < 4 else f"{len(request.names)} models"
    with Parent(store, destination.experiment_id, title, request.command_line, destination.run) as parent:
        options = _train_options(request, trainings, destination.experiment)
        failed = _train_all(store, parent.run_id, request, options, observer)
        models = _trained(store, parent.run_id, request.names, failed, observer)
        result = _compared(models, replace(request, data=None), observer)
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


def _train_options(request: CompareRequest, trainings: Trainings, experiment: str) -> list[str]:
    """Return the options of ``tl train`` that all trainings share."""
    # The parent's experiment may not be the default one.
    flags = {"--data": request.data, "--data-dir": request.data_dir, "--workers": request.workers,
             "--device": request.device if request.device != "auto" else None,
             "--tracking-uri": request.tracking_uri, "--experiment": experiment}  # fmt: skip
    given = [part for flag, value in flags.items() if value is not None for part in (flag, str(value))]
    return [*trainings.options, *given]


def _train_all(
    store: Store, parent_id: str, request: CompareRequest, options: Sequence[str], observer: CompareObserver
) -> list[str]:
    """Train each model with each seed, one process after another; return the titles of those that failed.

    Raises:
        UsageError: the data have no test images to compare the models on.
        Interrupted: a training was stopped by a signal.
    """
    trainings = request.trainings or Trainings()
    failed: list[str] = []
    # Seed by seed, so that other load on the machine affects all models equally.
    work = [(model, seed) for seed in range(trainings.seeds) for model in request.names]
    for number, (model, seed) in enumerate(work, 1):
        title = f"{model}, seed {seed}" if trainings.seeds > 1 else model
        observer.training(title, number, len(work))
        command = [sys.executable, "-m", "tl_cli", "train", model, *options, "--seed", str(seed), "--run-name", title]
        command += ["--tag", f"{CHILD_TAG}={parent_id}", "--tag", f"{CONTENDER_TAG}={model}"]
        code = _run_training(command, on_stderr=trainings.on_stderr)
        if code - 128 in interrupts.known():
            raise Interrupted(code - 128)
        if code != 0:
            failed.append(title)
        elif number == 1 + len(failed) and request.split is None:
            _check_test_images(store, parent_id)
    return failed


def _run_training(command: list[str], *, on_stderr: bool) -> int:
    """Run a training to its end and return its exit code; if this process is stopped, stop the training too."""
    process = subprocess.Popen(command, stdout=sys.stderr if on_stderr else None)  # noqa: S603 (this program itself)
    try:
        return process.wait()
    except BaseException:
        # In a terminal, the training has received the signal too, and ignores a second one that follows so soon.
        process.terminate()
        process.wait()
        raise


def _check_test_images(store: Store, parent_id: str) -> None:
    """Refuse, after the first training, data without test images."""
    trained: list[Run] = []
    with suppress(TrackingError):  # the trainings continue while the store cannot be reached
        trained = [run for runs in trainings_of(store, parent_id).values() for run in runs]
    if trained and tested_on(trained[0]) is None:
        raise UsageError(
            "these data have no test images; give --split val to compare on the validation images, which favors all "
            "models, as they chose the epochs"
        )


def _trained(store: Store, parent_id: str, names: Sequence[str], failed: Sequence[str], observer: Observer) -> _Models:
    """Return the models with complete trainings.

    Raises:
        UsageError: there are fewer than two.
    """
    models = _models_of(store, trainings_of(store, parent_id), observer)
    complete = {name: models[name] for name in names if name in models}
    if len(complete) < 2:
        raise UsageError(
            f"only {len(complete)} of {len(names)} models trained; two are needed to compare. "
            f"Failed: {', '.join(failed)}"
        )
    return complete


def _models_of(store: Store, groups: Mapping[str, Sequence[Run]], observer: Observer) -> _Models:
    """Return the models that a recorded comparison trained."""
    return {name: [model_of(store, run, observer.warn) for run in runs] for name, runs in groups.items()}


def _recorded(request: CompareRequest, observer: Observer) -> _Models:
    """Return the named runs and saved models, or those of an earlier comparison, by unique names.

    Raises:
        UsageError: two names mean the same model, or the only name is not that of a comparison.
    """
    names = request.names
    if len(names) == 1:
        store = open_store(request.tracking_uri)
        run = store.find(names[0])
        groups = trainings_of(store, run.info.run_id) if is_parent(run) else {}
        if len(groups) < 2:
            raise UsageError(f"{names[0]} is one run; give two or more to compare, or a run of tl compare --models")
        return _models_of(store, groups, observer)
    targets = _find_targets(request, observer)
    short = [_short_name(target) for target in targets]
    return {
        target.name if short.count(name) > 1 else name: [target] for name, target in zip(short, targets, strict=True)
    }


def _find_targets(request: CompareRequest, observer: Observer) -> list[Target]:
    """Return the named models.

    Raises:
        UsageError: two names mean the same model, or all are architectures.
    """
    names = request.names
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
    return targets


def _short_name(target: Target) -> str:
    return str(target.run.info.run_name) if isinstance(target, RecordedModel) else target.folder.resolve().name


def _compared(models: _Models, request: CompareRequest, observer: Observer) -> CompareResult:
    """Return the comparison of models: logits recorded or computed now, costs, and curves."""
    targets = [target for each in models.values() for target in each]
    with_digests = are_digests_comparable([bundle.read_card(target.folder) for target in targets])
    if not with_digests:
        observer.warn(
            "some of these models are of an earlier version, which recorded other digests of image files: their "
            "training and validation images are compared by number only, not by contents"
        )
    histories = {each.name: read_history(each.store, each.run) for each in targets if isinstance(each, RecordedModel)}
    logits = _recorded_logits(targets, request) or {each.name: _logits(each, request, observer) for each in targets}
    first = [each[0] for each in models.values()]
    speeds: Sequence[float | None] = [None] * len(first)
    if request.measure_speed:
        classifiers = [registry.restore(target.folder)[0] for target in first]
        speeds = inference_speeds(classifiers, request.device, observer.progress)
    trainings = {
        each.name: _training(each, histories.get(each.name), logits[each.name], request, with_digests=with_digests)
        for each in targets
    }
    cards = [bundle.read_card(target.folder) for target in first]
    contenders = [
        Contender(
            name,
            tuple(trainings[target.name] for target in each),
            _cost(each[0], images_per_second),
            TASKS[card.data.task],
        )
        for (name, each), images_per_second, card in zip(models.items(), speeds, cards, strict=True)
    ]
    source = request.data or cards[0].data.source
    comparison = ranking.compare_all(contenders, f"{source}, {request.split or 'test'}")
    curves = [
        tuple(histories[target.name] for target in models[model.name] if target.name in histories)
        for model in comparison.contenders
    ]
    return CompareResult(comparison, tuple(curves))


def _training(
    target: Target, history: History | None, logits: SavedLogits, request: CompareRequest, *, with_digests: bool
) -> Training:
    trained_with = conditions(bundle.read_card(target.folder), with_digests=with_digests)
    if not isinstance(target, RecordedModel) or history is None:
        return Training(target.name, logits, conditions=trained_with)
    training = replace(training_of(target.run, history, logits), conditions=trained_with)
    # The gap is between training and test images.
    on_test = request.data is None and request.split != "val"
    return training if on_test else replace(training, clean_train=None)


def _recorded_logits(targets: Sequence[Target], request: CompareRequest) -> dict[str, SavedLogits]:
    """Return the recorded test logits by target, if all models recorded them for the same images; else nothing.

    Digests of an earlier version never equal current ones, so its models are evaluated again.
    """
    runs = [target for target in targets if isinstance(target, RecordedModel)]
    if request.data is not None or request.split == "val" or len(runs) < len(targets):
        return {}
    if len({tested_on(target.run) for target in runs}) > 1:
        return {}
    recorded = {target.name: saved_logits(target.store, target.run) for target in runs}
    complete = {name: logits for name, logits in recorded.items() if logits is not None}
    return complete if len(complete) == len(recorded) else {}


def _logits(target: Target, request: CompareRequest, observer: Observer) -> SavedLogits:
    """Return the logits of a model, computed now."""
    classifier, card = registry.restore(target.folder)
    if request.data is None and request.split is None and "test" not in card.data.splits:
        raise UsageError(
            f"{target.name} was trained on data without test images; give other images with --data, or --split val, "
            "which favors both models, as validation chose their epochs"
        )
    measured = Evaluator(
        classifier,
        card,
        source=request.data,
        data_dir=str(request.data_dir) if request.data_dir else None,
        device=request.device,
        workers=request.workers,
        progress=observer.progress,
    ).measure(request.split)
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
    # If the architecture cannot be counted: four bytes per parameter.
    parameters = counts.parameters if counts else size // 4
    return Cost(parameters, counts.multiply_adds if counts else None, side, size, images_per_second)

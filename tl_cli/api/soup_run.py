"""Averages the weights of several runs into one model; the validation images decide which runs (greedy soup)."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tl_cli.api.model_lookup import display_name
from tl_cli.api.observer import Observer
from tl_cli.api.recorded_model import RecordedModel, find_recorded
from tl_cli.choices import DeviceName
from tl_cli.contract import ModelCard, SplitName
from tl_cli.errors import UsageError
from tl_cli.evaluation.calibration import fit_temperature
from tl_cli.evaluation.classification import Report, report
from tl_cli.evaluation.intervals import with_interval
from tl_cli.evaluation.measure import Evaluator, Measured
from tl_cli.evaluation.paired import Paired, compare
from tl_cli.evaluation.scores import Results
from tl_cli.evaluation.task import TASKS, Task
from tl_cli.models import bundle
from tl_cli.models.classifier import Classifier
from tl_cli.models.zoo import registry
from tl_cli.tracking.destination import find_destination
from tl_cli.tracking.recorder import Recorder
from tl_cli.training.state import BEST_FOLDER


@dataclass(frozen=True, slots=True)
class SoupRequest:
    """Which runs to average.

    Attributes:
        runs: two or more runs of one architecture, trained on the same images.
        run_name: of the new run; None: ``soup of N runs``.
        experiment: MLflow experiment of the new run; None: MLFLOW_EXPERIMENT_NAME, else ``tl``.
        device: where to compute.
        workers: number of threads that decode images; None chooses.
        tracking_uri: MLflow's store; None is the default one.
        command: recorded as the command that made the run.
    """

    runs: Sequence[str]
    run_name: str | None = None
    experiment: str | None = None
    device: DeviceName = "auto"
    workers: int | None = None
    tracking_uri: str | None = None
    command: str = "tl_cli.api.soup_run.soup"


@dataclass(frozen=True, slots=True)
class Ingredient:
    """A run that was tried.

    Attributes:
        run_id: of the run.
        name: of the run.
        val_accuracy: of its own model on the validation images, a fraction.
        with_it: the same of the mean of all runs kept so far and this one.
        is_kept: whether it is part of the mean.
    """

    run_id: str
    name: str
    val_accuracy: float
    with_it: float
    is_kept: bool


@dataclass(frozen=True, slots=True)
class SoupResult:
    """The mean of some of the runs, or only the best run where no mean is as good.

    Attributes:
        ingredients: in the order in which they were tried: the best on validation first.
        images: number of validation images.
        test: of the mean, tested once; None without test images, or where only one run is kept.
        gain: the mean against the best run on the test images.
        run_id: of the new run; None where only one run is kept: nothing is recorded then.
        model: saved-model folder of the new run.
    """

    ingredients: tuple[Ingredient, ...]
    images: int
    test: Report | None = None
    gain: Paired | None = None
    run_id: str | None = None
    model: Path | None = None

    @property
    def kept(self) -> tuple[Ingredient, ...]:
        """The runs whose mean it is."""
        return tuple(each for each in self.ingredients if each.is_kept)

    @property
    def val_accuracy(self) -> float:
        """Of the mean, a fraction."""
        return self.kept[-1].with_it

    def to_dict(self) -> dict[str, object]:
        """Return what ``tl soup --json`` prints."""
        data: dict[str, object] = {
            "run_id": self.run_id,
            "model": None if self.model is None else str(self.model),
            "runs": [asdict(each) for each in self.ingredients],
            "val_images": self.images,
            "val_accuracy": self.val_accuracy,
        }
        data |= with_interval("test_accuracy", self.test.accuracy if self.test else None)
        data |= with_interval("test_gain", self.gain.difference if self.gain else None)
        return {**data, "p_value": self.gain.p_value if self.gain else None}


def soup(request: SoupRequest, observer: Observer | None = None) -> SoupResult:
    """Average the weights of runs greedily, record the mean as a run with an ordinary model, and test it once.

    The runs are tried in descending order of validation accuracy; a run is kept if the mean with it is at least as good
    (Wortsman et al. 2022, arXiv 2203.05482).

    Raises:
        UsageError: there are fewer than two runs, or they differ in more than what training changes.
        RunNotFoundError: there is no such run, or it has no model.
        DataError: the validation images are missing or have changed.
        TrackingError: the store cannot be used.
    """
    observer = observer or Observer()
    targets = [find_recorded(name, request.tracking_uri, observer.warn) for name in request.runs]
    cards = [bundle.verified_card(target.folder) for target in targets]
    _check_alike(targets, cards)
    destination = find_destination(targets[0].store, request.experiment)
    judge = _Judge(targets[0], request, observer)
    ingredients, validated = _choose(targets, judge)
    chosen = [targets[[_id(target) for target in targets].index(each.run_id)] for each in ingredients if each.is_kept]
    result = SoupResult(ingredients, len(validated.images))
    if len(chosen) == 1:
        return result
    gain, tested = _test(chosen, judge)
    best = bundle.read_card(chosen[0].folder)
    config = _shared_config([bundle.read_card(target.folder) for target in chosen])
    calibration = fit_temperature(validated.labelled, task=judge.task)
    card = best.model_copy(
        update={
            "recipe": "soup",
            "config": config,
            "val_accuracy": result.val_accuracy,
            "averaged": False,
            "calibration": calibration,
        }
    )
    on_val = report(validated.labelled.scaled(calibration.temperature), judge.task)
    test = report(tested.labelled.scaled(calibration.temperature), judge.task) if tested is not None else None
    results = Results(
        val_accuracy=result.val_accuracy,
        val_loss=on_val.loss.value,
        test_accuracy=test.accuracy.value if test else None,
        test_loss=test.loss.value if test else None,
    )
    prepared = destination.run.info if destination.run is not None else None
    recorder = Recorder(
        targets[0].store,
        experiment_id=destination.experiment_id,
        run_name=request.run_name or f"soup of {len(chosen)} runs",
        run_id=None if prepared is None else str(prepared.run_id),
        tags={"tl.soup": json.dumps([each.run_id for each in result.kept])},
        warn=observer.warn,
    )
    with recorder:
        folder = recorder.folder / BEST_FOLDER
        bundle.save(folder, judge.hold(chosen).model, card)
        recorder.log_soup(card, folder, results, list(_lines(result, chosen)), request.command, tested)
    return SoupResult(ingredients, result.images, test, gain, recorder.run_id, folder)


class _Judge:
    """A network that holds the mean of some models, and its logits for the images of the first one."""

    def __init__(self, target: RecordedModel, request: SoupRequest, observer: Observer) -> None:
        self._classifier, self._card = registry.restore(target.folder)
        self.task: Task = TASKS[self._classifier.task]
        self._evaluator = Evaluator(
            self._classifier, self._card, device=request.device, workers=request.workers, progress=observer.progress
        )

    @property
    def has_test(self) -> bool:
        """Whether there are test images."""
        return self._evaluator.preferred == "test"

    def hold(self, targets: Sequence[RecordedModel]) -> Classifier:
        """Give the network the mean weights of models."""
        bundle.load_mean([target.folder for target in targets], self._classifier.model)
        # LeViT caches values computed from its weights in eval mode until it trains again.
        self._classifier.model.train()
        return self._classifier

    def measure(self, targets: Sequence[RecordedModel], part: SplitName) -> Measured:
        """Return the logits of the mean of models.

        Raises:
            UsageError: the images have changed since the training.
        """
        self.hold(targets)
        measured = self._evaluator.measure(part)
        if measured.is_changed:
            raise UsageError(f"the {part} images of these runs have changed, so they cannot decide which runs to keep")
        return measured


def _choose(targets: Sequence[RecordedModel], judge: _Judge) -> tuple[tuple[Ingredient, ...], Measured]:
    """Return the runs in the order in which they were tried, and the logits of the mean on validation."""
    alone = [(judge.measure([target], "val"), target) for target in targets]
    alone.sort(key=lambda pair: _accuracy(pair[0], judge.task), reverse=True)
    (best, first), others = alone[0], alone[1:]
    kept = [first]
    ingredients = [_ingredient(first, best, best, judge.task, is_kept=True)]
    for own, target in others:
        mean = judge.measure([*kept, target], "val")
        is_kept = _accuracy(mean, judge.task) >= _accuracy(best, judge.task)
        if is_kept:
            kept.append(target)
            best = mean
        ingredients.append(_ingredient(target, own, mean, judge.task, is_kept=is_kept))
    return tuple(ingredients), best


def _ingredient(target: RecordedModel, own: Measured, mean: Measured, task: Task, *, is_kept: bool) -> Ingredient:
    name = str(target.run.info.run_name)
    return Ingredient(_id(target), name, _accuracy(own, task), _accuracy(mean, task), is_kept)


def _accuracy(measured: Measured, task: Task) -> float:
    labelled = measured.labelled
    return float(task.is_correct(labelled.logits, labelled.labels).double().mean())


def _id(target: RecordedModel) -> str:
    return str(target.run.info.run_id)


def _test(chosen: Sequence[RecordedModel], judge: _Judge) -> tuple[Paired | None, Measured | None]:
    """Return the gain over the best run, and the logits, on the test images; None without them."""
    if not judge.has_test:
        return None, None
    both = [judge.measure(models, "test") for models in (chosen[:1], chosen)]
    before, after = (judge.task.is_correct(each.labelled.logits, each.labelled.labels).numpy()[None] for each in both)
    return compare(before, after), both[1]


def _check_alike(targets: Sequence[RecordedModel], cards: Sequence[ModelCard]) -> None:
    """Raise unless the models have the same shape, and were trained, validated and tested on the same images.

    Raises:
        UsageError: they differ, or there are not two.
    """
    ids = [_id(target) for target in targets]
    if len(set(ids)) < max(2, len(ids)):
        raise UsageError("give two or more different runs to average")
    for target, card in zip(targets[1:], cards[1:], strict=True):
        differing = next((name for name, first, other in _compared(cards[0], card) if first != other), None)
        if differing is not None:
            raise UsageError(
                f"{display_name(targets[0].run)} and {display_name(target.run)} differ in {differing}, so their "
                "weights cannot be averaged"
            )
    if "val" not in cards[0].data.splits:
        raise UsageError("these runs have no validation images, which decide which runs to keep")


def _compared(first: ModelCard, other: ModelCard) -> Iterator[tuple[str, object, object]]:
    yield "architecture", first.architecture, other.architecture
    yield "build options", first.build_options, other.build_options
    yield "what the head sees", first.stages, other.stages
    yield "classes", first.classes, other.classes
    yield "preprocessing", first.preprocessing, other.preprocessing
    yield "images", first.data.splits, other.data.splits


def _shared_config(cards: Sequence[ModelCard]) -> dict[str, object]:
    """Return the settings that all runs have in common."""
    first, *others = (card.config for card in cards)
    shared = {name: value for name, value in first.items() if all(each.get(name) == value for each in others)}
    return shared | {"recipe": "soup"}


def _lines(result: SoupResult, chosen: Sequence[RecordedModel]) -> Iterator[str]:
    """Yield lines of Markdown about the runs, with links."""
    yield "Mean of the weights of:"
    yield ""
    for each, target in zip(result.kept, chosen, strict=True):
        link = f"#/experiments/{target.run.info.experiment_id}/runs/{each.run_id}"
        yield f"- [{each.name}]({link}), {each.val_accuracy:.2%} on validation images"

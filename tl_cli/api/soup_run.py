"""Averages the weights of several runs into one model; the validation images decide which runs (greedy soup)."""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from tl_cli.api.model_lookup import display_name
from tl_cli.api.observer import Observer
from tl_cli.api.recorded_model import RecordedModel, find_recorded
from tl_cli.choices import DeviceName
from tl_cli.contract import ModelCard, SplitName
from tl_cli.errors import DataError, UsageError
from tl_cli.evaluation.calibration import fit_temperature
from tl_cli.evaluation.classification import Report, report
from tl_cli.evaluation.intervals import with_interval
from tl_cli.evaluation.logits import LabelledLogits
from tl_cli.evaluation.measure import Evaluator, Measured
from tl_cli.evaluation.paired import Paired, compare
from tl_cli.evaluation.scores import Results
from tl_cli.evaluation.task import TASKS, Task
from tl_cli.models import bundle
from tl_cli.models.zoo import registry
from tl_cli.tracking.destination import find_destination
from tl_cli.tracking.ownership import check_stopped, lock_for_reading
from tl_cli.tracking.recorded import SOUP_TAG
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
        val_accuracy: of its model on the validation images, a fraction.
        mean_val_accuracy: of the mean of all runs kept so far and this one.
        is_kept: whether it is part of the mean.
    """

    run_id: str
    name: str
    val_accuracy: float
    mean_val_accuracy: float
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
        return self.kept[-1].mean_val_accuracy

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
        UsageError: there are fewer than two runs, one is running, or they differ in more than what training changes.
        RunNotFoundError: there is no such run, or it has no model.
        DataError: the validation images are missing or have changed.
        TrackingError: the store cannot be used.
    """
    observer = observer or Observer()
    targets = [find_recorded(name, request.tracking_uri, observer.warn) for name in request.runs]
    with ExitStack() as locks:
        for target in targets:
            check_stopped(target.run)
            # Other processes must not delete the run meanwhile.
            locks.enter_context(lock_for_reading(target.store, target.run))
        sources = [_Source(target, bundle.verified_card(target.folder)) for target in targets]
        _check_alike(sources)
        mean = _Mean(sources[0], request, observer)
        ingredients, validated = _choose(sources, mean)
        chosen = [source for each in ingredients if each.is_kept for source in sources if source.run_id == each.run_id]
        result = SoupResult(ingredients, len(validated.labels))
        return result if len(chosen) == 1 else _recorded(result, chosen, validated, mean, request, observer)


class _Source:
    """A run with its model card and its weights, which are read once."""

    def __init__(self, target: RecordedModel, card: ModelCard) -> None:
        self.target = target
        self.card = card
        self.tensors = bundle.tensors(target.folder)

    @property
    def run_id(self) -> str:
        """The id of the run."""
        return str(self.target.run.info.run_id)

    @property
    def name(self) -> str:
        """The name of the run."""
        return str(self.target.run.info.run_name)


class _Mean:
    """A network that holds the mean of some models, with the images of the first one's data."""

    def __init__(self, source: _Source, request: SoupRequest, observer: Observer) -> None:
        self.classifier, _ = registry.restore(source.target.folder)
        self.task: Task = TASKS[self.classifier.task]
        self._evaluator = Evaluator(
            self.classifier, source.card, device=request.device, workers=request.workers, progress=observer.progress
        )

    def logits(self, sources: Sequence[_Source], part: SplitName) -> Measured:
        """Return the logits of the mean of models.

        Raises:
            DataError: the images are missing, or have changed since the training.
        """
        bundle.load_mean([source.tensors for source in sources], self.classifier.model)
        # LeViT caches values computed from its weights in eval mode until it trains again.
        self.classifier.model.train()
        measured = self._evaluator.measure(part)
        if measured.is_changed:
            raise DataError(f"the {part} images of these runs have changed since they were trained")
        return measured

    def correct(self, labelled: LabelledLogits) -> np.ndarray:
        """Return which images are classified correctly, (N,) bool."""
        correct: np.ndarray = self.task.is_correct(labelled.logits, labelled.labels).numpy()
        return correct


def _choose(sources: Sequence[_Source], mean: _Mean) -> tuple[tuple[Ingredient, ...], LabelledLogits]:
    """Return the runs in the order in which they were tried, and the logits of the mean on validation."""

    def validated(chosen: Sequence[_Source]) -> tuple[float, LabelledLogits]:
        labelled = mean.logits(chosen, "val").labelled
        return float(mean.correct(labelled).mean()), labelled

    alone = [(*validated([source]), source) for source in sources]
    (accuracy, best, first), *others = sorted(alone, key=lambda each: each[0], reverse=True)
    kept, ingredients = [first], [Ingredient(first.run_id, first.name, accuracy, accuracy, is_kept=True)]
    for own, _, source in others:
        together, labelled = validated([*kept, source])
        is_kept = together >= accuracy
        if is_kept:
            kept, accuracy, best = [*kept, source], together, labelled
        ingredients.append(Ingredient(source.run_id, source.name, own, together, is_kept))
    return tuple(ingredients), best


def _recorded(
    result: SoupResult,
    chosen: Sequence[_Source],
    validated: LabelledLogits,
    mean: _Mean,
    request: SoupRequest,
    observer: Observer,
) -> SoupResult:
    """Test the mean of the chosen runs, and record it as a run."""
    gain, tested = None, None
    if "test" in chosen[0].card.data.splits:
        try:
            before, tested = mean.logits(chosen[:1], "test"), mean.logits(chosen, "test")
            gain = compare(mean.correct(before.labelled)[None], mean.correct(tested.labelled)[None])
        except DataError as error:
            observer.warn(f"the mean is not tested: {error}")
    calibration = fit_temperature(validated, task=mean.task)
    test = report(tested.labelled.scaled(calibration.temperature), mean.task) if tested is not None else None
    card = chosen[0].card.model_copy(
        update={
            "recipe": "soup",
            "config": {},  # no training had these settings
            "val_accuracy": result.val_accuracy,
            "averaged": False,
            "calibration": calibration,
        }
    )
    results = Results(
        val_accuracy=result.val_accuracy,
        # Without the temperature, as while training.
        val_loss=report(validated, mean.task).loss.value,
        test_accuracy=test.accuracy.value if test else None,
        test_loss=test.loss.value if test else None,
    )
    store = chosen[0].target.store
    destination = find_destination(store, request.experiment)
    prepared = destination.run.info if destination.run is not None else None
    recorder = Recorder(
        store,
        experiment_id=destination.experiment_id,
        run_name=request.run_name or (str(prepared.run_name) if prepared else f"soup of {len(chosen)} runs"),
        run_id=str(prepared.run_id) if prepared else None,
        tags={SOUP_TAG: json.dumps([source.run_id for source in chosen])},
        warn=observer.warn,
    )
    with recorder:
        folder = recorder.folder / BEST_FOLDER
        bundle.load_mean([source.tensors for source in chosen], mean.classifier.model)
        card = bundle.save(folder, mean.classifier.model, card)
        parents = [
            (source.run_id, str(source.target.run.info.experiment_id), source.name, each.val_accuracy)
            for source, each in zip(chosen, result.kept, strict=True)
        ]
        recorder.log_soup(card, folder, results, _shared_settings(chosen), parents, request.command, tested)
    return replace(result, test=test, gain=gain, run_id=recorder.run_id, model=folder)


def _check_alike(sources: Sequence[_Source]) -> None:
    """Check that the models have the same shape, and were trained, validated and tested on the same images.

    Raises:
        UsageError: they differ, or there are not two.
    """
    ids = [source.run_id for source in sources]
    if len(set(ids)) < max(2, len(ids)):
        raise UsageError("give two or more different runs to average")
    first = sources[0]
    for source in sources[1:]:
        differing = next((name for name, one, other in _compared(first.card, source.card) if one != other), None)
        if differing is not None:
            raise UsageError(
                f"{display_name(first.target.run)} and {display_name(source.target.run)} differ in {differing}, so "
                "their weights cannot be averaged"
            )
    if "val" not in first.card.data.splits:
        raise UsageError("these runs have no validation images, which decide which runs to keep")


def _compared(first: ModelCard, other: ModelCard) -> Iterator[tuple[str, object, object]]:
    yield "architecture", first.architecture, other.architecture
    yield "build options", first.build_options, other.build_options
    yield "what the head sees", first.stages, other.stages
    yield "test-time augmentation", first.tta, other.tta
    yield "classes", first.classes, other.classes
    yield "preprocessing", first.preprocessing, other.preprocessing
    yield "images", first.data.splits, other.data.splits


def _shared_settings(sources: Sequence[_Source]) -> dict[str, object]:
    """Return the settings that all runs have in common."""
    first, *others = (source.card.config for source in sources)
    shared = {name: value for name, value in first.items() if all(each.get(name) == value for each in others)}
    if "weights" in shared:  # as tl train records them
        shared["weights"] = sources[0].card.weights.name
    return shared | {"recipe": "soup"}

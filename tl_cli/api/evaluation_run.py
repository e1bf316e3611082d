"""Evaluates a saved model on labelled images, and records the results with its run."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path

from tl_cli.api.model_lookup import Target, find_model
from tl_cli.api.observer import Observer
from tl_cli.api.recorded_model import RecordedModel
from tl_cli.choices import DeviceName, Precision, TtaName
from tl_cli.contract import USUAL_COLUMNS, Columns, ModelCard
from tl_cli.errors import StorageError, TrackingError, some
from tl_cli.evaluation.logits import mirror_doubt, save_logits
from tl_cli.evaluation.measure import Evaluator, Measured, OnBadImage, OwnAccuracy, Part
from tl_cli.evaluation.report import EvaluationReport, as_data, class_rows, headline, make_report
from tl_cli.evaluation.task import TASKS
from tl_cli.io.atomic import write_text
from tl_cli.models.classifier import Classifier
from tl_cli.models.zoo import registry
from tl_cli.text import finite, html_table
from tl_cli.tracking import evaluations
from tl_cli.tracking.journal import hold_lock
from tl_cli.tracking.ownership import lock_for_reading


@dataclass(frozen=True, slots=True)
class EvaluateRequest:
    """Which model to evaluate, on which images.

    Attributes:
        model: a run or a saved-model folder.
        split: which images; None: test, val if the data have no test images, all images of a folder without splits.
        data: name or path of other images; None: those of the training.
        data_dir: where downloaded data sets are stored; None: as in training.
        columns: of a CSV, if they differ from those of the training.
        on_bad_image: ``error``, or ``skip`` for files that cannot be decoded; None: as in training.
        max_pixels: maximum number of pixels decoded per image; None: as in training.
        batch_size: images in memory at a time; None chooses.
        tta: ``flip`` averages the logits of each image and its mirror image, for twice the time; None: as in training.
        precision: of the computation; models are tested in fp32.
        device: where to compute.
        workers: number of threads that decode images; None chooses.
        tracking_uri: MLflow's store; None is the default one.
        output: folder that the results are written to as well.
        log: whether the results are recorded with the run.
    """

    model: str = "latest"
    split: Part | None = None
    data: str | None = None
    data_dir: str | None = None
    columns: Columns = USUAL_COLUMNS
    on_bad_image: OnBadImage | None = None
    max_pixels: int | None = None
    batch_size: int | None = None
    tta: TtaName | None = None
    precision: Precision = "fp32"
    device: DeviceName = "auto"
    workers: int | None = None
    tracking_uri: str | None = None
    output: Path | None = None
    log: bool = True


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How good a model is on one split of a data set.

    Attributes:
        model: name of its run, or its folder.
        card: the model card.
        measured: the logits, and which images they are for.
        report: the metrics with their 95% confidence intervals, calibration and mistakes.
        own: the accuracy on the model's own data, if it was evaluated on other images.
        files: those written to the ``output`` of the request.
    """

    model: str
    card: ModelCard
    measured: Measured
    report: EvaluationReport
    own: OwnAccuracy | None
    files: tuple[Path, ...] = ()

    @property
    def accuracy(self) -> float:
        """Fraction of the images that are classified correctly."""
        return self.report.scores.accuracy.value

    def class_rows(self) -> list[dict[str, object]]:
        """Return one row per class: number of images, recall, precision and F1 with their intervals."""
        return class_rows(self.report, self.card.classes)

    def to_dict(self) -> dict[str, object]:
        """Return what ``tl eval --json`` prints; NaN and infinity are None."""
        measured = self.measured
        facts: dict[str, object] = {
            "data": measured.source,
            "split": measured.part,
            "digest": measured.split.digest,
            "missing": list(measured.missing),
            "notes": list(measured.notes),
        }
        if self.own is not None:
            facts["own"] = {"split": self.own.part, "accuracy": self.own.value, "images": self.own.images}
        facts |= as_data(self.report, self.card.classes, measured.images.ids.tolist())
        return {key: finite(value) for key, value in facts.items()}

    def _repr_html_(self) -> str:
        accuracy, count = self.report.scores.accuracy, self.report.scores.accuracy.count
        about = f"{self.model}: {self.measured.source}, {self.measured.part}, {count:,} images"
        rows = (
            (row["class"], row["images"], _percent(row["recall"]), _percent(row["precision"]))
            for row in self.class_rows()
        )
        interval = f"95% interval {accuracy.low:.2%} to {accuracy.high:.2%}"
        table = html_table(("class", "images", "recall", "precision"), rows)
        return f"<p>{escape(about)}<br>accuracy {accuracy.value:.2%} ({interval})</p>{table}"


def _percent(value: object) -> str:
    return f"{value:.1%}" if isinstance(value, float) else "-"


# A file of an earlier version.
_FORMER_CALIBRATION = "calibration.json"
# Writes views of an evaluation to a folder and returns their files.
Draw = Callable[[Evaluation, Path], list[Path]]


def evaluate(
    request: EvaluateRequest,
    observer: Observer | None = None,
    *,
    show: Callable[[Evaluation], None] = lambda evaluation: None,
    draw: Draw = lambda evaluation, folder: [],
) -> Evaluation:
    """Evaluate a saved model, record the results with its run, and return them.

    Args:
        show: called with the results before they are recorded; recording may fail.
        draw: writes tables and pictures to a folder, to be recorded with the results; returns their files.

    Raises:
        RunNotFoundError: there is no such model.
        DataError: the images do not exist, have other classes, or cannot be decoded.
        WeightsError: the saved model is damaged.
        StorageError: the results cannot be written.
        TrackingError: the store cannot be used.
    """
    observer = observer or Observer()
    target = find_model(request.model, request.tracking_uri, observer.warn)
    # Other processes must not delete the run meanwhile.
    with lock_for_reading(target.store, target.run) if isinstance(target, RecordedModel) else nullcontext():
        evaluation = _evaluation(target, request, observer)
        show(evaluation)
        written = [] if request.output is None else _write(request.output, evaluation, draw)
        if request.log and isinstance(target, RecordedModel):
            _record(target, evaluation, draw)
    return replace(evaluation, files=tuple(written))


def _evaluation(target: Target, request: EvaluateRequest, observer: Observer) -> Evaluation:
    classifier, card = registry.restore(target.folder)
    measured = _measure(classifier, card, request, observer)
    own = None
    if not measured.is_own or measured.is_changed:
        own = OwnAccuracy.of(card, target.run.data.metrics if isinstance(target, RecordedModel) else {})
    for message in _warnings(measured, card):
        observer.warn(message)
    if not card.calibration.images and _has_former_calibration(target):
        observer.warn(f"{_FORMER_CALIBRATION} of an earlier version is ignored; tl train now fits the temperature")
    report = make_report(measured.labelled, card.calibration, TASKS[classifier.task])
    return Evaluation(target.name, card, measured, report, own)


def _measure(classifier: Classifier, card: ModelCard, request: EvaluateRequest, observer: Observer) -> Measured:
    return Evaluator(
        classifier,
        card,
        source=request.data,
        data_dir=request.data_dir,
        columns=request.columns,
        device=request.device,
        batch_size=request.batch_size,
        tta=request.tta,
        precision=request.precision,
        workers=request.workers,
        on_bad_image=request.on_bad_image or card.data.on_bad_image,
        max_pixels=request.max_pixels,
        progress=observer.progress,
    ).measure(request.split)


def _has_former_calibration(target: Target) -> bool:
    """Whether ``tl eval`` of an earlier version left a temperature beside the model."""
    if isinstance(target, RecordedModel):
        return target.store.artifact(target.run, f"eval/{_FORMER_CALIBRATION}") is not None
    return (target.folder / _FORMER_CALIBRATION).exists()


def _warnings(measured: Measured, card: ModelCard) -> list[str]:
    """Return why the results may be misleading."""
    warnings = list(measured.notes)
    if measured.is_changed:
        warnings.append(f"the {measured.part} images are not those that the model was trained with")
    if measured.is_own and measured.part == "val":
        warnings.append("the validation images selected this model's epoch, so these results are slightly too good")
    if measured.is_own and measured.part == "train":
        warnings.append("these are the training images: the results measure memorization, not how good the model is")
    if measured.trained_on:
        trained_on, count = measured.trained_on, measured.split.count
        warnings.append(f"the model was trained on {trained_on:,} of these {count:,} images: the results are too good")
    if not measured.is_own and measured.trained_on is None:
        warnings.append("the training images are not available, so it is unknown whether some of these are among them")
    if measured.labelled.alone is not None and (doubt := mirror_doubt(card)):
        warnings.append(doubt)
    if measured.missing:
        warnings.append(
            f"{measured.source} has no images of {some(measured.missing, 8)}; "
            "means over classes are over the other classes"
        )
    return warnings


def _record(target: RecordedModel, evaluation: Evaluation, draw: Draw) -> None:
    """Record an evaluation with its run."""
    store, measured = target.store, evaluation.measured
    folder = store.state_folder(target.run) / evaluations.EVALUATIONS
    try:
        # One process at a time: another tl eval may be writing the same files or recording the same metrics.
        with hold_lock(folder):
            (run,) = store.reload([target.run])
            files = _write(folder / evaluations.evaluation_name(measured), replace(evaluation, own=None), draw)
            evaluations.log_evaluation(store, run, measured, headline(evaluation.report), files)
            if evaluations.is_first_test(run, measured):
                # tl compare looks for the test logits of a run there.
                logits = store.state_folder(run) / evaluations.TEST_LOGITS
                save_logits(logits, measured.labelled, measured.images.ids, evaluation.card.classes)
                evaluations.log_first_test(store, run, evaluation.accuracy, logits)
    except (StorageError, TrackingError) as error:
        message = f"the results are not recorded with the run: {error}; use --no-log to skip recording"
        raise type(error)(message) from error


def _write(folder: Path, evaluation: Evaluation, draw: Draw) -> list[Path]:
    report, logits = folder / "report.json", folder / "logits.npz"
    measured = evaluation.measured
    write_text(report, json.dumps(evaluation.to_dict(), allow_nan=False) + "\n")
    save_logits(logits, measured.labelled, measured.images.ids, evaluation.card.classes)
    return [report, logits, *draw(evaluation, folder)]

"""All metrics of a set of predictions, and the same as plain data."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tl_cli.contract import Calibration
from tl_cli.evaluation.calibration import Reliability, reliability
from tl_cli.evaluation.classification import (
    ClassScore,
    Confusion,
    MacroScores,
    Mistake,
    Report,
    class_scores,
    macro_scores,
    most_confused,
    report,
    worst_mistakes,
)
from tl_cli.evaluation.intervals import Accuracy, Measure, with_interval
from tl_cli.evaluation.logits import LabelledLogits
from tl_cli.evaluation.paired import Paired, compare
from tl_cli.evaluation.task import SINGLE_LABEL, Task

_PAIRS = 20
# The matrix of more classes is mostly zeros.
_DENSE = 1000
_MISTAKES = 24


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """How good a classifier is on one part of the data, and where it fails.

    Attributes:
        scores: accuracy, loss and confusion matrix, of the probabilities with the model's temperature.
        classes: one score per class.
        macro: their means.
        reliability: of the probabilities.
        calibration: the model's temperature.
        uncalibrated: the reliability without the temperature; None if that is 1.
        confused: pairs of classes, the most frequent first.
        mistakes: images, the largest loss first.
        mirrored: the means over each image and its mirror image against the image alone; None without mirror images.
    """

    scores: Report
    classes: list[ClassScore]
    macro: MacroScores
    reliability: Reliability
    calibration: Calibration
    uncalibrated: Reliability | None
    confused: list[Confusion]
    mistakes: list[Mistake]
    mirrored: Paired | None = None


def make_report(labelled: LabelledLogits, calibration: Calibration, task: Task = SINGLE_LABEL) -> EvaluationReport:
    """Return all metrics of at least one prediction.

    Args:
        labelled: logits, before they are divided by the temperature.
    """
    predicted = labelled.scaled(calibration.temperature)
    measured = report(predicted, task)
    return EvaluationReport(
        scores=measured,
        classes=class_scores(measured.confusion),
        macro=macro_scores(measured.confusion),
        reliability=reliability(predicted, task=task),
        calibration=calibration,
        uncalibrated=reliability(labelled, task=task) if calibration.temperature != 1 else None,
        confused=most_confused(measured.confusion, _PAIRS),
        mistakes=worst_mistakes(predicted, _MISTAKES, task),
        mirrored=mirror_gain(labelled, task),
    )


def mirror_gain(labelled: LabelledLogits, task: Task = SINGLE_LABEL) -> Paired | None:
    """Return the means over each image and its mirror image against the image alone; None without mirror images."""
    if labelled.alone is None:
        return None
    alone, mean = (
        task.is_correct(logits, labelled.labels).numpy()[None] for logits in (labelled.alone, labelled.logits)
    )
    return compare(alone, mean)


def headline(report: EvaluationReport) -> dict[str, float]:
    """Return the scalar metrics by name, as they are recorded."""
    numbers = {name: each.value for name, each in _estimates(report).items()}
    numbers["calibration_error"] = report.reliability.ece
    if report.uncalibrated is not None:
        numbers["uncalibrated_error"] = report.uncalibrated.ece
    return numbers


def _estimates(report: EvaluationReport) -> dict[str, Accuracy | Measure]:
    """Return the metrics that have an interval, by name."""
    scores, macro = report.scores, report.macro
    top5 = {"top5_accuracy": scores.top5} if scores.top5 else {}
    means = {"macro_precision": macro.precision, "macro_recall": macro.recall, "macro_f1": macro.f1}
    return {"accuracy": scores.accuracy, **top5, "loss": scores.loss, **means}


def as_data(report: EvaluationReport, classes: Sequence[str], ids: Sequence[str]) -> dict[str, object]:
    """Return the report as plain data for JSON; an unknown end of an interval is NaN.

    Args:
        classes: names, by label.
        ids: of the images, in the order of the logits.
    """
    data: dict[str, object] = {"images": report.scores.accuracy.count}
    for name, estimate in _estimates(report).items():
        data |= with_interval(name, estimate)
    calibration = {**_reliability(report.reliability), "fitted": report.calibration.model_dump()}
    tta = {}
    if report.mirrored is not None:
        gain = with_interval("accuracy_gain", report.mirrored.difference)
        tta = {"tta": {"name": "flip", **gain, "p_value": report.mirrored.p_value}}
    if report.uncalibrated:
        calibration["uncalibrated"] = _reliability(report.uncalibrated)
    return {
        **data,
        **tta,
        "calibration": calibration,
        "classes": list(classes),
        "by_class": class_rows(report, classes),
        **_confusion(report.scores.confusion),
        "most_confused": [
            {
                "true": classes[pair.true],
                "predicted": classes[pair.predicted],
                "images": pair.count,
                "share": pair.share,
            }
            for pair in report.confused
        ],
        "worst_mistakes": [
            {
                "id": ids[each.index],
                "true": classes[each.true],
                "predicted": classes[each.predicted],
                "probability": each.probability,
                "true_probability": each.true_probability,
            }
            for each in report.mistakes
        ],
    }


def _confusion(matrix: np.ndarray) -> dict[str, object]:
    """Return the matrix; for more than 1,000 classes only its non-zero cells: true, predicted, images."""
    if len(matrix) <= _DENSE:
        return {"confusion": matrix.tolist()}
    true, predicted = np.nonzero(matrix)
    return {"confusion_cells": np.stack([true, predicted, matrix[true, predicted]], 1).tolist()}


def class_rows(report: EvaluationReport, classes: Sequence[str]) -> list[dict[str, object]]:
    """Return one row per class, in the order of the labels; what is unknown is None."""
    return [
        {
            "class": name,
            "images": score.images,
            "predicted": score.predicted,
            **with_interval("recall", score.recall),
            **with_interval("precision", score.precision),
            "f1": score.f1,
        }
        for name, score in zip(classes, report.classes, strict=True)
    ]


def _reliability(measured: Reliability) -> dict[str, object]:
    return {
        "error": measured.ece,
        "error_by_chance": measured.chance_ece,
        "bins": [
            {
                "low": each.low,
                "high": each.high,
                "images": each.count,
                "confidence": each.confidence,
                "accuracy": each.correct / each.count,
            }
            for each in measured.bins
        ],
    }

"""All that is said of a set of answers, and the same as plain data."""

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
from tl_cli.evaluation.intervals import Accuracy, Measure
from tl_cli.evaluation.logits import Answers

_PAIRS = 20
# Beyond so many classes a matrix is mostly nothing.
_DENSE = 1000
_MISTAKES = 24


@dataclass(frozen=True, slots=True)
class Judgement:
    """How good a classifier is on one part of the data, and where it fails.

    Attributes:
        report: accuracy, loss and confusion matrix. All of it is about the probabilities that the model gives, with its
            temperature.
        classes: one score a class.
        macro: their means.
        reliability: of its probabilities.
        calibration: the model's temperature.
        uncalibrated: the reliability without it; None where it is 1.
        confused: pairs of classes, the most frequent first.
        mistakes: images, the largest loss first.
    """

    report: Report
    classes: list[ClassScore]
    macro: MacroScores
    reliability: Reliability
    calibration: Calibration
    uncalibrated: Reliability | None
    confused: list[Confusion]
    mistakes: list[Mistake]


def judge(answers: Answers, calibration: Calibration) -> Judgement:
    """Return the judgement of at least one answer.

    Args:
        answers: logits as the network gives them.
    """
    predicted = answers.scaled(calibration.temperature)
    measured = report(predicted)
    return Judgement(
        report=measured,
        classes=class_scores(measured.confusion),
        macro=macro_scores(measured.confusion),
        reliability=reliability(predicted),
        calibration=calibration,
        uncalibrated=reliability(answers) if calibration.temperature != 1 else None,
        confused=most_confused(measured.confusion, _PAIRS),
        mistakes=worst_mistakes(predicted, _MISTAKES),
    )


def headline(judgement: Judgement) -> dict[str, float]:
    """Return the single numbers by name, as they are recorded."""
    measured, macro = judgement.report, judgement.macro
    numbers = {
        "accuracy": measured.accuracy.value,
        "loss": measured.loss.value,
        "macro_precision": macro.precision.value,
        "macro_recall": macro.recall.value,
        "macro_f1": macro.f1.value,
        "calibration_error": judgement.reliability.ece,
    }
    if measured.top5 is not None:
        numbers["top5_accuracy"] = measured.top5.value
    if judgement.uncalibrated is not None:
        numbers["uncalibrated_error"] = judgement.uncalibrated.ece
    return numbers


def as_data(judgement: Judgement, classes: Sequence[str], ids: Sequence[str]) -> dict[str, object]:
    """Return the judgement as what JSON can hold.

    Args:
        classes: names, by label.
        ids: of the images, by their place among the answers.
    """
    measured, macro = judgement.report, judgement.macro
    return {
        "images": measured.accuracy.count,
        **_share("accuracy", measured.accuracy),
        **(_share("top5_accuracy", measured.top5) if measured.top5 else {}),
        **_measure("loss", measured.loss),
        **_measure("macro_precision", macro.precision),
        **_measure("macro_recall", macro.recall),
        **_measure("macro_f1", macro.f1),
        "calibration": {
            **_reliability(judgement.reliability),
            "fitted": judgement.calibration.model_dump(),
            **({"uncalibrated": _reliability(judgement.uncalibrated)} if judgement.uncalibrated else {}),
        },
        "classes": list(classes),
        "by_class": class_rows(judgement, classes),
        **_confusion(measured.confusion),
        "most_confused": [
            {"true": classes[pair.true], "answered": classes[pair.answered], "images": pair.count, "share": pair.share}
            for pair in judgement.confused
        ],
        "worst_mistakes": [
            {
                "id": ids[each.index],
                "true": classes[each.true],
                "answered": classes[each.answered],
                "probability": each.probability,
                "true_probability": each.true_probability,
            }
            for each in judgement.mistakes
        ],
    }


def _confusion(matrix: np.ndarray) -> dict[str, object]:
    """Return the matrix, or of a large one the cells that are not empty: true, answered, images."""
    if len(matrix) <= _DENSE:
        return {"confusion": matrix.tolist()}
    true, answered = np.nonzero(matrix)
    return {"confusion_cells": np.stack([true, answered, matrix[true, answered]], 1).tolist()}


def class_rows(judgement: Judgement, classes: Sequence[str]) -> list[dict[str, object]]:
    """Return one row a class, in the order of the labels; what is unknown is None."""
    return [
        {
            "class": name,
            "images": score.images,
            "answers": score.answers,
            "recall": score.recall.value if score.recall else None,
            "recall_low": score.recall.low if score.recall else None,
            "recall_high": score.recall.high if score.recall else None,
            "precision": score.precision.value if score.precision else None,
            "precision_low": score.precision.low if score.precision else None,
            "precision_high": score.precision.high if score.precision else None,
            "f1": score.f1,
        }
        for name, score in zip(classes, judgement.classes, strict=True)
    ]


def _share(name: str, accuracy: Accuracy) -> dict[str, float | None]:
    return _measure(name, Measure(accuracy.value, accuracy.low, accuracy.high))


def _measure(name: str, measure: Measure) -> dict[str, float | None]:
    low, high = (measure.low, measure.high) if measure.is_known else (None, None)
    return {name: measure.value, f"{name}_low": low, f"{name}_high": high}


def _reliability(found: Reliability) -> dict[str, object]:
    return {
        "error": found.ece,
        "error_by_chance": found.chance_ece,
        "bins": [
            {
                "low": each.low,
                "high": each.high,
                "images": each.count,
                "confidence": each.confidence,
                "accuracy": each.correct / each.count,
            }
            for each in found.bins
        ],
    }

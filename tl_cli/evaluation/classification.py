"""Scores of predicted classes, each with its uncertainty where it is an estimate."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from tl_cli.evaluation.intervals import Accuracy, Measure, mean, wilson
from tl_cli.evaluation.logits import LabelledLogits
from tl_cli.evaluation.task import SINGLE_LABEL, Task

_DRAWS = 1000
# With fewer images per class, means over classes are too far from those of a larger sample for a 95% interval.
_FEWEST_PER_CLASS = 10
# Maximum resampled numbers in memory; more are drawn in parts.
_MOST_IN_MEMORY = 1 << 24


@dataclass(frozen=True, slots=True)
class Report:
    """How good a classifier is on one part of the data.

    Attributes:
        accuracy: top-1, with its interval.
        top5: whether the true class is among the five likeliest; None with five classes or fewer.
        loss: mean cross-entropy, in nats; the interval is Student's.
        confusion: (num_classes, num_classes) int64; rows are the truth, columns the predicted class.
    """

    accuracy: Accuracy
    top5: Accuracy | None
    loss: Measure
    confusion: np.ndarray


@dataclass(frozen=True, slots=True)
class ClassScore:
    """One class.

    Attributes:
        images: of the class.
        predicted: images predicted as this class.
        recall: share of its images that are predicted as this class; None without images.
        precision: share of the predictions of this class that are right; None where it was never predicted.
        f1: harmonic mean of the two, 0 if none was predicted correctly; None without images.
    """

    images: int
    predicted: int
    recall: Accuracy | None
    precision: Accuracy | None
    f1: float | None


@dataclass(frozen=True, slots=True)
class MacroScores:
    """Means over the classes that have images, each class counting as much as any other.

    A class that was never predicted has precision 0, as in scikit-learn. The intervals are basic ones (Davison and
    Hinkley 1997) of 1,000 bootstrap samples of the images, drawn class by class so that none is lost; with fewer than
    ten images per class there are none. The precision has none where a class was predicted fewer than ten times: it is
    0 in the samples that lose those predictions.
    """

    precision: Measure
    recall: Measure
    f1: Measure


@dataclass(frozen=True, slots=True)
class Confusion:
    """A pair of classes that is mixed up.

    Attributes:
        true: index of the class that the images are of.
        predicted: index of the predicted class.
        count: images.
        share: of the images of the true class.
    """

    true: int
    predicted: int
    count: int
    share: float


@dataclass(frozen=True, slots=True)
class Mistake:
    """An image that was classified wrongly.

    Attributes:
        index: of the image, in the order of the logits.
        true: index of its class.
        predicted: index of the predicted class.
        probability: of the predicted class.
        true_probability: of its class.
    """

    index: int
    true: int
    predicted: int
    probability: float
    true_probability: float


def report(labelled: LabelledLogits, task: Task = SINGLE_LABEL) -> Report:
    """Return accuracy, loss and confusion matrix of labelled logits."""
    logits, labels = labelled.logits, labelled.labels
    in_top5 = task.is_among_likeliest(logits, labels, 5)
    return Report(
        accuracy=wilson(int(task.is_correct(logits, labels).sum()), len(labels)),
        top5=None if in_top5 is None else wilson(int(in_top5.sum()), len(labels)),
        loss=mean(task.loss(logits.double(), labels, reduction="none").numpy()),
        confusion=task.confusion(logits, labels).numpy(),
    )


def class_scores(confusion: np.ndarray) -> list[ClassScore]:
    """Return recall, precision and F1 of every class of a confusion matrix."""
    scores = []
    for label, (images, predicted) in enumerate(zip(confusion.sum(1).tolist(), confusion.sum(0).tolist(), strict=True)):
        right = int(confusion[label, label])
        scores.append(
            ClassScore(
                images=images,
                predicted=predicted,
                recall=wilson(right, images) if images else None,
                precision=wilson(right, predicted) if predicted else None,
                f1=2 * right / (images + predicted) if images else None,
            )
        )
    return scores


def macro_scores(confusion: np.ndarray, seed: int | np.random.Generator = 0) -> MacroScores:
    """Return the macro averages with bootstrap intervals.

    Args:
        confusion: (num_classes, num_classes) int64 of at least one image.
        seed: of the bootstrap.
    """
    true, predicted = np.nonzero(confusion)
    counts = confusion[true, predicted]
    generator = np.random.default_rng(seed)
    # Cells come row by row, and a row is a class.
    rows = np.split(counts, np.flatnonzero(np.diff(true)) + 1)
    values = _macro(true, predicted, counts[None], len(confusion))[:, 0]
    if counts.sum() < _FEWEST_PER_CLASS * len(rows):
        precision, recall, f1 = (Measure(float(value), math.nan, math.nan) for value in values)
        return MacroScores(precision, recall, f1)
    size = max(1, _MOST_IN_MEMORY // max(len(counts), len(confusion)))
    drawn = []
    for start in range(0, _DRAWS, size):
        # Resampling images is drawing anew how many of a class fall in each cell that has any.
        draws = [generator.multinomial(row.sum(), row / row.sum(), min(size, _DRAWS - start)) for row in rows]
        drawn.append(_macro(true, predicted, np.concatenate(draws, axis=1), len(confusion)))
    quantiles = np.percentile(np.concatenate(drawn, axis=1), [2.5, 97.5], axis=1).T
    precision, recall, f1 = (_basic(float(value), *each) for value, each in zip(values, quantiles, strict=True))
    if confusion.sum(0)[confusion.any(1)].min() < _FEWEST_PER_CLASS:
        precision = Measure(precision.value, math.nan, math.nan)
    return MacroScores(precision, recall, f1)


def _basic(value: float, low: float, high: float) -> Measure:
    """Return the interval that is the quantiles' mirror image about the estimate, within 0..1 and around it."""
    if low == high:
        return Measure(value, math.nan, math.nan)
    return Measure(value, max(0.0, min(value, 2 * value - high)), min(1.0, max(value, 2 * value - low)))


def most_confused(confusion: np.ndarray, most: int) -> list[Confusion]:
    """Return the pairs of classes that are mixed up most often, the most frequent first."""
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    images = confusion.sum(1)
    cells = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = zip(*np.unravel_index(cells, wrong.shape), strict=True)
    return [
        Confusion(int(true), int(predicted), int(count), float(count / images[true]))
        for true, predicted in pairs
        if (count := wrong[true, predicted])
    ]


def worst_mistakes(labelled: LabelledLogits, most: int, task: Task = SINGLE_LABEL) -> list[Mistake]:
    """Return the most confident wrong predictions: the largest loss first.

    Args:
        task: one whose decision is a single class per image; for any other the list is empty.
    """
    logits, labels = labelled.logits, labelled.labels
    predicted = task.decide(logits)
    if predicted.dim() > 1:
        return []
    # As probabilities, several wrong classes may all round to one.
    losses = task.loss(logits.double(), labels, reduction="none")
    wrong = torch.nonzero(~task.is_correct(logits, labels)).flatten()
    order = wrong[losses[wrong].argsort(descending=True, stable=True)][:most]
    indices = zip(order.tolist(), labels[order].tolist(), predicted[order].tolist(), strict=True)
    return [
        Mistake(index, true, guess, float(row[guess]), float(row[true]))
        for (index, true, guess), row in zip(indices, task.probabilities(logits[order]), strict=True)
    ]


def _macro(true: np.ndarray, predicted: np.ndarray, draws: np.ndarray, num_classes: int) -> np.ndarray:
    """Return macro precision, recall and F1 of each draw, (3, D).

    Args:
        true: (C,) class of each cell.
        predicted: (C,) predicted class of each cell.
        draws: (D, C) images in each cell.
    """
    images, predictions, right = (np.zeros((num_classes, len(draws))) for _ in range(3))
    np.add.at(images, true, draws.T)
    np.add.at(predictions, predicted, draws.T)
    diagonal = true == predicted
    right[true[diagonal]] = draws.T[diagonal]
    is_there = images > 0
    scores = (
        np.divide(right, divisor, out=np.zeros_like(right), where=is_there & (divisor > 0))
        for divisor in (predictions, images, (images + predictions) / 2)
    )
    return np.stack([score.sum(0) / is_there.sum(0) for score in scores])

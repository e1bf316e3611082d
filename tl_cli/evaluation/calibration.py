"""Measures the calibration of a model's probabilities, and fits the temperature that corrects it."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.stats import sem, t
from torch import Tensor

from tl_cli.contract import Calibration
from tl_cli.evaluation.logits import LabelledLogits
from tl_cli.evaluation.task import SINGLE_LABEL, Task

# As in Guo et al. 2017.
_BINS = 15
_TEMPERATURES = (0.01, 100.0)
_DRAWS = 200
_FOLDS = 5
_LEVEL = 0.05
# The gains are skewed, so Student's interval needs enough images: with 10 simulated images, half of the accepted
# temperatures made the loss of other images worse.
_FEWEST = 30
# More images change the temperature by less than 2%, and take seconds at each best epoch; so do many classes.
_MOST, _MOST_LOGITS, _ENOUGH = 5000, 2_000_000, 1000


@dataclass(frozen=True, slots=True)
class Bin:
    """The predictions whose confidence lies in one interval.

    Attributes:
        low: lower bound of the confidence, exclusive except for 0.
        high: upper bound of the confidence, inclusive.
        count: number of images.
        confidence: their mean confidence: the probability of the predicted class.
        correct: number of images that are classified correctly.
    """

    low: float
    high: float
    count: int
    confidence: float
    correct: int


@dataclass(frozen=True, slots=True)
class Reliability:
    """How far confidence is from accuracy.

    Attributes:
        ece: expected calibration error (Naeini et al. 2015), 15 bins of equal width, a fraction.
        chance_ece: what a perfectly calibrated model would have on as many images, from sampling noise.
        bins: those with images.
    """

    ece: float
    chance_ece: float
    bins: tuple[Bin, ...]


def reliability(labelled: LabelledLogits, seed: int = 0, task: Task = SINGLE_LABEL) -> Reliability:
    """Return the reliability diagram and the calibration error of the probabilities.

    Args:
        seed: of the random draws for ``chance_ece``.
    """
    confidence = task.confidence(task.probabilities(labelled.logits.double())).numpy()
    is_correct = task.is_correct(labelled.logits, labelled.labels).numpy()
    # Right-closed, as in the paper; a confidence of exactly 0 is impossible.
    bin_index = np.clip(np.ceil(confidence * _BINS).astype(np.int64) - 1, 0, _BINS - 1)
    counts, sums, correct = (np.bincount(bin_index, weights, _BINS) for weights in (None, confidence, is_correct))
    generator = np.random.default_rng(seed)
    drawn = (generator.random(len(confidence)) < confidence for _ in range(_DRAWS))
    by_chance = [np.abs(np.bincount(bin_index, each, _BINS) - sums).sum() / len(confidence) for each in drawn]
    bins = tuple(
        Bin(number / _BINS, (number + 1) / _BINS, int(count), float(total / count), int(hits))
        for number, (count, total, hits) in enumerate(zip(counts, sums, correct, strict=True))
        if count
    )
    return Reliability(float(np.abs(correct - sums).sum() / len(confidence)), float(np.mean(by_chance)), bins)


def fit_temperature(labelled: LabelledLogits, seed: int = 0, task: Task = SINGLE_LABEL) -> Calibration:
    """Return the temperature with the lowest cross-entropy (Guo et al. 2017) if it is shown to help, otherwise 1.

    It is shown to help if cross-validation lowers the loss by more than noise: each image is evaluated with a
    temperature fitted on the other folds, and the gain per image has a one-sided 95% interval (Student's) above zero.

    Args:
        labelled: of the validation images, which selected the epoch but not the scale of the logits.
        seed: of the folds, and of the subset of very many images.
    """
    most = min(_MOST, max(_ENOUGH, _MOST_LOGITS // labelled.logits.shape[1]))
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(labelled.labels))[:most])
    logits, labels = labelled.logits[order].double(), labelled.labels[order]
    count = len(labels)
    before = task.loss(logits, labels, reduction="none")
    tried = Calibration(images=count, loss=_rounded(before.mean()))
    if count < _FEWEST:
        return tried.model_copy(update={"note": f"{count:,} validation images are too few; {_FEWEST} are needed"})
    if bool(task.is_correct(logits, labels).all()):
        # The likelihood grows without bound as the temperature falls, so there is no best one.
        note = f"all {count:,} validation images are classified correctly, which says nothing about errors"
        return tried.model_copy(update={"note": note})
    after = torch.empty_like(before)
    fold = torch.arange(count) % _FOLDS
    for held_out in (fold == number for number in range(_FOLDS)):
        temperature = _best_temperature(task, logits[~held_out], labels[~held_out])
        after[held_out] = task.loss(logits[held_out] / temperature, labels[held_out], reduction="none")
    tried = tried.model_copy(update={"held_out_loss": _rounded(after.mean())})
    gain = (before - after).numpy()
    if not gain.mean() > t.isf(_LEVEL, count - 1) * sem(gain):
        note = (
            f"on held-out validation images it does not lower the loss by more than noise "
            f"({before.mean():.4f} without, {after.mean():.4f} with)"
        )
        return tried.model_copy(update={"note": note})
    return tried.model_copy(update={"temperature": _rounded(_best_temperature(task, logits, labels)), "note": ""})


def _rounded(value: float | Tensor) -> float:
    """Return the number rounded to six digits: a damaged seventeenth digit might be read as the same number."""
    return float(f"{float(value):.6g}")


def _best_temperature(task: Task, logits: Tensor, labels: Tensor) -> float:
    """Return the temperature of the least loss within ``_TEMPERATURES``."""
    # Convex in 1/T, so with one minimum in log T.
    result = minimize_scalar(
        lambda log_temperature: float(task.loss(logits / math.exp(log_temperature), labels)),
        bounds=[math.log(bound) for bound in _TEMPERATURES],
        method="bounded",
        options={"xatol": 1e-3},
    )
    return math.exp(result.x)

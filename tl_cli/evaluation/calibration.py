"""How far a model's probabilities are from frequencies, and the temperature that corrects them."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.stats import sem, t
from torch import Tensor

from tl_cli.contract import Calibration
from tl_cli.evaluation.logits import Answers
from tl_cli.evaluation.task import SINGLE_LABEL, Task

# Of Guo et al. 2017.
_BINS = 15
_TEMPERATURES = (0.01, 100.0)
_DRAWS = 200
_FOLDS = 5
_LEVEL = 0.05
# The gains are skewed, and Student's interval is of no use with fewer: of the temperatures that 10 simulated images
# accepted, half made the loss of other images worse.
_FEWEST = 30
# More images do not change a temperature by 2%, and take seconds at each best epoch: so do many classes.
_MOST, _MOST_LOGITS, _ENOUGH = 5000, 2_000_000, 1000


@dataclass(frozen=True, slots=True)
class Bin:
    """The answers whose probability lies in one stretch.

    Attributes:
        low: of the probability; itself not within, but for 0.
        high: of the probability, within.
        count: images.
        confidence: mean probability of the answer.
        correct: images whose answer is right.
    """

    low: float
    high: float
    count: int
    confidence: float
    correct: int


@dataclass(frozen=True, slots=True)
class Reliability:
    """How far probabilities are from frequencies.

    Attributes:
        ece: expected calibration error (Naeini et al. 2015), 15 bins of equal width, a fraction.
        chance_ece: what a perfectly calibrated model would show on so many images, by chance alone.
        bins: those that hold images.
    """

    ece: float
    chance_ece: float
    bins: tuple[Bin, ...]


def reliability(answers: Answers, seed: int = 0, task: Task = SINGLE_LABEL) -> Reliability:
    """Return the reliability diagram and the calibration error of the probabilities.

    Args:
        seed: of the draws for ``chance_ece``.
    """
    confidence = task.confidence(task.probabilities(answers.logits.double())).numpy()
    right = task.is_correct(answers.logits, answers.labels).numpy()
    # Right-closed, as in the paper; a confidence of exactly 0 cannot be.
    place = np.clip(np.ceil(confidence * _BINS).astype(np.int64) - 1, 0, _BINS - 1)
    counts, sums = (np.bincount(place, weights, _BINS) for weights in (None, confidence))
    correct = np.bincount(place, right, _BINS)
    generator = np.random.default_rng(seed)
    drawn = (generator.random(len(confidence)) < confidence for _ in range(_DRAWS))
    by_chance = [np.abs(np.bincount(place, each, _BINS) - sums).sum() / len(confidence) for each in drawn]
    bins = tuple(
        Bin(number / _BINS, (number + 1) / _BINS, int(count), float(total / count), int(hits))
        for number, (count, total, hits) in enumerate(zip(counts, sums, correct, strict=True))
        if count
    )
    return Reliability(float(np.abs(correct - sums).sum() / len(confidence)), float(np.mean(by_chance)), bins)


def fit_temperature(answers: Answers, seed: int = 0, task: Task = SINGLE_LABEL) -> Calibration:
    """Return the temperature of the least cross-entropy (Guo et al. 2017) if it is shown to help, otherwise 1.

    It is shown to help if cross-validation lowers the loss by more than noise: each image is judged with a temperature
    fitted on the other folds, and the gain, image by image, has a one-sided 95% interval (Student's) above zero.

    Args:
        answers: on validation images, which chose the epoch and nothing else of the logits' scale.
        seed: of the folds, and of the choice among very many images.
    """
    most = min(_MOST, max(_ENOUGH, _MOST_LOGITS // answers.logits.shape[1]))
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(answers.labels))[:most])
    logits, labels = answers.logits[order].double(), answers.labels[order]
    count = len(labels)
    before = task.loss(logits, labels, reduction="none")
    tried = Calibration(images=count, loss=_rounded(before.mean()))
    if count < _FEWEST:
        return tried.model_copy(update={"note": f"{count:,} validation images are too few; {_FEWEST} are needed"})
    if bool(task.is_correct(logits, labels).all()):
        # The likelihood grows without bound as the temperature falls: nothing says how sure to be.
        note = f"all {count:,} validation images are classified correctly, which says nothing about errors"
        return tried.model_copy(update={"note": note})
    after = torch.empty_like(before)
    fold = torch.arange(count) % _FOLDS
    for held_out in (fold == number for number in range(_FOLDS)):
        temperature = _best(task, logits[~held_out], labels[~held_out])
        after[held_out] = task.loss(logits[held_out] / temperature, labels[held_out], reduction="none")
    tried = tried.model_copy(update={"held_out_loss": _rounded(after.mean())})
    gain = (before - after).numpy()
    if not gain.mean() > t.isf(_LEVEL, count - 1) * sem(gain):
        note = (
            f"on held-out validation images it does not lower the loss by more than noise "
            f"({before.mean():.4f} without, {after.mean():.4f} with)"
        )
        return tried.model_copy(update={"note": note})
    return tried.model_copy(update={"temperature": _rounded(_best(task, logits, labels)), "note": ""})


def _rounded(value: float | Tensor) -> float:
    """Return a number of six digits: of one with seventeen, a damaged last digit may be the same number when read."""
    return float(f"{float(value):.6g}")


def _best(task: Task, logits: Tensor, labels: Tensor) -> float:
    """Return the temperature of the least loss within ``_TEMPERATURES``."""
    # Convex in 1/T, so with one minimum in log T.
    found = minimize_scalar(
        lambda log_temperature: float(task.loss(logits / math.exp(log_temperature), labels)),
        bounds=[math.log(bound) for bound in _TEMPERATURES],
        method="bounded",
        options={"xatol": 1e-3},
    )
    return math.exp(found.x)

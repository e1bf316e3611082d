"""Whether probabilities mean what they say, and the one number that mends them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from pydantic import Field, ValidationError
from scipy.optimize import minimize_scalar

from tl_cli.contract import Fact, Split
from tl_cli.errors import WeightsError
from tl_cli.evaluation.logits import Answers

FILE = "calibration.json"
# Of Guo et al. 2017.
_BINS = 15
_TEMPERATURES = (0.1, 10.0)
_DRAWS = 200


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


class Calibration(Fact):
    """A temperature, and what it was fitted on: the content of ``calibration.json``.

    Attributes:
        temperature: logits are divided by it before the softmax.
        weights_sha256: of the weights that it belongs to.
        source: of the images.
        split: digest and number of the images: validation.
        loss: cross-entropy on them without it, in nats.
        calibrated_loss: the same with it.
        note: why it is 1 where it could not be fitted; else empty.
    """

    temperature: float = Field(gt=0)
    weights_sha256: str
    source: str
    split: Split
    loss: float
    calibrated_loss: float
    note: str = ""


def reliability(answers: Answers, temperature: float = 1.0, seed: int = 0) -> Reliability:
    """Return the reliability diagram and the calibration error of answers whose logits are divided by ``temperature``.

    Args:
        seed: of the draws for ``chance_ece``.
    """
    probabilities = (answers.logits.double() / temperature).softmax(1)
    confidence, predicted = (values.numpy() for values in probabilities.max(1))
    right = predicted == answers.labels.numpy()
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


def fit_temperature(answers: Answers) -> tuple[float, str]:
    """Return the temperature of the least cross-entropy (Guo et al. 2017), and why it is 1 if it cannot be fitted.

    Args:
        answers: on validation images, which chose the epoch and nothing else of the logits' scale.
    """
    logits, labels = answers.logits.double(), answers.labels
    if bool((logits.argmax(1) == labels).all()):
        # The likelihood grows without bound as the temperature falls: nothing says how sure to be.
        return 1.0, f"all {len(labels):,} validation images are classified correctly, which says nothing about errors"

    def loss(log_temperature: float) -> float:
        return float(F.cross_entropy(logits / np.exp(log_temperature), labels))

    # Convex in 1/T, so with one minimum in log T.
    found = minimize_scalar(loss, bounds=tuple(np.log(_TEMPERATURES)), method="bounded", options={"xatol": 1e-6})
    temperature = float(np.exp(found.x))
    low, high = _TEMPERATURES
    if not 1.01 * low < temperature < high / 1.01:
        return 1.0, f"the best one would lie outside {low:g} to {high:g}: the probabilities say next to nothing"
    return temperature, ""


def mean_loss(answers: Answers, temperature: float = 1.0) -> float:
    """Return the mean cross-entropy of logits divided by ``temperature``, in nats."""
    return float(F.cross_entropy(answers.logits.to(torch.float64) / temperature, answers.labels))


def read(path: Path, weights_sha256: str) -> Calibration | None:
    """Return a kept temperature; None where there is none for these weights.

    Raises:
        WeightsError: the file is no such thing.
    """
    if not path.exists():
        return None
    try:
        found = Calibration.model_validate_json(path.read_bytes())
    except (ValidationError, OSError) as error:
        raise WeightsError(f"{path} cannot be read: {error}") from error
    return found if found.weights_sha256 == weights_sha256 else None

"""Estimates from a finite number of images, with their 95% intervals. No torch here."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest, sem, t


@dataclass(frozen=True, slots=True)
class Accuracy:
    """A fraction of images, with its 95% interval.

    Attributes:
        correct: images classified correctly.
        count: all images.
        low: lower end of the interval, a fraction.
        high: upper end.
    """

    correct: int
    count: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """The fraction of correct images."""
        return self.correct / self.count


@dataclass(frozen=True, slots=True)
class Measure:
    """An estimate with its 95% interval, which is NaN where there are too few images for one."""

    value: float
    low: float
    high: float


def with_interval(name: str, estimate: Accuracy | Measure | None) -> dict[str, float | None]:
    """Return an estimate and both ends of its interval, for JSON: ``name``, ``name_low`` and ``name_high``."""
    values = (None, None, None) if estimate is None else (estimate.value, estimate.low, estimate.high)
    return dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))


def wilson(correct: int, count: int) -> Accuracy:
    """Return an accuracy with its 95% Wilson score interval (Wilson 1927), by SciPy."""
    interval = binomtest(correct, count).proportion_ci(0.95, method="wilson")
    return Accuracy(correct, count, float(interval.low), float(interval.high))


def mean(values: Sequence[float] | np.ndarray) -> Measure:
    """Return a mean with Student's 95% interval; a single value has none."""
    center = float(np.mean(values))
    half = float(sem(values) * t.ppf(0.975, len(values) - 1)) if len(values) > 1 else math.nan
    return Measure(center, center - half, center + half)

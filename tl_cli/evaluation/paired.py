"""Whether one classifier is better than another, tested image by image on the same images."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binomtest, t

from tl_cli.evaluation.intervals import Measure, wilson

_DRAWS = 10_000
LEVEL = 0.05
_SMALLEST_P = 1e-300


@dataclass(frozen=True, slots=True)
class McNemar:
    """McNemar's exact test (1947): do both classifiers have equally many images right that the other has wrong?

    Attributes:
        only_first: images that only the first has right.
        only_second: images that only the second has right.
        p_value: two-sided, exact binomial.
    """

    only_first: int
    only_second: int
    p_value: float


@dataclass(frozen=True, slots=True)
class Paired:
    """The second classifier against the first, on the same images.

    Attributes:
        difference: accuracy of the second minus that of the first, a fraction, with its 95% interval.
        p_value: of McNemar's test, or of Student's with several trainings.
        mcnemar: None where either was trained with several seeds: it ignores the spread between trainings.
        images: number of images that both were evaluated on.
        seeds: number of trainings of the first and of the second.
    """

    difference: Measure
    p_value: float
    mcnemar: McNemar | None
    images: int
    seeds: tuple[int, int]

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval excludes a difference of zero."""
        return self.difference.low > 0 or self.difference.high < 0


def mcnemar(first: np.ndarray, second: np.ndarray) -> McNemar:
    """Return the exact test of two classifiers.

    Args:
        first: (N,) bool, which images the first classifies correctly.
        second: (N,) bool, the same for the second.
    """
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    either = only_first + only_second
    p_value = float(binomtest(only_first, either).pvalue) if either else 1.0
    return McNemar(only_first, only_second, p_value)


def compare(first: np.ndarray, second: np.ndarray, seed: int = 0) -> Paired:
    """Return the paired comparison of two classifiers, each trained once or with several seeds.

    With one training each: percentiles of 10,000 bootstrap samples of the images, and McNemar's test. With several:
    Student's interval and test over both images and trainings, as both are samples (a bootstrap of so few trainings
    would give too narrow an interval).

    Args:
        first: (S, N) bool, which images each training of the first classifies correctly.
        second: (T, N) bool, the same for the second.
        seed: of the bootstrap.
    """
    images, seeds = first.shape[1], (len(first), len(second))
    if max(seeds) > 1:
        difference, p_value = _student([first, second])
        return Paired(difference, p_value, None, images, seeds)
    test = mcnemar(first[0], second[0])
    # Resampling the images is the same as drawing the counts of three kinds of image.
    rest = images - test.only_first - test.only_second
    shares = np.array([test.only_first, test.only_second, rest]) / images
    drawn = np.random.default_rng(seed).multinomial(images, shares, _DRAWS)
    low, high = np.percentile((drawn[:, 1] - drawn[:, 0]) / images, [2.5, 97.5])
    value = (test.only_second - test.only_first) / images
    return Paired(Measure(value, float(low), float(high)), test.p_value, test, images, seeds)


def mean_accuracy(right: np.ndarray) -> Measure:
    """Return the mean accuracy of several trainings with Student's interval, or of one with Wilson's.

    Args:
        right: (S, N) bool, which images each training classifies correctly.
    """
    if len(right) == 1:
        one = wilson(int(right.sum()), right.shape[1])
        return Measure(one.value, one.low, one.high)
    estimate, _ = _student([right])
    # Never narrower than the interval of the images alone.
    least = wilson(round(estimate.value * right.shape[1]), right.shape[1])
    return Measure(estimate.value, max(0.0, min(estimate.low, least.low)), min(1.0, max(estimate.high, least.high)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values adjusted for multiple tests (Holm 1979)."""
    order = np.argsort(p_values, kind="stable")
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order.tolist()):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def _student(models: Sequence[np.ndarray]) -> tuple[Measure, float]:
    """Return the mean accuracy of one model, or the difference between two, with its interval and p-value.

    Two sources of noise, each with Student's interval: the images (variance of the mean over images, N - 1 degrees of
    freedom) and the trainings (one variance pooled over the models as in Student's two-sample test, times 1/S + 1/T,
    S + T - 2 degrees of freedom: a model that was trained once is assumed to vary as the other one does). The half
    widths add in quadrature (Banerjee 1960, Sankhya 22, 357-358), which covers at least 95% whatever the ratio of the
    two. Satterthwaite's degrees of freedom do not: with 2 trainings against 1 and a tenth of the variance from images,
    13% of comparisons of equal models are significant. The p-value is the level whose interval ends at zero.

    Args:
        models: (S, N) bool each, one of them with S > 1.
    """
    images = models[0].shape[1]
    # Integers, so that equal values have a variance of exactly zero.
    scale = math.prod(map(len, models))
    signs = (-1, 1) if len(models) == 2 else (1,)
    per_image = sum(sign * (scale // len(right)) * right.sum(0) for sign, right in zip(signs, models, strict=True))
    value = float(np.mean(per_image)) / scale
    if images < 2:
        return Measure(value, -1.0, 1.0), 1.0
    freedom = sum(len(right) - 1 for right in models)
    squares = sum((len(right) - 1) * right.sum(1).var(ddof=1) for right in models if len(right) > 1)
    parts = [
        (float(np.var(per_image, ddof=1)) / scale**2 / images, images - 1),
        (float(squares) / images**2 / freedom * sum(1 / len(right) for right in models), freedom),
    ]
    if not any(variance for variance, _ in parts):
        # All images and trainings agree, so the interval depends on the number of images alone.
        share = wilson(images, images).low
        low, high = sorted((value * share, value))
        return Measure(value, low, high), 1.0 if value == 0 else float(binomtest(images, images).pvalue)
    half = _half_width(parts, LEVEL)
    return Measure(value, max(-1.0, value - half), min(1.0, value + half)), _p_value(parts, abs(value))


def _half_width(parts: Sequence[tuple[float, int]], level: float) -> float:
    """Return the half width of the interval at ``1 - level`` from variances and their degrees of freedom."""
    return math.hypot(*(math.sqrt(variance) * float(t.isf(level / 2, freedom)) for variance, freedom in parts))


def _p_value(parts: Sequence[tuple[float, int]], value: float) -> float:
    """Return the level at which the interval of ``value`` > 0 ends at zero."""
    if value == 0:
        return 1.0
    # The p-value lies between those of the two degrees of freedom with the sum of the variances.
    error = math.sqrt(sum(variance for variance, _ in parts))
    levels = [2 * float(t.sf(value / error, freedom)) for _, freedom in parts]
    low, high = max(0.99 * min(levels), _SMALLEST_P), min(1.01 * max(levels), 1.0)
    if _half_width(parts, low) <= value:
        return low
    return math.exp(brentq(lambda level: _half_width(parts, math.exp(level)) - value, math.log(low), math.log(high)))

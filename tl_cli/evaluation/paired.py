"""Whether one classifier is better than another, judged image by image on the same images."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest, t

from tl_cli.evaluation.metrics import Measure, wilson

_DRAWS = 10_000
LEVEL = 0.05


@dataclass(frozen=True, slots=True)
class McNemar:
    """McNemar's exact test (1947): of the images that only one classifier has right, is it as often one as the other?

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
        difference: accuracy of the second less that of the first, a fraction, with its 95% interval.
        p_value: that a difference so large comes by chance: McNemar's, or Student's with several trainings.
        mcnemar: None where either was trained with several seeds: it knows nothing of the spread between trainings.
        images: that both were judged on.
        seeds: trainings of the first and of the second.
    """

    difference: Measure
    p_value: float
    mcnemar: McNemar | None
    images: int
    seeds: tuple[int, int]

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval leaves no difference out."""
        return self.difference.low > 0 or self.difference.high < 0


def mcnemar(first: np.ndarray, second: np.ndarray) -> McNemar:
    """Return the exact test of two classifiers.

    Args:
        first: (N,) bool, which images the first has right.
        second: (N,) bool, of the same images.
    """
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    either = only_first + only_second
    p_value = float(binomtest(only_first, either).pvalue) if either else 1.0
    return McNemar(only_first, only_second, p_value)


def compare(first: np.ndarray, second: np.ndarray, seed: int = 0) -> Paired:
    """Return the paired comparison of two classifiers, each trained once or with several seeds.

    Of one training each: percentiles of 10,000 bootstrap samples of the images, and McNemar's test. Of several:
    Student's interval and test, over images and trainings alike, for another training would have come out differently,
    as other images would (a bootstrap of so few trainings would be too sure).

    Args:
        first: (S, N) bool, which images each training of the first has right.
        second: (T, N) bool, of the same images.
        seed: of the bootstrap.
    """
    images, seeds = first.shape[1], (len(first), len(second))
    if max(seeds) > 1:
        difference, p_value = _student([first, second])
        return Paired(difference, p_value, None, images, seeds)
    test = mcnemar(first[0], second[0])
    # Resampling images is drawing anew how many fall in each of three kinds.
    rest = images - test.only_first - test.only_second
    shares = np.array([test.only_first, test.only_second, rest]) / images
    drawn = np.random.default_rng(seed).multinomial(images, shares, _DRAWS)
    low, high = np.percentile((drawn[:, 1] - drawn[:, 0]) / images, [2.5, 97.5])
    value = (test.only_second - test.only_first) / images
    return Paired(Measure(value, float(low), float(high)), test.p_value, test, images, seeds)


def mean_accuracy(right: np.ndarray) -> Measure:
    """Return the mean accuracy of several trainings with Student's interval over both; of one, with Wilson's.

    Args:
        right: (S, N) bool, which images each training has right.
    """
    if len(right) == 1:
        one = wilson(int(right.sum()), right.shape[1])
        return Measure(one.value, one.low, one.high)
    found, _ = _student([right])
    # Never surer than the images alone allow.
    least = wilson(round(found.value * right.shape[1]), right.shape[1])
    return Measure(found.value, max(0.0, min(found.low, least.low)), min(1.0, max(found.high, least.high)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values adjusted for being several (Holm 1979)."""
    order = np.argsort(p_values, kind="stable")
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order.tolist()):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted


def _student(models: Sequence[np.ndarray]) -> tuple[Measure, float]:
    """Return the mean accuracy of one model, or how much that of the second of two is higher, and the p-value.

    The variance is that of the mean over images plus, for each model, that of the mean over its trainings, with
    degrees of freedom by Welch and Satterthwaite. A model that was trained once is taken to vary as the other does.

    Args:
        models: (S, N) bool each.
    """
    if models[0].shape[1] < 2:
        value = float(models[-1].mean() - (models[0].mean() if len(models) == 2 else 0.0))
        return Measure(value, -1.0, 1.0), 1.0
    per_image = models[-1].mean(0) - (models[0].mean(0) if len(models) == 2 else 0.0)
    spreads = [(right.mean(1).var(ddof=1), len(right) - 1) for right in models if len(right) > 1]
    widest = max(spreads)
    parts = [(per_image.var(ddof=1) / len(per_image), len(per_image) - 1)]
    for right in models:
        variance, freedom = (right.mean(1).var(ddof=1), len(right) - 1) if len(right) > 1 else widest
        parts.append((variance / len(right), freedom))
    value = float(per_image.mean())
    total = float(sum(variance for variance, _ in parts))
    if total == 0:
        # All images and trainings are alike, and only their number says how sure that is.
        images = len(per_image)
        share = wilson(images, images).low
        low, high = sorted((value * share, value))
        return Measure(value, low, high), 1.0 if value == 0 else float(binomtest(images, images).pvalue)
    freedom = total**2 / sum(variance**2 / degrees for variance, degrees in parts)
    error = math.sqrt(total)
    half = float(t.ppf(0.975, freedom)) * error
    return Measure(value, value - half, value + half), float(2 * t.sf(abs(value) / error, freedom))

"""Whether one classifier is better than another, judged image by image on the same images."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

from tl_cli.evaluation.metrics import Measure, wilson

_DRAWS = 10_000
_MOST_AT_ONCE = 1 << 22
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
        difference: accuracy of the second less that of the first, a fraction, with its bootstrap interval.
        mcnemar: None where either was trained with several seeds: it knows nothing of the spread between trainings.
        images: that both were judged on.
        seeds: trainings of the first and of the second.
    """

    difference: Measure
    mcnemar: McNemar | None
    images: int
    seeds: tuple[int, int]

    @property
    def is_claimed(self) -> bool:
        """Whether a difference can be claimed: the interval leaves zero out, and the test agrees where there is one."""
        excludes = self.difference.low > 0 or self.difference.high < 0
        return excludes and (self.mcnemar is None or self.mcnemar.p_value < LEVEL)


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

    The interval is of 10,000 bootstrap samples, of the images and, where there are several, of the trainings too:
    another training would have come out differently, as other images would.

    Args:
        first: (S, N) bool, which images each training of the first has right.
        second: (T, N) bool, of the same images.
        seed: of the bootstrap.
    """
    images = first.shape[1]
    value = float(second.mean() - first.mean())
    generator = np.random.default_rng(seed)
    differences = []
    for shares in _drawn(np.concatenate([first, second]), generator):
        ones, others = (_resampled(part, generator) for part in np.split(shares, [len(first)], axis=1))
        differences.append(others - ones)
    low, high = np.percentile(np.concatenate(differences), [2.5, 97.5])
    is_single = len(first) == len(second) == 1
    return Paired(
        difference=Measure(value, float(low), float(high)),
        mcnemar=mcnemar(first[0], second[0]) if is_single else None,
        images=images,
        seeds=(len(first), len(second)),
    )


def mean_accuracy(right: np.ndarray, seed: int = 0) -> Measure:
    """Return the mean accuracy of several trainings, its interval over images and trainings alike; of one, Wilson's.

    Args:
        right: (S, N) bool, which images each training has right.
        seed: of the bootstrap.
    """
    if len(right) == 1:
        one = wilson(int(right.sum()), right.shape[1])
        return Measure(one.value, one.low, one.high)
    shares = np.concatenate(list(_drawn(right, np.random.default_rng(seed))))
    means = _resampled(shares, np.random.default_rng(seed + 1))
    low, high = np.percentile(means, [2.5, 97.5])
    return Measure(float(right.mean()), float(low), float(high))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values adjusted for being several (Holm 1979)."""
    order = np.argsort(p_values, kind="stable")
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order.tolist()):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted


def _drawn(right: np.ndarray, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield the accuracies (D, S) of all trainings (S, N) on bootstrap samples of the images."""
    # Images on which all trainings agree alike are one kind, and resampling is drawing anew how many there are of each.
    kinds, counts = np.unique(right.T, axis=0, return_counts=True)
    images = right.shape[1]
    at_once = max(1, _MOST_AT_ONCE // len(kinds))
    for start in range(0, _DRAWS, at_once):
        drawn = generator.multinomial(images, counts / images, min(at_once, _DRAWS - start))
        yield drawn @ kinds.astype(np.float64) / images


def _resampled(shares: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return the mean accuracy of as many trainings, drawn anew: (D,) of (D, trainings)."""
    chosen = generator.integers(0, shares.shape[1], shares.shape)
    means: np.ndarray = np.take_along_axis(shares, chosen, 1).mean(1)
    return means

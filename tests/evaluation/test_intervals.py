import math

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from tl_cli.evaluation.intervals import Accuracy, mean, wilson


@pytest.mark.parametrize(("correct", "count"), [(0, 10), (10, 10), (8630, 10_000), (177, 180)])
def test_the_interval_of_an_accuracy_is_wilsons(correct: int, count: int) -> None:
    z, p = 1.959963984540054, correct / count
    centre = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * np.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    measured = wilson(correct, count)
    assert measured.low == pytest.approx(max(0, centre - half), abs=1e-9)
    assert measured.high == pytest.approx(min(1, centre + half), abs=1e-9)


def test_the_interval_of_a_mean_is_students() -> None:
    values = np.random.default_rng(0).normal(2.0, 0.5, 30)
    expected = ttest_1samp(values, 0.0).confidence_interval(0.95)
    measured = mean(values)
    assert measured.value == pytest.approx(sum(values) / 30)
    assert (measured.low, measured.high) == (pytest.approx(expected.low), pytest.approx(expected.high))


def test_a_single_value_has_no_interval() -> None:
    alone = mean([0.5])
    assert alone.value == 0.5
    assert math.isnan(alone.low)
    assert math.isnan(alone.high)


def test_an_accuracy_is_a_fraction() -> None:
    assert Accuracy(3, 4, 0.3, 0.95).value == 0.75

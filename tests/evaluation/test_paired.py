import math

import numpy as np
import pytest
from scipy.stats import binom, ttest_1samp, ttest_ind, ttest_rel

from tl_cli.evaluation.paired import compare, holm, mcnemar, mean_accuracy


def predictions(both: int, only_first: int, only_second: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    first = [True] * (both + only_first) + [False] * (only_second + neither)
    second = [True] * both + [False] * only_first + [True] * only_second + [False] * neither
    return np.array(first), np.array(second)


@pytest.mark.parametrize(("only_first", "only_second"), [(5, 15), (1, 0), (12, 12), (40, 22)])
def test_mcnemars_test_is_the_binomial_by_hand(only_first: int, only_second: int) -> None:
    comparison = mcnemar(*predictions(100, only_first, only_second, 30))
    total, fewer = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(total, k) for k in range(fewer + 1)) / 2**total
    assert (comparison.only_first, comparison.only_second) == (only_first, only_second)
    assert comparison.p_value == pytest.approx(min(1.0, 2 * tail))


def test_equal_predictions_have_no_difference() -> None:
    first, _ = predictions(80, 20, 0, 0)
    comparison = compare(first[None], first[None])
    assert (comparison.difference.value, comparison.difference.low, comparison.difference.high) == (0, 0, 0)
    assert comparison.mcnemar.p_value == 1
    assert not comparison.excludes_zero


def test_the_interval_is_that_of_a_paired_difference() -> None:
    first, second = predictions(8300, 330, 407, 963)
    comparison = compare(first[None], second[None])
    # The blog's 0.77 points on 10,000 images: variance of a mean of -1, 0 and 1.
    share = 77 / 10_000
    half = 1.96 * math.sqrt(((330 + 407) / 10_000 - share**2) / 10_000)
    assert comparison.difference.value == pytest.approx(share)
    assert comparison.difference.low == pytest.approx(share - half, abs=3e-4)
    assert comparison.difference.high == pytest.approx(share + half, abs=3e-4)
    assert comparison.excludes_zero
    assert comparison.p_value == comparison.mcnemar.p_value < 0.01
    assert compare(second[None], first[None]).difference.value == pytest.approx(-share)


def test_a_difference_is_not_significant_where_more_predictions_disagree() -> None:
    first, second = predictions(7500, 1130, 1207, 163)
    comparison = compare(first[None], second[None])
    assert comparison.difference.value == pytest.approx(0.0077)
    assert comparison.difference.low < 0 < comparison.difference.high
    assert comparison.mcnemar.p_value > 0.05
    assert not comparison.excludes_zero


def test_several_trainings_widen_the_interval_by_their_own_spread() -> None:
    truth = np.random.default_rng(0).random((1, 100_000))
    first = np.concatenate([truth < accuracy for accuracy in (0.75, 0.78, 0.80)])
    second = np.concatenate([truth < accuracy for accuracy in (0.76, 0.82, 0.88)])
    comparison = compare(first, second)
    assert comparison.mcnemar is None
    assert comparison.seeds == (3, 3)
    # With so many images only the trainings are left, and it is Student's test of their accuracies.
    student = ttest_ind(second.mean(1), first.mean(1))
    assert comparison.p_value == pytest.approx(student.pvalue, rel=0.02)
    interval = student.confidence_interval()
    assert (comparison.difference.low, comparison.difference.high) == pytest.approx(
        (interval.low, interval.high), rel=0.02
    )
    assert not comparison.excludes_zero
    # A comparison of one training each would be significant.
    assert compare(first[:1], second[1:2]).excludes_zero


def trainings_without_image_noise(*shares: float) -> np.ndarray:
    """Each of 100 images is classified correctly by exactly one training, so that only the trainings differ."""
    assert sum(shares) == pytest.approx(1)
    owner = np.repeat(np.arange(len(shares)), [round(100 * share) for share in shares])
    return np.arange(len(shares))[:, None] == owner


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((0.4, 0.6), (1.0,)),
        ((1.0,), (0.35, 0.65)),
        ((0.3, 0.3, 0.4), (0.45, 0.55)),
        ((0.3, 0.31, 0.39), (0.32, 0.33, 0.35)),
        ((0.05, 0.15, 0.2, 0.25, 0.35), (1.0,)),
    ],
)
def test_without_image_noise_it_is_students_test_with_pooled_variance(
    first: tuple[float, ...], second: tuple[float, ...]
) -> None:
    comparison = compare(trainings_without_image_noise(*first), trainings_without_image_noise(*second))
    student = ttest_ind(second, first, equal_var=True)
    assert comparison.p_value == pytest.approx(student.pvalue, rel=1e-9)
    interval = student.confidence_interval()
    # No difference of two accuracies is larger than 1.
    expected = max(-1.0, interval.low), min(1.0, interval.high)
    assert (comparison.difference.low, comparison.difference.high) == pytest.approx(expected, rel=1e-9)


def test_the_two_sources_of_noise_add_in_quadrature() -> None:
    generator = np.random.default_rng(3)
    first, second = generator.random((3, 400)) < 0.6, generator.random((2, 400)) < [[0.7], [0.75]]
    comparison = compare(first, second)

    def half(level: float) -> float:
        over_images = ttest_1samp(second.mean(0) - first.mean(0), 0).confidence_interval(1 - level)
        over_trainings = ttest_ind(second.mean(1), first.mean(1)).confidence_interval(1 - level)
        return math.hypot(over_images.high - over_images.low, over_trainings.high - over_trainings.low) / 2

    value = second.mean() - first.mean()
    assert comparison.difference.value == pytest.approx(value)
    assert (comparison.difference.low, comparison.difference.high) == pytest.approx(
        (value - half(0.05), value + half(0.05))
    )
    # The interval at the level of the p-value ends at zero.
    assert half(comparison.p_value) == pytest.approx(abs(value))


@pytest.mark.parametrize("spread", [pytest.param(0.004, marks=pytest.mark.slow), 0.02])
@pytest.mark.parametrize(
    # Two trainings against one are the case with the fewest degrees of freedom.
    ("seeds", "others"),
    [(2, 1), *(pytest.param(*pair, marks=pytest.mark.slow) for pair in ((3, 2), (3, 3), (5, 1)))],
)
def test_equal_models_differ_significantly_in_at_most_5_percent(seeds: int, others: int, spread: float) -> None:
    draws, images = 500, 500
    generator = np.random.default_rng(0)

    def trained(count: int, truth: np.ndarray) -> np.ndarray:
        return truth < 0.8 + spread * generator.normal(size=(count, 1))

    comparisons = [
        compare(trained(seeds, truth), trained(others, truth)) for truth in generator.random((draws, images))
    ]
    # One in a thousand tests with a true level of 5% would exceed this.
    assert sum(each.p_value < 0.05 for each in comparisons) <= binom.ppf(0.999, draws, 0.05)
    assert sum(each.excludes_zero for each in comparisons) <= binom.ppf(0.999, draws, 0.05)


@pytest.mark.parametrize("seeds", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_the_interval_of_a_mean_accuracy_contains_the_true_one(seeds: int) -> None:
    draws, images = 1000, 2000
    generator = np.random.default_rng(1)
    missed = 0
    for truth in generator.random((draws, images)):
        estimate = mean_accuracy(truth < 0.8 + 0.03 * generator.normal(size=(seeds, 1)))
        missed += not estimate.low <= 0.8 <= estimate.high
    assert missed <= binom.ppf(0.999, draws, 0.05)


def test_the_interval_of_trainings_without_noise_depends_on_the_number_of_images() -> None:
    # 2/3 of the trainings are right on each image: no image noise except rounding.
    turns = np.arange(3)[:, None] != np.arange(60) % 3
    comparison = compare(turns, np.ones((2, 60), bool))
    assert comparison.difference.value == pytest.approx(1 / 3)
    # Wilson's lower end for 60 of 60.
    assert comparison.difference.low == pytest.approx(1 / 3 / (1 + 1.96**2 / 60), rel=1e-4)
    assert comparison.difference.high == pytest.approx(1 / 3)
    assert comparison.p_value == pytest.approx(2 * 0.5**60)


def test_the_interval_of_equal_trainings_is_that_of_the_images() -> None:
    first, second = predictions(830, 33, 60, 77)
    comparison = compare(np.stack([first] * 4), np.stack([second] * 4))
    paired = ttest_rel(second.astype(float), first.astype(float))
    assert comparison.p_value == pytest.approx(paired.pvalue, rel=1e-6)
    interval = paired.confidence_interval()
    assert (comparison.difference.low, comparison.difference.high) == pytest.approx((interval.low, interval.high))
    same = compare(np.stack([first] * 2), np.stack([first] * 2))
    assert (same.p_value, same.difference.low, same.difference.high) == (1, 0, 0)


def test_a_single_training_is_assumed_to_vary_as_the_others() -> None:
    truth = np.random.default_rng(0).random((1, 50_000))
    several = np.concatenate([truth < accuracy for accuracy in (0.76, 0.80, 0.84)])
    comparison = compare(truth < 0.7, several)
    spread = several.mean(1).std(ddof=1)
    error = math.sqrt(spread**2 + spread**2 / 3)
    assert comparison.difference.high - comparison.difference.value > 1.96 * error


@pytest.mark.parametrize("shares", [(0.9,), (0.9, 0.9, 0.9), (0.85, 0.9, 0.95)])
def test_the_width_of_the_interval_of_an_accuracy(shares: tuple[float, ...]) -> None:
    random = np.random.default_rng(1).random(3000)
    right = np.stack([random < share for share in shares])
    estimate = mean_accuracy(right)
    assert estimate.value == pytest.approx(right.mean())
    images = 2 * 1.96 * math.sqrt(0.9 * 0.1 / 3000)
    if len(set(shares)) == 1:
        assert estimate.high - estimate.low == pytest.approx(images, rel=0.06)
    else:
        # Student's t with two degrees of freedom, 97.5%.
        assert estimate.high == pytest.approx(
            min(1, estimate.value + 4.3 * np.std(right.mean(1), ddof=1) / 3**0.5), abs=0.01
        )


def test_few_images_show_no_significant_difference() -> None:
    for images in (1, 2, 4):
        comparison = compare(np.zeros((2, images), bool), np.ones((2, images), bool))
        assert comparison.p_value > 0.05
        assert comparison.difference.value == 1
    alike = mean_accuracy(np.ones((3, 5), bool))
    assert alike.low == pytest.approx(mean_accuracy(np.ones((1, 5), bool)).low)


def test_p_values_of_several_pairs_are_adjusted_by_holm() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []

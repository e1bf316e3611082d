import math

import numpy as np
import pytest

from tl_cli.evaluation.paired import compare, holm, mcnemar, mean_accuracy


def answers(both: int, only_first: int, only_second: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    first = [True] * (both + only_first) + [False] * (only_second + neither)
    second = [True] * both + [False] * only_first + [True] * only_second + [False] * neither
    return np.array(first), np.array(second)


@pytest.mark.parametrize(("only_first", "only_second"), [(5, 15), (1, 0), (12, 12), (40, 22)])
def test_mcnemars_test_is_the_binomial_by_hand(only_first: int, only_second: int) -> None:
    found = mcnemar(*answers(100, only_first, only_second, 30))
    total, fewer = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(total, k) for k in range(fewer + 1)) / 2**total
    assert (found.only_first, found.only_second) == (only_first, only_second)
    assert found.p_value == pytest.approx(min(1.0, 2 * tail))


def test_what_agrees_everywhere_differs_by_nothing() -> None:
    first, _ = answers(80, 20, 0, 0)
    found = compare(first[None], first[None])
    assert (found.difference.value, found.difference.low, found.difference.high) == (0, 0, 0)
    assert found.mcnemar.p_value == 1
    assert not found.is_claimed


def test_the_interval_is_that_of_a_paired_difference() -> None:
    first, second = answers(8300, 330, 407, 963)
    found = compare(first[None], second[None])
    # The blog's 0.77 points on 10,000 images: variance of a mean of -1, 0 and 1.
    share = 77 / 10_000
    half = 1.96 * math.sqrt(((330 + 407) / 10_000 - share**2) / 10_000)
    assert found.difference.value == pytest.approx(share)
    assert found.difference.low == pytest.approx(share - half, abs=3e-4)
    assert found.difference.high == pytest.approx(share + half, abs=3e-4)
    assert found.is_claimed
    assert compare(second[None], first[None]).difference.value == pytest.approx(-share)


def test_the_same_difference_cannot_be_claimed_where_more_is_disputed() -> None:
    first, second = answers(7500, 1130, 1207, 163)
    found = compare(first[None], second[None])
    assert found.difference.value == pytest.approx(0.0077)
    assert found.difference.low < 0 < found.difference.high
    assert found.mcnemar.p_value > 0.05
    assert not found.is_claimed


def test_several_trainings_widen_the_interval_by_their_own_spread() -> None:
    random = np.random.default_rng(0)
    truth = random.random((1, 2000))
    steady = np.concatenate([truth < 0.8] * 3)
    shaky = np.concatenate([truth < accuracy for accuracy in (0.76, 0.82, 0.88)])
    alone = compare(steady[:1], shaky[1:2])
    several = compare(steady, shaky)
    assert several.difference.value == pytest.approx(float(shaky.mean() - steady.mean()))
    assert several.mcnemar is None
    assert several.seeds == (3, 3)
    assert several.difference.high - several.difference.low > 2 * (alone.difference.high - alone.difference.low)
    # Means of three drawn from three: the variance of the trainings is a third of theirs, the images' hardly matters.
    spread = np.std([each.mean() for each in shaky]) / math.sqrt(3)
    assert several.difference.high - several.difference.value == pytest.approx(1.96 * spread, rel=0.25)


def test_the_interval_of_one_training_is_wilsons_and_of_equal_ones_as_wide() -> None:
    right = np.random.default_rng(1).random(3000) < 0.9
    one = mean_accuracy(right[None])
    three = mean_accuracy(np.stack([right] * 3))
    p, n = right.mean(), 3000
    assert one.value == three.value == pytest.approx(p)
    assert one.high - one.low == pytest.approx(2 * 1.96 * math.sqrt(p * (1 - p) / n), rel=0.02)
    assert three.high - three.low == pytest.approx(one.high - one.low, rel=0.06)


def test_p_values_of_several_pairs_are_adjusted_by_holm() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []

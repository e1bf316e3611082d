"""Random numbers are functions of a seed and counters, and different seeds have different numbers."""

from itertools import combinations, product

import numpy as np
import pytest
import torch
from scipy import stats

from tests.support.splitmix import SplitMix64, reference
from tl_cli.data.augment.mixing import mix
from tl_cli.data.augment.settings import Stream, uniform
from tl_cli.data.batches import balanced_order, epoch_order
from tl_cli.models.zoo import registry
from tl_cli.randomness import Purpose, generator, mixed, splitmix64

# Outputs for seed 1234567 from Rosetta Code, of the author's C code (https://prng.di.unimi.it/splitmix64.c).
PUBLISHED = (6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821)
SEEDS = (0, 1, 2, 3, (1 << 32) - 1, 1 << 32, (1 << 63) - 2, (1 << 63) - 1)


def test_splitmix64_gives_the_published_outputs() -> None:
    expected = SplitMix64(1234567)
    assert tuple(expected.next() for _ in PUBLISHED) == PUBLISHED
    states = [(1234567 + number * 0x9E3779B97F4A7C15) % 2**64 for number in range(5)]
    assert tuple(splitmix64(state) for state in states) == PUBLISHED
    assert splitmix64(np.array(states, dtype=np.uint64)).tolist() == list(PUBLISHED)


@pytest.mark.parametrize("seed", [*SEEDS, -1, -(1 << 63), (1 << 64) - 1])
def test_augmentation_equals_the_reference_for_seed_epoch_stream_turn_and_index(seed: int) -> None:
    indices = np.array([0, 1, 7, 50_000, (1 << 40) + 3])
    for epoch, stream, turn in ((1, Stream.FLIP, 0), (2, Stream.HUE, 0), (300, Stream.ERASE_LEFT, 9)):
        key = reference(seed, Purpose.AUGMENTATION, epoch, stream, turn)
        bits = [SplitMix64(SplitMix64((key + int(index)) % 2**64).next()).next() for index in indices]
        assert uniform(seed, epoch, indices, stream, turn).tolist() == [each // 2**11 / 2**53 for each in bits]
        assert mixed(seed, Purpose.DROPOUT, epoch) == reference(seed, Purpose.DROPOUT, epoch)


GRID = list(product(SEEDS, (0, 1, 2, 3), (Stream.FLIP, Stream.CROP_TOP, Stream.VIEW, Stream.OP), (0, 1, 2)))


def test_no_two_series_of_augmentation_share_a_number() -> None:
    indices = np.arange(200)
    series = np.stack([uniform(seed, epoch, indices, stream, turn) for seed, epoch, stream, turn in GRID])
    # 76,800 numbers of 53 bits: that any two are equal by chance has a probability of 3e-7.
    assert len(np.unique(series)) == series.size


def test_series_of_neighbouring_seeds_epochs_and_turns_do_not_correlate() -> None:
    count = 5000
    series = np.stack(
        [
            uniform(seed, epoch, np.arange(count), stream, turn)
            for seed, epoch, stream, turn in product((0, 1, 2), (1, 2, 3), (Stream.FLIP, Stream.CROP_TOP), (0, 1))
        ]
    )
    bound = len(list(combinations(series, 2)))
    # Bonferroni over all pairs and lags: independent series pass with a probability of 99.9%, and the draws are fixed.
    lags = (0, 1, 2)
    largest = stats.norm.isf(0.001 / 2 / (bound * len(lags))) / np.sqrt(count)
    for lag in lags:
        correlation = np.corrcoef(series, np.roll(series, lag, axis=1))[: len(series), len(series) :]
        off = ~np.eye(len(series), dtype=bool)
        assert abs(correlation[off]).max() < largest


@pytest.mark.parametrize("seed", SEEDS)
def test_augmentation_is_uniform(seed: int) -> None:
    whole = np.concatenate([uniform(seed, epoch, np.arange(5000), Stream.HUE) for epoch in (1, 2)])
    # Eight seeds: independent uniform draws pass all with a probability of 99%, and the draws are fixed.
    assert stats.kstest(whole, "uniform").pvalue > 0.01 / len(SEEDS)


def test_numbers_of_one_image_in_successive_epochs_are_uniform_too() -> None:
    numbers = np.concatenate([uniform(5, epoch, np.arange(3), Stream.FLIP) for epoch in range(2000)])
    assert stats.kstest(numbers, "uniform").pvalue > 0.01


def test_orders_depend_on_seed_and_epoch_alone() -> None:
    orders = [epoch_order(50, seed, epoch) for seed, epoch in product(SEEDS, range(4))]
    labels = np.arange(50) % 3
    orders += [balanced_order(labels, seed, epoch)[0] for seed, epoch in product(SEEDS, range(4))]
    assert len(np.unique(orders, axis=0)) == len(orders)
    # Expected: the positions of an image in two orders are independent.
    ranks = np.stack([np.argsort(epoch_order(500, seed, epoch)) for seed, epoch in product(range(4), range(4))])
    correlation = np.corrcoef(ranks)[~np.eye(len(ranks), dtype=bool)]
    assert abs(correlation).max() < stats.norm.isf(0.001 / 2 / (len(ranks) * (len(ranks) - 1) / 2)) / np.sqrt(499)


def test_mixing_depends_on_seed_and_step_alone() -> None:
    inputs, labels = torch.zeros(12, 3, 2, 2), torch.arange(12)
    targets = [
        mix(inputs, labels, 12, mixup=1.0, cutmix=0.0, seed=seed, step=step)[1]
        for seed, step in product(SEEDS, range(6))
    ]
    # An image whose partner is another one keeps the batch's share of its own class.
    assert len({float(shares.diagonal().min()) for shares in targets}) == len(targets)


def test_dropout_differs_for_every_seed_and_step() -> None:
    steps = [*range(1, 200), *range(1_000_000, 1_000_010), *range(2_000_000, 2_000_010)]
    drawn = [mixed(seed, Purpose.DROPOUT, step) for seed, step in product(SEEDS, steps)]
    # torch's generator on the CPU takes the low 32 bits: 1,752 of them are all different with a probability of 99.96%.
    assert len({bits % 2**32 for bits in drawn}) == len(drawn)


def test_each_purpose_has_separate_random_numbers() -> None:
    drawn = [generator(seed, purpose, 1).random(100) for seed, purpose in product((0, 1), Purpose)]
    assert len(np.unique(drawn)) == 100 * len(drawn)


def test_new_models_of_different_seeds_differ_beyond_32_bits() -> None:
    seeds = (0, 1, 1 << 32, (1 << 32) + 1, (1 << 63) - 1)
    weights = [
        next(registry.create("timm/test_efficientnet", 3, weights="none", seed=seed).model.parameters())
        for seed in seeds
    ]
    assert all(not torch.equal(one, other) for one, other in combinations(weights, 2))
    # Smaller seeds give the numbers of earlier versions, as saved models are compared with their initial weights.
    torch.manual_seed(1)
    assert torch.equal(weights[1], next(registry.build("timm/test_efficientnet", 3).parameters()))

from types import SimpleNamespace

import numpy as np

from tests.support.noise_images import INDICES
from tl_cli.data.augment.settings import Augmentation, Stream, augmentation, uniform


def test_the_numbers_of_the_streams_equal_those_of_earlier_versions() -> None:
    """A resumed run continues the augmentation of the version that started it."""
    streams = "FLIP CROP_TOP CROP_LEFT BRIGHTNESS CONTRAST SATURATION HUE ORDER ANGLE AREA RATIO VIEW"
    assert [stream.name for stream in Stream][:12] == streams.split()
    assert [int(stream) for stream in Stream] == list(range(len(Stream)))


def test_an_images_augmentation_depends_on_seed_epoch_and_index_alone() -> None:
    whole = uniform(5, 3, INDICES, Stream.HUE)
    parts = np.concatenate([uniform(5, 3, part, Stream.HUE) for part in np.array_split(INDICES, 7)])
    assert (whole == parts).all()
    for other in (
        uniform(6, 3, INDICES, Stream.HUE),
        uniform(5, 4, INDICES, Stream.HUE),
        uniform(5, 3, INDICES, Stream.ANGLE),
    ):
        assert not (whole == other).any()


def test_the_numbers_are_uniform_and_unrelated() -> None:
    numbers = np.stack([uniform(0, epoch, np.arange(20_000), Stream.FLIP) for epoch in range(4)])
    counts, _ = np.histogram(numbers, bins=20, range=(0, 1))
    assert abs(counts / counts.mean() - 1).max() < 0.06
    assert abs(np.corrcoef(numbers) - np.eye(4)).max() < 0.03
    assert abs(np.corrcoef(numbers[0, 1:], numbers[0, :-1])[0, 1]) < 0.03


def test_only_moves_is_false_if_a_color_changes() -> None:
    assert Augmentation(shift=0.2, min_area=0.5).only_moves
    for changed in (Augmentation(hue=0.1), Augmentation(rotation=1), Augmentation(auto_augment="randaugment")):
        assert not changed.only_moves
    assert not Augmentation(random_erasing=0.1).only_moves


def test_options_of_a_run_replace_those_of_a_preset() -> None:
    config = SimpleNamespace(auto_augment="trivialaugment", random_erasing=0.25, epochs=3)
    changed = augmentation("flip-crop", config)
    assert (changed.min_area, changed.auto_augment, changed.random_erasing) == (0.35, "trivialaugment", 0.25)

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv

from tl_cli.data import augmentation as augment
from tl_cli.data.augmentation import Augmentation, Stream

RNG = np.random.default_rng(0)
COUNT = 48
IMAGES = torch.from_numpy(RNG.integers(0, 256, (COUNT, 3, 32, 40), dtype=np.uint8))
INDICES = np.arange(COUNT) * 7


def worst(ours: torch.Tensor, theirs: list[torch.Tensor]) -> int:
    return int((ours.int() - torch.stack(theirs).int()).abs().max())


@pytest.mark.parametrize(
    ("kind", "operation", "amounts"),
    [
        (0, tv.adjust_brightness, RNG.uniform(0.5, 1.5, COUNT)),
        (1, tv.adjust_contrast, RNG.uniform(0.5, 1.5, COUNT)),
        (2, tv.adjust_saturation, RNG.uniform(0.5, 1.5, COUNT)),
        (3, tv.adjust_hue, RNG.uniform(-0.5, 0.5, COUNT)),
    ],
)
def test_each_colour_change_is_torchvisions(kind: int, operation, amounts: np.ndarray) -> None:
    factors = [np.ones(COUNT), np.ones(COUNT), np.ones(COUNT), np.zeros(COUNT)]
    factors[kind] = amounts
    ours = augment.recolour(IMAGES, tuple(factors), np.tile(np.arange(4), (COUNT, 1)))
    theirs = [operation(image, float(amount)) for image, amount in zip(IMAGES, amounts, strict=True)]
    if kind != 3:
        theirs = [tv.adjust_hue(image, 0.0) for image in theirs]
    assert worst(ours, theirs) <= 1


def test_the_order_of_colour_changes_is_each_images_own() -> None:
    factors = (RNG.uniform(0.8, 1.2, COUNT), RNG.uniform(0.8, 1.2, COUNT), np.ones(COUNT), np.zeros(COUNT))
    orders = np.array([[0, 1, 2, 3] if index % 2 else [1, 0, 2, 3] for index in range(COUNT)])
    ours = augment.recolour(IMAGES, factors, orders)
    operations = (tv.adjust_brightness, tv.adjust_contrast)
    theirs = []
    for image, order, *amounts in zip(IMAGES, orders, factors[0], factors[1], strict=True):
        for kind in order[:2]:
            image = operations[kind](image, float(amounts[kind]))
        theirs.append(image)
    assert worst(ours, theirs) <= 1


def test_rotation_is_torchvisions() -> None:
    degrees = RNG.uniform(-15, 15, COUNT)
    theirs = [tv.rotate(image, float(angle)) for image, angle in zip(IMAGES, degrees, strict=True)]
    assert worst(augment.rotate(IMAGES, degrees), theirs) == 0


@pytest.mark.parametrize("size", [16, 64])
def test_random_resized_crops_are_torchvisions(size: int) -> None:
    boxes = augment.crop_boxes(Augmentation(min_area=0.2), 3, 1, INDICES, 32, 40)
    theirs = [
        tv.resized_crop(image, *box.tolist(), [size, size], antialias=True)
        for image, box in zip(IMAGES, boxes, strict=True)
    ]
    assert worst(augment.resized_crops(IMAGES, boxes, size), theirs) <= 1
    assert len(np.unique(boxes, axis=0)) > COUNT // 2


def test_shift_and_flip_is_a_padded_crop() -> None:
    settings = Augmentation(shift=0.125)
    moved = augment.shift_and_flip(IMAGES, settings, 1, 2, INDICES)
    padded = tv.pad(IMAGES, [5, 4])
    flips = augment.uniform(1, 2, INDICES, Stream.FLIP) < 0.5
    down = np.floor(augment.uniform(1, 2, INDICES, Stream.CROP_TOP) * 9).astype(int)
    right = np.floor(augment.uniform(1, 2, INDICES, Stream.CROP_LEFT) * 11).astype(int)
    theirs = [tv.crop(padded[i], int(down[i]), int(right[i]), 32, 40) for i in range(COUNT)]
    theirs = [tv.horizontal_flip(image) if flip else image for image, flip in zip(theirs, flips, strict=True)]
    assert worst(moved, theirs) == 0
    assert 0 < flips.sum() < COUNT


def test_no_augmentation_changes_nothing() -> None:
    nothing = Augmentation(flip=False)
    assert torch.equal(augment.shift_and_flip(IMAGES, nothing, 0, 1, INDICES), IMAGES)
    assert torch.equal(augment.recolour_and_rotate(IMAGES, nothing, 0, 1, INDICES), IMAGES)


def test_an_images_augmentation_depends_on_seed_epoch_and_index_alone() -> None:
    whole = augment.uniform(5, 3, INDICES, Stream.HUE)
    parts = np.concatenate([augment.uniform(5, 3, part, Stream.HUE) for part in np.array_split(INDICES, 7)])
    assert (whole == parts).all()
    for other in (
        augment.uniform(6, 3, INDICES, Stream.HUE),
        augment.uniform(5, 4, INDICES, Stream.HUE),
        augment.uniform(5, 3, INDICES, Stream.ANGLE),
    ):
        assert not (whole == other).any()


def test_the_numbers_are_uniform_and_unrelated() -> None:
    numbers = np.stack([augment.uniform(0, epoch, np.arange(20_000), Stream.FLIP) for epoch in range(4)])
    counts, _ = np.histogram(numbers, bins=20, range=(0, 1))
    assert abs(counts / counts.mean() - 1).max() < 0.06
    assert abs(np.corrcoef(numbers) - np.eye(4)).max() < 0.03
    assert abs(np.corrcoef(numbers[0, 1:], numbers[0, :-1])[0, 1]) < 0.03

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
import torchvision.transforms.v2.functional as tv

from tests.support.noise_images import COUNT, IMAGES, INDICES, largest_difference
from tests.support.ties import assert_nearest, source_places
from tl_cli.data.augment import geometry
from tl_cli.data.augment.settings import Augmentation, Border, Stream, uniform

RNG = np.random.default_rng(0)


def test_rotation_is_torchvisions() -> None:
    degrees = RNG.uniform(-15, 15, COUNT)
    for ours, image, angle in zip(geometry.warp(IMAGES, geometry.rotations(degrees)), IMAGES, degrees, strict=True):
        assert_nearest(ours, tv.rotate(image, float(angle)), image, source_places(32, 40, angle=-float(angle)))


@pytest.mark.parametrize("turns", [-2, -1, 1, 2, 3])
def test_a_quarter_turn_moves_every_pixel_exactly(turns: int) -> None:
    square = IMAGES[:, :, :, :32]
    assert torch.equal(
        geometry.warp(square, geometry.rotations(np.full(COUNT, 90.0 * turns))), torch.rot90(square, turns, (2, 3))
    )


def test_a_coordinate_midway_between_two_pixels_is_rounded_up() -> None:
    matrices = np.tile([[1.0, 0, 0.5], [0, 1, -0.5]], (COUNT, 1, 1))
    expected = torch.zeros_like(IMAGES)
    expected[..., :-1] = IMAGES[..., 1:]
    assert torch.equal(geometry.warp(IMAGES, matrices), expected)


@pytest.mark.parametrize("size", [16, 64])
def test_random_resized_crops_are_torchvisions(size: int) -> None:
    boxes = geometry.crop_boxes(Augmentation(min_area=0.2), 3, 1, INDICES, 32, 40)
    theirs = [
        tv.resized_crop(image, *box.tolist(), [size, size], antialias=True)
        for image, box in zip(IMAGES, boxes, strict=True)
    ]
    ours = geometry.resized_crops(IMAGES, boxes, size)
    assert largest_difference(ours, theirs) <= 1
    exact = torch.cat(
        [
            F.interpolate(image[None, :, top : top + height, left : left + width].double(), (size, size), mode="bilinear",
                          antialias=True)
            for image, (top, left, height, width) in zip(IMAGES, boxes.tolist(), strict=True)
        ]
    )  # fmt: skip
    # The nearest level, except within a tenth of the middle between two.
    assert (ours.double() - exact).abs().max() < 0.6
    assert len(np.unique(boxes, axis=0)) > COUNT // 2


def test_a_random_resized_crop_does_not_depend_on_the_batch_and_keeps_one_color() -> None:
    boxes = geometry.crop_boxes(Augmentation(min_area=0.1), 4, 1, INDICES, 32, 40)
    alone = [geometry.resized_crops(IMAGES[i : i + 1], boxes[i : i + 1], 24) for i in range(COUNT)]
    assert torch.equal(geometry.resized_crops(IMAGES, boxes, 24), torch.cat(alone))
    for level in (1, 128, 255):
        plain = torch.full_like(IMAGES, level)
        assert (geometry.resized_crops(plain, boxes, 24) == level).all()


@pytest.mark.parametrize(("border", "padding"), [("black", "constant"), ("reflect", "reflect")])
def test_shift_and_flip_is_a_padded_crop(border: Border, padding: str) -> None:
    settings = Augmentation(shift=0.125, border=border)
    moved = geometry.shift_and_flip(IMAGES, settings, 1, 2, INDICES)
    padded = tv.pad(IMAGES, [5, 4], padding_mode=padding)
    flips = uniform(1, 2, INDICES, Stream.FLIP) < 0.5
    down = np.floor(uniform(1, 2, INDICES, Stream.CROP_TOP) * 9).astype(int)
    right = np.floor(uniform(1, 2, INDICES, Stream.CROP_LEFT) * 11).astype(int)
    theirs = [tv.crop(padded[i], int(down[i]), int(right[i]), 32, 40) for i in range(COUNT)]
    theirs = [tv.horizontal_flip(image) if flip else image for image, flip in zip(theirs, flips, strict=True)]
    assert largest_difference(moved, theirs) == 0
    assert 0 < flips.sum() < COUNT


@pytest.mark.parametrize("size", [(32, 32), (20, 33)])
def test_an_affine_map_equals_torchvisions(size: tuple[int, int]) -> None:
    height, width = size
    images = IMAGES[:, :, :height, :32].repeat(1, 1, 1, 2)[..., :width]
    matrices = geometry.rotations(np.linspace(-80, 80, COUNT))
    matrices[:, 0, 2], matrices[:, 1, 2] = 3, -2
    # The inverse map of a rotation by -angle about the centre after a translation t is R x - R t.
    angles = np.deg2rad(np.linspace(-80, 80, COUNT))
    shifts = np.stack([-3 * np.cos(angles) + 2 * np.sin(angles), 3 * np.sin(angles) + 2 * np.cos(angles)], 1)
    moved = geometry.warp(images, matrices)
    for ours, image, angle, shift in zip(moved, images, np.rad2deg(angles), shifts.tolist(), strict=True):
        theirs = tv.affine(image, -float(angle), shift, 1.0, [0.0, 0.0])
        assert_nearest(ours, theirs, image, source_places(height, width, angle=-float(angle), translate=tuple(shift)))


def test_large_images_are_shifted_equally_in_a_batch_and_alone() -> None:
    images = IMAGES[:5].repeat(1, 1, 10, 10)
    matrices = geometry.rotations(np.linspace(-40, 40, 5))
    alone = [geometry.warp(images[i : i + 1], matrices[i : i + 1]) for i in range(5)]
    assert torch.equal(geometry.warp(images, matrices), torch.cat(alone))


ERASING = Augmentation(random_erasing=0.5)
FILL = (124, 116, 104)

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
import torchvision.transforms.v2.functional as tv
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv

from tests.data.augmented import digest
from tests.data.ties import NEAR, assert_levels, assert_nearest, is_near_cut, luma, source_places
from tl_cli.data.augment import transforms as augment
from tl_cli.data.augment.transforms import Augmentation, Stream

RNG = np.random.default_rng(0)
COUNT = 48
IMAGES = torch.from_numpy(RNG.integers(0, 256, (COUNT, 3, 32, 40), dtype=np.uint8))
INDICES = np.arange(COUNT) * 7


def worst(ours: torch.Tensor, theirs: list[torch.Tensor]) -> int:
    return int((ours.int() - torch.stack(theirs).int()).abs().max())


def exact_colours(kind: int, images: np.ndarray, amounts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the values (B, 3, H, W) that are cut to levels, in float64, and where torchvision's grey is near a tie."""
    levels, amount = images.astype(np.float64), amounts.reshape(-1, 1, 1, 1)
    if kind == 3:
        hsv = rgb_to_hsv(np.moveaxis(levels / 255, 1, -1))
        hsv[..., 0] = (hsv[..., 0] + amounts.reshape(-1, 1, 1)) % 1
        return np.moveaxis(hsv_to_rgb(hsv), -1, 1) * (256 - 1e-3), np.zeros((1, 1, 1, 1), dtype=bool)
    grey, is_tie = luma(levels) // 10_000, luma(levels) % 10_000 == 0
    others = (0.0, grey.mean((1, 2, 3), keepdims=True), grey)[kind]
    return amount * levels + (1 - amount) * others, is_tie & (kind == 2)


CHANGES = [
    (0, tv.adjust_brightness, RNG.uniform(0.5, 1.5, COUNT)),
    (1, tv.adjust_contrast, RNG.uniform(0.5, 1.5, COUNT)),
    (2, tv.adjust_saturation, RNG.uniform(0.5, 1.5, COUNT)),
    (3, tv.adjust_hue, RNG.uniform(-0.5, 0.5, COUNT)),
]


@pytest.mark.parametrize(("kind", "operation", "amounts"), CHANGES)
def test_each_colour_change_is_torchvisions(kind: int, operation, amounts: np.ndarray) -> None:
    factors = [np.ones(COUNT), np.ones(COUNT), np.ones(COUNT), np.zeros(COUNT)]
    factors[kind] = amounts
    ours = augment.recolour(IMAGES, tuple(factors), np.tile(np.arange(4), (COUNT, 1)))
    theirs = [operation(image, float(amount)) for image, amount in zip(IMAGES, amounts, strict=True)]
    exact, is_tie = exact_colours(kind, IMAGES.numpy(), amounts)
    # A pixel whose grey falls to the other level moves the mean of its image by no more than this.
    tolerance = NEAR + (kind == 1) * (luma(IMAGES.numpy()) % 10_000 == 0).mean((1, 2, 3), keepdims=True)
    assert_levels(ours, torch.stack(theirs), is_near_cut(exact, tolerance) | is_tie)


def test_the_order_of_colour_changes_is_each_images_own() -> None:
    factors = (RNG.uniform(0.8, 1.2, COUNT), RNG.uniform(0.8, 1.2, COUNT), np.ones(COUNT), np.zeros(COUNT))
    orders = np.array([[0, 1, 2, 3] if index % 2 else [1, 0, 2, 3] for index in range(COUNT)])
    ours = augment.recolour(IMAGES, factors, orders)
    brightened = augment.brightness(IMAGES, augment.per_image(factors[0], IMAGES.device))
    contrasted = augment.contrast(IMAGES, augment.per_image(factors[1], IMAGES.device))
    for index, (kind, between) in enumerate(
        (1, brightened) if index % 2 else (0, contrasted) for index in range(COUNT)
    ):
        amount = factors[kind][index : index + 1]
        theirs = CHANGES[kind][1](between[index], float(amount[0]))
        exact, _ = exact_colours(kind, between[index : index + 1].numpy(), amount)
        ties = (luma(between[index].numpy()) % 10_000 == 0).mean()
        assert_levels(ours[index], theirs, is_near_cut(exact[0], NEAR + ties))


def test_greys_and_means_do_not_depend_on_the_order_of_a_sum() -> None:
    image = np.random.default_rng(1).integers(200, 256, (1, 3, 600, 700), dtype=np.uint8)
    ours = augment.contrast(torch.from_numpy(image), torch.zeros(1, 1, 1, 1))
    assert ours.unique().tolist() == [int((luma(image) // 10_000).mean())]
    greys = np.arange(256, dtype=np.uint8).reshape(1, 1, 1, -1).repeat(3, 1)
    ours = augment.saturation(torch.from_numpy(greys), torch.zeros(1, 1, 1, 1))
    assert ours[0, 0, 0].tolist() == [9999 * level // 10_000 for level in range(256)]


def test_rotation_is_torchvisions() -> None:
    degrees = RNG.uniform(-15, 15, COUNT)
    for ours, image, angle in zip(augment.rotate(IMAGES, degrees), IMAGES, degrees, strict=True):
        assert_nearest(ours, tv.rotate(image, float(angle)), image, source_places(32, 40, angle=-float(angle)))


@pytest.mark.parametrize("turns", [-2, -1, 1, 2, 3])
def test_a_quarter_turn_moves_every_pixel_to_its_place(turns: int) -> None:
    square = IMAGES[:, :, :, :32]
    assert torch.equal(augment.rotate(square, np.full(COUNT, 90.0 * turns)), torch.rot90(square, turns, (2, 3)))


def test_a_place_midway_between_two_pixels_is_the_later_ones() -> None:
    matrices = np.tile([[1.0, 0, 0.5], [0, 1, -0.5]], (COUNT, 1, 1))
    expected = torch.zeros_like(IMAGES)
    expected[..., :-1] = IMAGES[..., 1:]
    assert torch.equal(augment.warp(IMAGES, matrices), expected)


@pytest.mark.parametrize("size", [16, 64])
def test_random_resized_crops_are_torchvisions(size: int) -> None:
    boxes = augment.crop_boxes(Augmentation(min_area=0.2), 3, 1, INDICES, 32, 40)
    theirs = [
        tv.resized_crop(image, *box.tolist(), [size, size], antialias=True)
        for image, box in zip(IMAGES, boxes, strict=True)
    ]
    ours = augment.resized_crops(IMAGES, boxes, size)
    assert worst(ours, theirs) <= 1
    exact = torch.cat(
        [
            F.interpolate(image[None, :, top : top + height, left : left + width].double(), (size, size), mode="bilinear",
                          antialias=True)
            for image, (top, left, height, width) in zip(IMAGES, boxes.tolist(), strict=True)
        ]
    )  # fmt: skip
    # The nearest level, but within a tenth of the middle between two.
    assert (ours.double() - exact).abs().max() < 0.6
    assert len(np.unique(boxes, axis=0)) > COUNT // 2


def test_a_random_resized_crop_does_not_depend_on_the_batch_and_keeps_one_colour() -> None:
    boxes = augment.crop_boxes(Augmentation(min_area=0.1), 4, 1, INDICES, 32, 40)
    alone = [augment.resized_crops(IMAGES[i : i + 1], boxes[i : i + 1], 24) for i in range(COUNT)]
    assert torch.equal(augment.resized_crops(IMAGES, boxes, 24), torch.cat(alone))
    for level in (1, 128, 255):
        plain = torch.full_like(IMAGES, level)
        assert (augment.resized_crops(plain, boxes, 24) == level).all()


@pytest.mark.parametrize(("border", "padding"), [("black", "constant"), ("reflect", "reflect")])
def test_shift_and_flip_is_a_padded_crop(border: augment.Border, padding: str) -> None:
    settings = Augmentation(shift=0.125, border=border)
    moved = augment.shift_and_flip(IMAGES, settings, 1, 2, INDICES)
    padded = tv.pad(IMAGES, [5, 4], padding_mode=padding)
    flips = augment.uniform(1, 2, INDICES, Stream.FLIP) < 0.5
    down = np.floor(augment.uniform(1, 2, INDICES, Stream.CROP_TOP) * 9).astype(int)
    right = np.floor(augment.uniform(1, 2, INDICES, Stream.CROP_LEFT) * 11).astype(int)
    theirs = [tv.crop(padded[i], int(down[i]), int(right[i]), 32, 40) for i in range(COUNT)]
    theirs = [tv.horizontal_flip(image) if flip else image for image, flip in zip(theirs, flips, strict=True)]
    assert worst(moved, theirs) == 0
    assert 0 < flips.sum() < COUNT


@pytest.mark.parametrize("size", [(32, 32), (20, 33)])
def test_a_map_of_places_is_torchvisions_affine(size: tuple[int, int]) -> None:
    height, width = size
    images = IMAGES[:, :, :height, :32].repeat(1, 1, 1, 2)[..., :width]
    matrices = augment.rotations(np.linspace(-80, 80, COUNT))
    matrices[:, 0, 2], matrices[:, 1, 2] = 3, -2
    # The inverse map of a rotation by -angle about the centre after a translation t is R x - R t.
    angles = np.deg2rad(np.linspace(-80, 80, COUNT))
    shifts = np.stack([-3 * np.cos(angles) + 2 * np.sin(angles), 3 * np.sin(angles) + 2 * np.cos(angles)], 1)
    moved = augment.warp(images, matrices)
    for ours, image, angle, shift in zip(moved, images, np.rad2deg(angles), shifts.tolist(), strict=True):
        theirs = tv.affine(image, -float(angle), shift, 1.0, [0.0, 0.0])
        assert_nearest(ours, theirs, image, source_places(height, width, angle=-float(angle), translate=tuple(shift)))


def test_large_images_are_moved_in_a_batch_as_they_are_alone() -> None:
    images = IMAGES[:5].repeat(1, 1, 10, 10)
    matrices = augment.rotations(np.linspace(-40, 40, 5))
    alone = [augment.warp(images[i : i + 1], matrices[i : i + 1]) for i in range(5)]
    assert torch.equal(augment.warp(images, matrices), torch.cat(alone))


ERASING = Augmentation(erasing=0.5)
FILL = (124, 116, 104)


def test_erasing_fills_one_box_of_about_half_the_images_and_nothing_else() -> None:
    erased = augment.erase(IMAGES, ERASING, 0, 1, INDICES, FILL)
    chosen = augment.uniform(0, 1, INDICES, Stream.ERASE) < 0.5
    assert 0.3 < chosen.mean() < 0.7
    theirs = IMAGES.clone()
    boxes = augment.erase_boxes(0, 1, INDICES, 32, 40)
    for place in np.flatnonzero(chosen):
        top, left, height, width = boxes[place].tolist()
        theirs[place] = tv.erase(theirs[place], top, left, height, width, torch.tensor(FILL).view(3, 1, 1))
    assert torch.equal(erased, theirs)
    assert erased.dtype == torch.uint8
    assert not torch.equal(erased, IMAGES)


def test_erasing_does_not_depend_on_the_batch_or_touch_its_input() -> None:
    before = IMAGES.clone()
    whole = augment.erase(IMAGES, ERASING, 4, 2, INDICES, FILL)
    parts = [augment.erase(IMAGES[i : i + 1], ERASING, 4, 2, INDICES[i : i + 1], FILL) for i in range(COUNT)]
    assert torch.equal(whole, torch.cat(parts))
    assert torch.equal(IMAGES, before)


@pytest.mark.parametrize("size", [(64, 64), (64, 100)])
def test_erased_boxes_lie_inside_and_cover_two_to_thirty_three_percent(size: tuple[int, int]) -> None:
    height, width = size
    boxes = augment.erase_boxes(1, 1, np.arange(20_000), height, width)
    top, left, box_height, box_width = boxes.T
    assert (boxes[:, :2] >= 0).all()
    assert (box_height > 0).all()
    assert ((top + box_height <= height) & (left + box_width <= width)).all()
    assert ((box_height < height) & (box_width < width)).all()
    area = box_height * box_width / (height * width)
    assert area.min() == pytest.approx(0.02, abs=0.003)
    assert area.max() == pytest.approx(1 / 3, abs=0.02)
    assert area.mean() == pytest.approx((0.02 + 1 / 3) / 2, abs=0.01)
    ratio = box_height / box_width
    assert ratio.min() == pytest.approx(0.3, abs=0.06)
    assert ratio.max() == pytest.approx(3.3, abs=0.6)
    assert len(np.unique(top)) > 50
    assert len(np.unique(left)) > 50


def test_an_image_without_room_for_a_box_is_left_alone() -> None:
    line = IMAGES[:, :, :1]
    assert torch.equal(augment.erase(line, Augmentation(erasing=1.0), 0, 1, INDICES, FILL), line)


def test_no_augmentation_changes_nothing() -> None:
    nothing = Augmentation(flip=False)
    assert torch.equal(augment.shift_and_flip(IMAGES, nothing, 0, 1, INDICES), IMAGES)
    assert torch.equal(augment.recolour_and_rotate(IMAGES, nothing, 0, 1, INDICES), IMAGES)
    assert torch.equal(augment.erase(IMAGES, nothing, 0, 1, INDICES, FILL), IMAGES)


def test_the_numbers_of_the_streams_stay_what_they_were() -> None:
    """A resumed run continues the augmentation of the version that began it."""
    streams = "FLIP CROP_TOP CROP_LEFT BRIGHTNESS CONTRAST SATURATION HUE ORDER ANGLE AREA RATIO VIEW"
    assert [stream.name for stream in Stream][:12] == streams.split()
    assert [int(stream) for stream in Stream] == list(range(len(Stream)))


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


def test_an_image_is_the_same_to_the_bit_in_a_large_batch_and_alone() -> None:
    images = IMAGES.repeat(1, 1, 4, 4)
    settings = Augmentation(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.5, rotation=15)
    whole = augment.recolour_and_rotate(images, settings, 5, 1, INDICES)
    alone = [
        augment.recolour_and_rotate(images[i : i + 1], settings, 5, 1, INDICES[i : i + 1]) for i in range(0, COUNT, 7)
    ]
    assert torch.equal(whole[::7], torch.cat(alone))


def test_hue_of_greys_of_whole_turns_and_of_all_levels_is_torchvisions() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    image = torch.stack(
        [levels.view(1, -1).expand(256, -1), levels.view(-1, 1).expand(-1, 256), levels.flip(0).expand(256, -1)]
    )
    greys = levels.view(1, 1, -1).expand(3, 256, -1)
    factors = [np.ones(2), np.ones(2), np.ones(2), np.array([0.5, -0.5])]
    for picture in (image, greys):
        ours = augment.recolour(torch.stack([picture, picture]), tuple(factors), np.tile(np.arange(4), (2, 1)))
        assert worst(ours, [tv.adjust_hue(picture, 0.5), tv.adjust_hue(picture, -0.5)]) <= 1


def test_only_moves_is_what_keeps_every_colour() -> None:
    assert Augmentation(shift=0.2, min_area=0.5).only_moves
    for changed in (Augmentation(hue=0.1), Augmentation(rotation=1), Augmentation(policy="randaugment")):
        assert not changed.only_moves
    assert not Augmentation(erasing=0.1).only_moves


def test_augmentation_is_the_same_with_other_instructions_of_the_processor() -> None:
    choices = (
        {"ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
        {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
        {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    )
    command = [sys.executable, "-m", "tests.data.augmented"]
    processes = [
        subprocess.Popen(command, env={**os.environ, **choice}, stdout=subprocess.PIPE, text=True) for choice in choices
    ]
    said = [process.communicate()[0].split() for process in processes]
    assert said[0][0] == "DEFAULT"
    assert [each[1] for each in said] == [digest()] * len(choices)

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv

from tests.support.noise_images import COUNT, IMAGES, largest_difference
from tests.support.ties import NEAR, assert_levels, is_near_cut, luma
from tl_cli.data.augment import color
from tl_cli.data.augment.pixels import per_image

RNG = np.random.default_rng(0)


def exact_colors(kind: int, images: np.ndarray, amounts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return float64 values (B, 3, H, W) before truncation, and where torchvision's gray is near a tie."""
    levels, amount = images.astype(np.float64), amounts.reshape(-1, 1, 1, 1)
    if kind == 3:
        hsv = rgb_to_hsv(np.moveaxis(levels / 255, 1, -1))
        hsv[..., 0] = (hsv[..., 0] + amounts.reshape(-1, 1, 1)) % 1
        return np.moveaxis(hsv_to_rgb(hsv), -1, 1) * (256 - 1e-3), np.zeros((1, 1, 1, 1), dtype=bool)
    gray, is_tie = luma(levels) // 10_000, luma(levels) % 10_000 == 0
    others = (0.0, gray.mean((1, 2, 3), keepdims=True), gray)[kind]
    return amount * levels + (1 - amount) * others, is_tie & (kind == 2)


CHANGES = [
    (0, tv.adjust_brightness, RNG.uniform(0.5, 1.5, COUNT)),
    (1, tv.adjust_contrast, RNG.uniform(0.5, 1.5, COUNT)),
    (2, tv.adjust_saturation, RNG.uniform(0.5, 1.5, COUNT)),
    (3, tv.adjust_hue, RNG.uniform(-0.5, 0.5, COUNT)),
]


@pytest.mark.parametrize(("kind", "operation", "amounts"), CHANGES)
def test_each_color_change_is_torchvisions(kind: int, operation, amounts: np.ndarray) -> None:
    factors = [np.ones(COUNT), np.ones(COUNT), np.ones(COUNT), np.zeros(COUNT)]
    factors[kind] = amounts
    ours = color.adjust(IMAGES, tuple(factors), np.tile(np.arange(4), (COUNT, 1)))
    theirs = [operation(image, float(amount)) for image, amount in zip(IMAGES, amounts, strict=True)]
    exact, is_tie = exact_colors(kind, IMAGES.numpy(), amounts)
    # A pixel whose gray is rounded to the other level changes the mean of its image by no more than this.
    tolerance = NEAR + (kind == 1) * (luma(IMAGES.numpy()) % 10_000 == 0).mean((1, 2, 3), keepdims=True)
    assert_levels(ours, torch.stack(theirs), is_near_cut(exact, tolerance) | is_tie)


def test_each_image_has_its_own_order_of_color_changes() -> None:
    factors = (RNG.uniform(0.8, 1.2, COUNT), RNG.uniform(0.8, 1.2, COUNT), np.ones(COUNT), np.zeros(COUNT))
    orders = np.array([[0, 1, 2, 3] if index % 2 else [1, 0, 2, 3] for index in range(COUNT)])
    ours = color.adjust(IMAGES, factors, orders)
    brightened = color.brightness(IMAGES, per_image(factors[0], IMAGES.device))
    contrasted = color.contrast(IMAGES, per_image(factors[1], IMAGES.device))
    for index, (kind, between) in enumerate(
        (1, brightened) if index % 2 else (0, contrasted) for index in range(COUNT)
    ):
        amount = factors[kind][index : index + 1]
        theirs = CHANGES[kind][1](between[index], float(amount[0]))
        exact, _ = exact_colors(kind, between[index : index + 1].numpy(), amount)
        ties = (luma(between[index].numpy()) % 10_000 == 0).mean()
        assert_levels(ours[index], theirs, is_near_cut(exact[0], NEAR + ties))


def test_grays_and_means_do_not_depend_on_the_order_of_a_sum() -> None:
    image = np.random.default_rng(1).integers(200, 256, (1, 3, 600, 700), dtype=np.uint8)
    ours = color.contrast(torch.from_numpy(image), torch.zeros(1, 1, 1, 1))
    assert ours.unique().tolist() == [int((luma(image) // 10_000).mean())]
    grays = np.arange(256, dtype=np.uint8).reshape(1, 1, 1, -1).repeat(3, 1)
    ours = color.saturation(torch.from_numpy(grays), torch.zeros(1, 1, 1, 1))
    assert ours[0, 0, 0].tolist() == [9999 * level // 10_000 for level in range(256)]


def test_hue_of_grays_of_whole_turns_and_of_all_levels_is_torchvisions() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    image = torch.stack(
        [levels.view(1, -1).expand(256, -1), levels.view(-1, 1).expand(-1, 256), levels.flip(0).expand(256, -1)]
    )
    grays = levels.view(1, 1, -1).expand(3, 256, -1)
    factors = [np.ones(2), np.ones(2), np.ones(2), np.array([0.5, -0.5])]
    for picture in (image, grays):
        ours = color.adjust(torch.stack([picture, picture]), tuple(factors), np.tile(np.arange(4), (2, 1)))
        assert largest_difference(ours, [tv.adjust_hue(picture, 0.5), tv.adjust_hue(picture, -0.5)]) <= 1

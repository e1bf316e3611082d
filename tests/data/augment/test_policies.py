import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from tests.support.ties import NEAR, assert_levels, assert_nearest, is_near_cut, luma, source_places
from tl_cli.choices import AutoAugment
from tl_cli.data.augment import policies
from tl_cli.data.augment.policies import Op
from tl_cli.data.augment.settings import Augmentation, Stream, uniform

TORCHVISIONS = {"randaugment": v2.RandAugment(), "trivialaugment": v2.TrivialAugmentWide()}
NAMES = (
    "Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast",
    "Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize",
)  # fmt: skip
TRANSLATIONS = (Op.TRANSLATE_X, Op.TRANSLATE_Y)
FACTORS = (Op.BRIGHTNESS, Op.COLOR, Op.CONTRAST, Op.SHARPNESS)
SETTINGS = [
    Augmentation(auto_augment="randaugment"),
    Augmentation(auto_augment="randaugment", auto_ops=3, auto_magnitude=20),
    Augmentation(auto_augment="trivialaugment"),
]


def pictures(count: int, height: int, width: int) -> Tensor:
    """Return noise on a gradient with a different contrast per image, so that every operation has an effect."""
    rng = np.random.default_rng(0)
    slope = np.linspace(0, 1, height)[:, None] * np.linspace(0.2, 1, width) * 120
    spread = rng.uniform(20, 130, (count, 3, 1, 1))
    values = 40 + slope + spread * rng.uniform(0, 1, (count, 3, height, width))
    return torch.from_numpy(values.clip(0, 255).astype(np.uint8))


@dataclass(frozen=True)
class Drawn:
    """One operation with its magnitude and sign, as torchvision applies it."""

    policy: AutoAugment
    op: Op
    magnitude: int
    sign: int

    def amount(self, height: int, width: int) -> float:
        amounts_of, is_signed = TORCHVISIONS[self.policy]._AUGMENTATION_SPACE[NAMES[self.op]]
        amounts = amounts_of(31, height, width)
        amount = 0.0 if amounts is None else float(amounts[self.magnitude]) * (self.sign if is_signed else 1)
        # Truncated to pixels; whole numbers stay whole despite float32.
        return round(amount, 4) if self.op in TRANSLATIONS else amount

    def theirs(self, image: Tensor) -> Tensor:
        transform = TORCHVISIONS[self.policy]
        return transform._apply_image_or_video_transform(
            image, NAMES[self.op], self.amount(*image.shape[-2:]),
            interpolation=v2.InterpolationMode.NEAREST, fill=transform._fill,
        )  # fmt: skip

    def assert_is(self, ours: Tensor, image: Tensor) -> None:
        """Assert that an image equals torchvision's result, except for ties."""
        theirs, amount = self.theirs(image), self.amount(*image.shape[-2:])
        places = self._places(*image.shape[-2:], amount)
        if places is not None:
            assert_nearest(ours, theirs, image, places)
            return
        levels = image.numpy().astype(np.float64)
        if self.op == Op.SOLARIZE:
            is_tie = is_near_cut(levels - 255 * amount) & (abs(levels - 255 * amount) < 0.5)
            assert torch.equal(ours[torch.from_numpy(~is_tie)], theirs[torch.from_numpy(~is_tie)])
            assert ((ours == image) | (ours == 255 - image))[torch.from_numpy(is_tie)].all()
        elif self.op in FACTORS:
            assert_levels(ours, theirs, self._may_differ(levels, amount))
        else:
            assert torch.equal(ours, theirs)

    def _places(self, height: int, width: int, amount: float) -> tuple[np.ndarray, np.ndarray] | None:
        if self.op in (Op.SHEAR_X, Op.SHEAR_Y):
            degrees = math.degrees(math.atan(amount))
            shear = (degrees, 0.0) if self.op == Op.SHEAR_X else (0.0, degrees)
            return source_places(height, width, shear=shear, is_about_corner=True)
        if self.op in TRANSLATIONS:
            translate = (int(amount), 0) if self.op == Op.TRANSLATE_X else (0, int(amount))
            return source_places(height, width, translate=translate)
        return source_places(height, width, angle=-amount) if self.op == Op.ROTATE else None

    def _may_differ(self, levels: np.ndarray, amount: float) -> np.ndarray:
        weighted = luma(levels)
        grey, is_tie = weighted // 10_000, weighted % 10_000 == 0
        if self.op == Op.BRIGHTNESS:
            return is_near_cut(levels * (1 + amount))
        if self.op == Op.COLOR:
            return is_near_cut(levels + amount * (levels - grey)) | is_tie
        if self.op == Op.CONTRAST:
            return is_near_cut(levels + amount * (levels - grey.mean()), NEAR + abs(amount) * is_tie.mean())
        inner = levels[:, 1:-1, 1:-1]
        total = sum(levels[:, i : i + inner.shape[1], j : j + inner.shape[2]] for i in range(3) for j in range(3))
        # A multiple of 1/13 is never half a level.
        sharpened = inner + amount * (inner - np.rint((total + 4 * inner) / 13))
        return np.pad(is_near_cut(sharpened), ((0, 0), (1, 1), (1, 1)))


@pytest.mark.parametrize("policy", TORCHVISIONS)
def test_the_operations_are_torchvisions_in_their_order(policy: AutoAugment) -> None:
    assert tuple(TORCHVISIONS[policy]._AUGMENTATION_SPACE) == NAMES
    assert len(Op) == len(NAMES)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(32, 32), (24, 41), (57, 40)])
@pytest.mark.parametrize("policy", TORCHVISIONS)
@pytest.mark.parametrize("op", Op)
def test_each_operation_is_torchvisions_at_every_magnitude(op: Op, policy: AutoAugment, size: tuple[int, int]) -> None:
    images = pictures(62, *size)
    magnitudes, signs = np.tile(np.arange(31), 2), np.repeat([1, -1], 31)
    is_signed = TORCHVISIONS[policy]._AUGMENTATION_SPACE[NAMES[op]][1]
    amounts = policies.amounts_of(policy, *size)[op, magnitudes] * (signs if is_signed else 1)
    ours = policies.apply(images, np.full(62, op), amounts)
    for changed, image, magnitude, sign in zip(ours, images, magnitudes, signs, strict=True):
        Drawn(policy, op, int(magnitude), int(sign)).assert_is(changed, image)


@pytest.mark.parametrize("width", [32, 331, 1000])
@pytest.mark.parametrize("policy", TORCHVISIONS)
def test_amounts_are_torchvisions_and_whole_ones_are_whole(policy: AutoAugment, width: int) -> None:
    ours = policies.amounts_of(policy, 24, width)
    for op, name in enumerate(NAMES):
        theirs = TORCHVISIONS[policy]._AUGMENTATION_SPACE[name][0](31, 24, width)
        if op == Op.POSTERIZE:
            assert ours[op].tolist() == [256 - 2 ** (8 - bits) for bits in theirs.int().tolist()]
        elif op == Op.SOLARIZE:
            assert ours[op].tolist() == [math.ceil(Fraction(255 * (30 - step), 30)) for step in range(31)]
        elif theirs is not None:
            np.testing.assert_allclose(ours[op], theirs.double(), rtol=1e-6)
    end = Fraction(32) if policy == "trivialaugment" else Fraction(150 * width, 331)
    assert np.trunc(ours[Op.TRANSLATE_X]).tolist() == [math.floor(end * step / 30) for step in range(31)]


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_policy_applies_its_draws_to_each_image(settings: Augmentation) -> None:
    images, indices = pictures(40, 20, 28), np.arange(40) * 3
    table = policies.amounts_of(settings.auto_augment, 20, 28)
    current = images
    for turn in range(settings.auto_ops if settings.auto_augment == "randaugment" else 1):
        drawn = policies.draw(settings, 7, 2, indices, turn)
        after = policies.apply(current, drawn.ops, drawn.signs * table[drawn.ops, drawn.magnitudes])
        draws = zip(drawn.ops, drawn.magnitudes, drawn.signs, strict=True)
        for (op, magnitude, sign), changed, image in zip(draws, after, current, strict=True):
            Drawn(settings.auto_augment, Op(op), int(magnitude), int(sign)).assert_is(changed, image)
        current = after
    assert torch.equal(policies.apply_policy(images, settings, 7, 2, indices), current)


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_batch_does_not_change_an_image(settings: Augmentation) -> None:
    images, indices = pictures(30, 20, 28), np.arange(30)
    together = policies.apply_policy(images, settings, 3, 1, indices)
    alone = [policies.apply_policy(images[i : i + 1], settings, 3, 1, indices[i : i + 1]) for i in range(30)]
    turned = policies.apply_policy(images.flip(0), settings, 3, 1, indices[::-1]).flip(0)
    assert torch.equal(together, torch.cat(alone))
    assert torch.equal(together, turned)


@pytest.mark.parametrize("settings", SETTINGS)
def test_images_of_a_batch_are_changed_differently_and_the_originals_not_at_all(settings: Augmentation) -> None:
    images = pictures(1, 32, 32).expand(64, -1, -1, -1).contiguous()
    before = images.clone()
    changed = policies.apply_policy(images, settings, 0, 1, np.arange(64))
    assert torch.equal(images, before)
    assert changed.dtype == torch.uint8
    assert len(changed.flatten(1).unique(dim=0)) > 20


def test_without_a_policy_images_are_unchanged() -> None:
    images = pictures(4, 16, 16)
    assert policies.apply_policy(images, Augmentation(), 0, 1, np.arange(4)) is images


def test_operations_magnitudes_and_directions_are_drawn_evenly() -> None:
    indices = np.arange(28_000)
    drawn = [policies.draw(SETTINGS[2], 5, 1, indices, 0), policies.draw(SETTINGS[0], 5, 1, indices, 1)]
    for draws in drawn:
        counts = np.bincount(draws.ops, minlength=len(Op))
        assert abs(counts / 2000 - 1).max() < 0.1
    assert abs(np.bincount(drawn[0].magnitudes) * 31 / 28_000 - 1).max() < 0.15
    assert (drawn[1].magnitudes == 9).all()
    directed = (drawn[0].ops >= Op.SHEAR_X) & (drawn[0].ops <= Op.SHARPNESS)
    assert abs(drawn[0].signs[directed].mean()) < 0.03
    assert (drawn[0].signs[~directed] == 1).all()


def test_randaugments_operations_are_drawn_independently() -> None:
    indices = np.arange(28_000)
    first, second = (policies.draw(SETTINGS[0], 5, 1, indices, turn).ops for turn in (0, 1))
    assert abs((first == second).mean() * 14 - 1) < 0.1
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.03


def test_a_stream_differs_at_each_turn_and_keeps_its_recorded_first_numbers() -> None:
    indices = np.arange(1000)
    assert (uniform(1, 2, indices, Stream.OP) == uniform(1, 2, indices, Stream.OP, 0)).all()
    assert not (uniform(1, 2, indices, Stream.OP) == uniform(1, 2, indices, Stream.OP, 1)).any()


def test_the_smallest_images_are_not_sharpened() -> None:
    images = pictures(2, 2, 9)
    assert torch.equal(policies.apply(images, np.full(2, Op.SHARPNESS), np.full(2, 0.9)), images)

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from tl_cli.data import policies
from tl_cli.data.augmentation import Augmentation, Policy, Stream, uniform
from tl_cli.data.policies import Op

TORCHVISIONS = {"randaugment": v2.RandAugment(), "trivialaugment": v2.TrivialAugmentWide()}
NAMES = (
    "Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast",
    "Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize",
)  # fmt: skip
# 1 - factor is rounded before it is a float32 here and after in torchvision: cutting to a level can go either way.
WITHIN_ONE_LEVEL = (Op.COLOUR, Op.CONTRAST)
SETTINGS = [
    Augmentation(policy="randaugment"),
    Augmentation(policy="randaugment", ops=3, magnitude=20),
    Augmentation(policy="trivialaugment"),
]


def pictures(count: int, height: int, width: int) -> Tensor:
    """Noise on a gradient, of different contrast in each image, so that no operation is without effect."""
    rng = np.random.default_rng(0)
    slope = np.linspace(0, 1, height)[:, None] * np.linspace(0.2, 1, width) * 120
    spread = rng.uniform(20, 130, (count, 3, 1, 1))
    values = 40 + slope + spread * rng.uniform(0, 1, (count, 3, height, width))
    return torch.from_numpy(values.clip(0, 255).astype(np.uint8))


def torchvisions(policy: Policy, image: Tensor, op: Op, magnitude: int, sign: int) -> Tensor:
    transform = TORCHVISIONS[policy]
    amounts_of, is_signed = transform._AUGMENTATION_SPACE[NAMES[op]]
    amounts = amounts_of(31, *image.shape[-2:])
    amount = 0.0 if amounts is None else float(amounts[magnitude]) * (sign if is_signed else 1)
    return transform._apply_image_or_video_transform(
        image, NAMES[op], amount, interpolation=v2.InterpolationMode.NEAREST, fill=transform._fill
    )


@pytest.mark.parametrize("policy", TORCHVISIONS)
def test_the_operations_are_torchvisions_in_their_order(policy: Policy) -> None:
    assert tuple(TORCHVISIONS[policy]._AUGMENTATION_SPACE) == NAMES
    assert len(Op) == len(NAMES)


@pytest.mark.parametrize("size", [(32, 32), (24, 41), (57, 40)])
@pytest.mark.parametrize("policy", TORCHVISIONS)
@pytest.mark.parametrize("op", Op)
def test_each_operation_is_torchvisions_at_every_magnitude(op: Op, policy: Policy, size: tuple[int, int]) -> None:
    images = pictures(62, *size)
    magnitudes, signs = np.tile(np.arange(31), 2), np.repeat([1, -1], 31)
    is_signed = TORCHVISIONS[policy]._AUGMENTATION_SPACE[NAMES[op]][1]
    amounts = policies.amounts_of(policy, *size)[op, magnitudes] * (signs if is_signed else 1)
    ours = policies.apply(images, np.full(62, op), amounts)
    theirs = torch.stack(
        [
            torchvisions(policy, image, op, int(magnitude), int(sign))
            for image, magnitude, sign in zip(images, magnitudes, signs, strict=True)
        ]
    )
    off = (ours.int() - theirs.int()).abs()
    assert off.max() <= (op in WITHIN_ONE_LEVEL)
    assert (off > 0).float().mean() < 0.01


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_policy_is_its_draws_one_image_at_a_time(settings: Augmentation) -> None:
    images, indices = pictures(40, 20, 28), np.arange(40) * 3
    ours = policies.apply_policy(images, settings, 7, 2, indices)
    theirs = list(images)
    for turn in range(settings.ops if settings.policy == "randaugment" else 1):
        drawn = policies.draw(settings, 7, 2, indices, turn)
        for place, (op, magnitude, sign) in enumerate(zip(drawn.ops, drawn.magnitudes, drawn.signs, strict=True)):
            theirs[place] = torchvisions(settings.policy, theirs[place], Op(op), int(magnitude), int(sign))
    off = (ours.int() - torch.stack(theirs).int()).abs().amax((1, 2, 3))
    # A level more or less before equalizing or solarizing can be many after it.
    assert (off <= 1).float().mean() > 0.9


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


def test_no_policy_changes_nothing() -> None:
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


def test_a_stream_gives_other_numbers_at_each_turn_and_the_known_ones_at_the_first() -> None:
    indices = np.arange(1000)
    assert (uniform(1, 2, indices, Stream.OP) == uniform(1, 2, indices, Stream.OP, 0)).all()
    assert not (uniform(1, 2, indices, Stream.OP) == uniform(1, 2, indices, Stream.OP, 1)).any()


def test_the_smallest_images_are_not_sharpened() -> None:
    images = pictures(2, 2, 9)
    assert torch.equal(policies.apply(images, np.full(2, Op.SHARPNESS), np.full(2, 0.9)), images)

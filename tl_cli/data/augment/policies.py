"""RandAugment and TrivialAugmentWide on batches, each image with its own operations; equal to torchvision's."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType

import numpy as np
import torch
import torchvision.transforms.v2.functional as tv
from torch import Tensor

from tl_cli.choices import AutoAugment
from tl_cli.data.augment import color, geometry
from tl_cli.data.augment.pixels import change_chosen, to_levels
from tl_cli.data.augment.settings import Augmentation, Stream, uniform

_MAGNITUDES = 31


# The operations, in torchvision's order.
Op = IntEnum(
    "Op",
    "IDENTITY SHEAR_X SHEAR_Y TRANSLATE_X TRANSLATE_Y ROTATE BRIGHTNESS COLOR CONTRAST SHARPNESS POSTERIZE SOLARIZE "
    "AUTOCONTRAST EQUALIZE",
    start=0,
)

_MOVES = (Op.SHEAR_X, Op.SHEAR_Y, Op.TRANSLATE_X, Op.TRANSLATE_Y, Op.ROTATE)
_FACTORS = (Op.BRIGHTNESS, Op.COLOR, Op.CONTRAST, Op.SHARPNESS)


@dataclass(frozen=True, slots=True)
class Draws:
    """One operation for each image of a batch.

    Attributes:
        ops: (B,) int64, values of ``Op``.
        magnitudes: (B,) int64, 0..30.
        signs: (B,) int64, -1 or 1: the direction, for operations that have one.
    """

    ops: np.ndarray
    magnitudes: np.ndarray
    signs: np.ndarray


def apply_policy(images: Tensor, settings: Augmentation, seed: int, epoch: int, indices: np.ndarray) -> Tensor:
    """Return the batch after the settings' policy.

    RandAugment (Cubuk et al. 2019) applies ``ops`` operations of one magnitude, TrivialAugmentWide (Müller & Hutter
    2021) one of a random magnitude.

    Args:
        images: (B, 3, H, W) uint8.
    """
    if settings.auto_augment == "none":
        return images
    table = amounts_of(settings.auto_augment, *images.shape[-2:])
    for turn in range(settings.auto_ops if settings.auto_augment == "randaugment" else 1):
        drawn = draw(settings, seed, epoch, indices, turn)
        images = apply(images, drawn.ops, drawn.signs * table[drawn.ops, drawn.magnitudes])
    return images


def draw(settings: Augmentation, seed: int, epoch: int, indices: np.ndarray, turn: int) -> Draws:
    """Return one random operation for each image.

    Args:
        turn: which of RandAugment's operations, from 0.
    """
    ops = (uniform(seed, epoch, indices, Stream.OP, turn) * len(Op)).astype(np.int64)
    magnitudes = np.full_like(ops, settings.auto_magnitude)
    if settings.auto_augment == "trivialaugment":
        magnitudes = (uniform(seed, epoch, indices, Stream.MAGNITUDE, turn) * _MAGNITUDES).astype(np.int64)
    is_back = (uniform(seed, epoch, indices, Stream.SIGN, turn) < 0.5) & np.isin(ops, _MOVES + _FACTORS)
    return Draws(ops, magnitudes, np.where(is_back, -1, 1))


def amounts_of(policy: AutoAugment, height: int, width: int) -> np.ndarray:
    """Return (14, 31) float64: how much each operation does at each magnitude, as in torchvision 0.29 but exact.

    Shears are tangents, translations pixels, rotations degrees, factors their distance from 1; posterizing is the mask
    of the bits that are kept, solarizing the lowest gray level that is inverted. Other operations have zeros.
    """
    wide = policy == "trivialaugment"
    shear, factor, bits = (0.99, 0.99, 6) if wide else (0.3, 0.9, 4)
    # The largest amounts are quotients of integers, since they are truncated to pixels or levels: each is rounded once,
    # and integers remain integers on every processor.
    ends = {
        Op.SHEAR_X: (shear, 1),
        Op.SHEAR_Y: (shear, 1),
        Op.TRANSLATE_X: (32, 1) if wide else (150 * width, 331),
        Op.TRANSLATE_Y: (32, 1) if wide else (150 * height, 331),
        Op.ROTATE: (135 if wide else 30, 1),
        **dict.fromkeys(_FACTORS, (factor, 1)),
    }
    table = np.zeros((len(Op), _MAGNITUDES))
    steps = np.arange(_MAGNITUDES)
    most = _MAGNITUDES - 1
    for op, (end, divisor) in ends.items():
        table[op] = end * steps / (divisor * most)
    table[Op.POSTERIZE] = 256 - 2 ** np.rint(bits * steps / most)
    table[Op.SOLARIZE] = np.ceil(255 * steps[::-1] / most)
    return table


def apply(images: Tensor, ops: np.ndarray, amounts: np.ndarray) -> Tensor:
    """Return each image after its own operation, rounded to gray levels as torchvision's is.

    Args:
        images: (B, 3, H, W) uint8.
        ops: (B,) int64, values of ``Op``.
        amounts: (B,) float64, in the units of ``amounts_of``, with a sign.
    """
    result = images.clone()
    moved = np.flatnonzero(np.isin(ops, _MOVES))
    if len(moved):
        index = torch.from_numpy(moved).to(images.device)
        matrices = _matrices(ops[moved], amounts[moved], *images.shape[-2:])
        result.index_copy_(0, index, geometry.warp(images.index_select(0, index), matrices))
    for op, change in _CHANGES.items():
        change_chosen(result, images, np.flatnonzero(ops == op), change, amounts)
    return result


def _matrices(ops: np.ndarray, amounts: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the maps (B, 2, 3) for ``warp``: shears keep the top or left edge fixed."""
    shear_x, shear_y, right, down, degrees = (np.where(ops == op, amounts, 0.0) for op in _MOVES)
    matrices = geometry.rotations(degrees)
    matrices[:, 0, 1] += shear_x
    matrices[:, 1, 0] += shear_y
    matrices[:, 0, 2] = shear_x * height / 2 - np.trunc(right)
    matrices[:, 1, 2] = shear_y * width / 2 - np.trunc(down)
    return matrices


def _sharpness(images: Tensor, amount: Tensor) -> Tensor:
    """Return the images moved away from themselves smoothed by (1 1 1, 1 5 1, 1 1 1) / 13, as Pillow's SMOOTH does.

    The outermost pixels do not change.
    """
    if min(images.shape[-2:]) <= 2:
        return images
    # Integer sums are exact, and 7 times as fast as a float convolution (5 images of 224 x 224, one thread of
    # an AMD EPYC, n=41).
    levels = images.to(torch.int16)
    rows = levels[..., :-2, :] + levels[..., 1:-1, :] + levels[..., 2:, :]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * levels[..., 1:-1, 1:-1]
    result = images.float()
    inner = result[..., 1:-1, 1:-1]
    inner.add_((total.float() / 13).round_().sub_(inner).mul_(-amount))
    return to_levels(result)


_CHANGES: Mapping[Op, Callable[[Tensor, Tensor], Tensor]] = MappingProxyType(
    {
        Op.BRIGHTNESS: lambda images, amount: color.brightness(images, 1 + amount),
        Op.COLOR: lambda images, amount: color.saturation(images, 1 + amount),
        Op.CONTRAST: lambda images, amount: color.contrast(images, 1 + amount),
        Op.SHARPNESS: _sharpness,
        Op.POSTERIZE: lambda images, mask: images & mask.to(torch.uint8),
        Op.SOLARIZE: lambda images, level: torch.where(images >= level.to(torch.uint8), ~images, images),
        Op.AUTOCONTRAST: lambda images, _: tv.autocontrast(images),
        Op.EQUALIZE: lambda images, _: tv.equalize(images),
    }
)

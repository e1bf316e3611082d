"""Shared by changes of images: applying one to some images of a batch, numbers per image, rounding to levels."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from tl_cli.data.preprocess import send

# As many as fit in a CPU's cache: with 64 images of 64 x 64 together, rotation took 3 times as long and color changes
# 1.1 times (one thread of an AMD EPYC, n=21).
_PIXELS_TOGETHER = 1 << 16


def images_together(images: Tensor) -> int:
    """Return how many images are changed at a time: all of them on a GPU."""
    return max(1, _PIXELS_TOGETHER // images[0, 0].numel()) if images.device.type == "cpu" else len(images)


def change_chosen(
    target: Tensor, images: Tensor, chosen: np.ndarray, change: Callable[[Tensor, Tensor], Tensor], amounts: np.ndarray
) -> None:
    """Write the changed images at the indices ``chosen`` into ``target``.

    Args:
        target: (B, 3, H, W) uint8.
        images: (B, 3, H, W) uint8; may be ``target``.
        change: takes images and amounts (N, 1, 1, 1) float32.
        amounts: (B,) float64, for all images.
    """
    if not len(chosen):
        return
    size = images_together(images)
    indices = send(chosen, images.device).split(size)
    for index, amount in zip(indices, per_image(amounts[chosen], images.device).split(size), strict=True):
        target.index_copy_(0, index, change(images.index_select(0, index), amount))


def per_image(values: np.ndarray, device: torch.device) -> Tensor:
    """Return (B, 1, 1, 1) float32 on a device, to be combined with images."""
    return send(values.astype(np.float32), device).view(-1, 1, 1, 1)


def to_levels(values: Tensor) -> Tensor:
    """Return values cut to gray levels, uint8; the argument is clamped in place."""
    # By way of int16: straight from float32 it takes a CPU 4 times as long.
    return values.clamp_(0, 255).to(torch.int16).to(torch.uint8)

"""The order in which a batch of training images is augmented, after cropping, shifting and mirroring."""

import numpy as np
from torch import Tensor

from tl_cli.data.augment import color, erasing, geometry, policies
from tl_cli.data.augment.settings import Augmentation


def augment(
    images: Tensor, settings: Augmentation, seed: int, epoch: int, indices: np.ndarray, fill: tuple[int, int, int]
) -> Tensor:
    """Return the batch after color changes, rotation, the policy's operations and random erasing.

    Args:
        images: (B, 3, H, W) uint8.
        indices: (B,) int64, as in ``uniform``.
        fill: red, green and blue of erased boxes, 0..255.
    """
    for change in (color.jitter, geometry.rotate_randomly, policies.apply_policy):
        images = change(images, settings, seed, epoch, indices)
    return erasing.erase(images, settings, seed, epoch, indices, fill)

"""MixUp and CutMix: batches whose images, and targets with them, are blends of two. Nothing of single images here."""

import math

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from tl_cli.randomness import Purpose, generator


def mix(
    inputs: Tensor, labels: Tensor, num_classes: int, *, mixup: float, cutmix: float, seed: int, step: int
) -> tuple[Tensor, Tensor]:
    """Return new inputs and targets, each a blend of an image and a partner of the same batch.

    One share, drawn from Beta(alpha, alpha), holds for the whole batch. Where both alphas are positive, each step
    takes one of the two methods, evenly. All is a function of (seed, step) and of the shape.

    Args:
        inputs: (B, 3, H, W) float, left as they are.
        labels: (B,) int64.
        mixup: alpha of MixUp (Zhang et al. 2017), 0 turns it off.
        cutmix: alpha of CutMix (Yun et al. 2019), 0 turns it off.

    Returns:
        inputs (B, 3, H, W) of the same dtype, and targets (B, num_classes) float32 whose rows sum to one.
    """
    assert mixup > 0 or cutmix > 0, "nothing to mix"
    random = generator(seed, Purpose.MIXING, step)
    cuts = cutmix > 0 and (mixup == 0 or random.random() < 0.5)
    alpha = cutmix if cuts else mixup
    share = random.beta(alpha, alpha)
    height, width = inputs.shape[-2:]
    partner = torch.from_numpy(random.permutation(len(inputs))).to(inputs.device)
    if cuts:
        top, bottom, left, right = _box(share, height, width, random)
        mixed = inputs.clone()
        mixed[..., top:bottom, left:right] = inputs[..., top:bottom, left:right][partner]
        share = 1 - (bottom - top) * (right - left) / (height * width)
    else:
        mixed = inputs * share + inputs[partner] * (1 - share)
    targets = F.one_hot(labels, num_classes).float()
    return mixed, targets * share + targets[partner] * (1 - share)


def _box(share: float, height: int, width: int, random: np.random.Generator) -> tuple[int, int, int, int]:
    """Return top, bottom, left, right of a box of 1 - share of the area, its centre anywhere, cut to the image."""
    side = math.sqrt(1 - share)
    box_height, box_width = int(height * side), int(width * side)
    top = int(random.integers(height)) - box_height // 2
    left = int(random.integers(width)) - box_width // 2
    return max(0, top), min(height, top + box_height), max(0, left), min(width, left + box_width)

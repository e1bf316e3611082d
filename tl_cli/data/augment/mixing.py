"""MixUp and CutMix: images and targets of a batch are blended in pairs."""

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from tl_cli.randomness import Purpose, generator

# Weights are multiples of 1 / 2 ** 16, since the last bits of a Beta draw depend on the processor.
_SHARES = 1 << 16


def mix(
    inputs: Tensor, labels: Tensor, num_classes: int, *, mixup: float, cutmix: float, seed: int, step: int
) -> tuple[Tensor, Tensor]:
    """Return new inputs and targets, each a blend of an image and a partner of the same batch.

    Each image has its own partner, share from Beta(alpha, alpha) and box, as in timm's mode "elem". If both alphas are
    positive, each method is used for half of the images. The result is a function of the inputs, seed and step.

    Args:
        inputs: (B, 3, H, W) float, not modified.
        labels: (B,) int64.
        mixup: alpha of MixUp (Zhang et al. 2017), 0 turns it off.
        cutmix: alpha of CutMix (Yun et al. 2019), 0 turns it off.

    Returns:
        inputs (B, 3, H, W) of the same dtype, and targets (B, num_classes) float32 whose rows sum to one.
    """
    assert mixup > 0 or cutmix > 0, "nothing to mix"
    count, (height, width), device = len(inputs), inputs.shape[-2:], inputs.device
    random = generator(seed, Purpose.MIXING, step)
    partner = torch.from_numpy(random.permutation(count)).to(device)
    is_cut = random.random(count) < (0.5 if mixup and cutmix else float(cutmix > 0))
    alpha = np.where(is_cut, cutmix, mixup)
    share = np.rint(random.beta(alpha, alpha) * _SHARES) / _SHARES
    row, column = random.integers(height, size=count), random.integers(width, size=count)
    top, bottom, left, right = _boxes(share, row, column, height, width)
    share = np.where(is_cut, 1 - (bottom - top) * (right - left) / (height * width), share)
    # The weight of each pixel's own image. Rounded here, since MPS has no double precision.
    kept = _column(share.astype(np.float32), device).to(inputs.dtype)
    if is_cut.any():
        rows, columns = torch.arange(height, device=device).view(-1, 1), torch.arange(width, device=device)
        is_beside = (rows < _column(top, device)) | (rows >= _column(bottom, device))
        is_outside = is_beside | (columns < _column(left, device)) | (columns >= _column(right, device))
        kept = torch.where(_column(is_cut, device), is_outside.to(inputs.dtype), kept)
    # lerp is exact where a weight is 0 or 1.
    mixed = inputs[partner].lerp_(inputs, kept)
    targets, own = F.one_hot(labels, num_classes).float(), _column(share.astype(np.float32), device).view(-1, 1)
    return mixed, targets * own + targets[partner] * (1 - own)


def _boxes(
    share: np.ndarray, row: np.ndarray, column: np.ndarray, height: int, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return top, bottom, left, right of boxes of 1 - share of the area around (row, column), clipped to the image."""
    side = np.sqrt(1 - share)
    box_height, box_width = (height * side).astype(int), (width * side).astype(int)
    top, left = row - box_height // 2, column - box_width // 2
    return top.clip(0), (top + box_height).clip(max=height), left.clip(0), (left + box_width).clip(max=width)


def _column(values: np.ndarray, device: torch.device) -> Tensor:
    """Return (B,) values as (B, 1, 1, 1)."""
    return torch.from_numpy(values).to(device).view(-1, 1, 1, 1)

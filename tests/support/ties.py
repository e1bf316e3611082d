"""Comparison with torchvision up to rounding ties, which are found from exact values."""

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2.functional._geometry import _get_inverse_affine_matrix

# Beyond the errors of float32 in torchvision's operations, which depend on the processor.
NEAR = 1e-3


def luma(images: np.ndarray) -> np.ndarray:
    """Return the grey values (..., 1, H, W) of ITU-R 601-2 as torchvision weighs it, in ten-thousandths, int64."""
    red, green, blue = (images[..., channel, :, :].astype(np.int64) for channel in range(3))
    return (2989 * red + 5870 * green + 1140 * blue)[..., None, :, :]


def is_near_cut(exact: np.ndarray, tolerance: float | np.ndarray = NEAR) -> np.ndarray:
    """Return whether a value is so near a whole level that truncation may give the level below."""
    return abs(exact - np.rint(exact)) < tolerance


def assert_levels(ours: Tensor, theirs: Tensor, may_differ: np.ndarray) -> None:
    """Assert that levels are equal, or one apart where the exact value is near a tie."""
    off = abs(ours.numpy().astype(int) - theirs.numpy().astype(int))
    assert off.max(initial=0) <= 1
    assert not (off > 0)[~np.broadcast_to(may_differ, off.shape)].any()


def source_places(
    height: int,
    width: int,
    *,
    angle: float = 0.0,
    translate: tuple[float, float] = (0, 0),
    shear: tuple[float, float] = (0, 0),
    is_about_corner: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the source columns and rows (H, W) of torchvision's affine, in float64.

    Args:
        angle: clockwise, in degrees, as the shears are.
        is_about_corner: shear about the corner instead of the centre.
    """
    corner = [-width / 2, -height / 2] if is_about_corner else [0.0, 0.0]
    a, b, c, d, e, f = _get_inverse_affine_matrix(corner, angle, list(translate), 1.0, list(shear))
    x, y = np.meshgrid(np.arange(width) - (width - 1) / 2, np.arange(height) - (height - 1) / 2)
    return a * x + b * y + c + (width - 1) / 2, d * x + e * y + f + (height - 1) / 2


def assert_nearest(ours: Tensor, theirs: Tensor, image: Tensor, places: tuple[np.ndarray, np.ndarray]) -> None:
    """Assert that pixels equal torchvision's, or either neighbour if the source is near the middle between two pixels."""
    columns, rows = places
    is_tie = is_near_cut(columns + 0.5) | is_near_cut(rows + 0.5)
    assert torch.equal(ours[:, torch.from_numpy(~is_tie)], theirs[:, torch.from_numpy(~is_tie)])
    height, width = image.shape[-2:]
    # Positions outside the image are black.
    framed = np.pad(image.numpy(), ((0, 0), (1, 1), (1, 1)))
    fits = np.zeros(is_tie.shape, dtype=bool)
    for right in (-NEAR, NEAR):
        for down in (-NEAR, NEAR):
            column = np.clip(np.floor(columns + 0.5 + right), -1, width).astype(int) + 1
            row = np.clip(np.floor(rows + 0.5 + down), -1, height).astype(int) + 1
            fits |= (framed[:, row, column] == ours.numpy()).all(0)
    assert fits[is_tie].all()

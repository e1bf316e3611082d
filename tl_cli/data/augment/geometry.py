"""Crops, shifts, flips, rotations and affine maps of a batch of images, each image with its own parameters.

Numbers become float32 before they leave the CPU: Apple's mps has no float64.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from tl_cli.contract import CropMode
from tl_cli.data.augment.pixels import images_together, to_levels
from tl_cli.data.augment.settings import Augmentation, Stream, uniform
from tl_cli.data.preprocess import send

# Largest number of values in resizing matrices that are computed together; temporary copies take about 100 MB.
_MATRIX_VALUES = 1 << 22

# Fractional bits of the numbers in an affine map, and of coordinates in pixels: coordinates are exact to 3e-5 pixels,
# and int32 can represent 32,768 pixels on either side.
_MATRIX_BITS = 32
_PIXEL_BITS = 16

# Fractional bits of the weights of rows, of the levels between rows and columns, and of the weights of columns: a
# level has 8 bits, and float32 adds up whole numbers of 24 bits exactly, in any order.
_FIRST_BITS = 16
_LEVEL_BITS = 4
_SECOND_BITS = 12

# Smallest aspect ratio of a random resized crop.
CROP_RATIO = 3 / 4


def crop_boxes(
    settings: Augmentation,
    seed: int,
    epoch: int,
    indices: np.ndarray,
    height: int,
    width: int,
    crop_mode: CropMode = "center",
) -> np.ndarray:
    """Return the boxes of a random resized crop (Szegedy et al. 2015): (B, 4) int64 top, left, height, width.

    Area uniform in ``min_area``..1, aspect ratio log-uniform in 3/4..4/3, cut to the image where it sticks out.

    Args:
        crop_mode: of the preprocessing. With ``squash`` boxes are in the squashed image, with ``border`` in the padded
            one, so that they may extend beyond the image.
    """
    above = beside = 0
    if crop_mode == "border":
        side = max(height, width)
        above, beside = (side - height) // 2, (side - width) // 2
        height = width = side
    tall, wide = ((height, height), (width, width)) if crop_mode == "squash" else ((height, width), (height, width))
    area = settings.min_area + uniform(seed, epoch, indices, Stream.AREA) * (1 - settings.min_area)
    ratio = np.exp((uniform(seed, epoch, indices, Stream.RATIO) * 2 - 1) * -math.log(CROP_RATIO))
    box_width = np.clip(np.rint(np.sqrt(area * wide[0] * wide[1] * ratio)), 1, width)
    box_height = np.clip(np.rint(np.sqrt(area * tall[0] * tall[1] / ratio)), 1, height)
    top = np.floor(uniform(seed, epoch, indices, Stream.CROP_TOP) * (height - box_height + 1))
    left = np.floor(uniform(seed, epoch, indices, Stream.CROP_LEFT) * (width - box_width + 1))
    return np.stack([top - above, left - beside, box_height, box_width], axis=1).astype(np.int64)


def shift_and_flip(images: Tensor, settings: Augmentation, seed: int, epoch: int, indices: np.ndarray) -> Tensor:
    """Return the batch shifted and flipped, each image differently.

    Args:
        images: (B, 3, H, W) uint8.
    """
    height, width = images.shape[-2:]
    down = _offsets(settings.shift, height, uniform(seed, epoch, indices, Stream.CROP_TOP))
    right = _offsets(settings.shift, width, uniform(seed, epoch, indices, Stream.CROP_LEFT))
    mirrored = (uniform(seed, epoch, indices, Stream.FLIP) < 0.5) & settings.flip
    if not (down.any() or right.any() or mirrored.any()):
        return images
    rows = np.arange(height)[None] + down[:, None]
    columns = np.arange(width)[None] + right[:, None]
    columns = np.where(mirrored[:, None], columns[:, ::-1], columns)
    # Only rows and columns are sent; indices are computed on the images' device.
    row, column = send(rows, images.device)[:, :, None], send(columns, images.device)[:, None, :]
    if settings.border == "reflect":
        row, column = _reflected(row, height), _reflected(column, width)
    pixel = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
    index = pixel.view(len(pixel), 1, -1).expand(-1, images.shape[1], -1)
    moved = images.flatten(2).gather(2, index).view_as(images)
    if settings.border == "reflect" or not (down.any() or right.any()):
        return moved
    inside = ((row >= 0) & (row < height)) & ((column >= 0) & (column < width))
    return moved.mul_(inside[:, None])


def _offsets(share: float, side: int, numbers: np.ndarray) -> np.ndarray:
    reach = round(share * side)
    offsets: np.ndarray = np.floor(numbers * (2 * reach + 1)).astype(np.int64) - reach
    return offsets


def _reflected(indices: Tensor, side: int) -> Tensor:
    """Return indices with those outside 0..side-1, by less than a side, mirrored at the outermost pixel's center."""
    last = side - 1
    return last - (last - indices.abs()).abs()


def resized_crops(images: Tensor, boxes: np.ndarray, size: int, fill: tuple[int, int, int] = (0, 0, 0)) -> Tensor:
    """Return each image's box resized to (size, size), bilinear and antialiased.

    Resizing is separable, so each image is multiplied by its own two matrices of interpolation weights. Weights and
    levels are rounded so that float32 holds every sum exactly: the result does not depend on the batch or the
    processor. That moves a level by less than 0.1 before it is rounded.

    Args:
        images: (B, 3, H, W) uint8.
        boxes: (B, 4) int64 top, left, height, width.
        fill: red, green and blue of pixels outside the image.
    """
    height, width = images.shape[-2:]
    starts, stops = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    sticks_out = bool((starts < 0).any() or (stops > (height, width)).any())
    color = send(np.array(fill, dtype=np.float32), images.device).view(3, 1, 1)
    scale = np.float32(1 << _LEVEL_BITS)
    count = min(images_together(images), max(1, _MATRIX_VALUES // (size * max(height, width))))
    crops = []
    for piece, box in zip(images.split(count), np.split(boxes, range(count, len(boxes), count)), strict=True):
        vertical = _resize_matrices(box[:, 0], box[:, 2], size, height, _FIRST_BITS) * scale
        horizontal = _resize_matrices(box[:, 1], box[:, 3], size, width, _SECOND_BITS) / scale
        down, across = (send(values, images.device)[:, None] for values in (vertical, horizontal))
        crop = (down @ piece.float()).round_() @ across.mT
        if sticks_out:
            crop += (1 - down.sum(-1, keepdim=True) * across.sum(-1, keepdim=True).mT) * color
        crops.append(to_levels(crop.round_()))
    return torch.cat(crops)


def _resize_matrices(starts: np.ndarray, lengths: np.ndarray, size: int, side: int, bits: int) -> np.ndarray:
    """Return (B, size, side) float32: row i holds the weights of the input pixels in output pixel i.

    A triangle filter as wide as the scale, as Pillow's and torch's antialiased bilinear resize. The weights are
    multiples of 2**-bits and add up to 1, or to less in a row that covers pixels outside the image.
    """
    outside = int(max(0, -starts.min(), (starts + lengths).max() - side))
    # In units of pixels / (2 * size), everything is an integer that float32 represents exactly.
    starts, lengths = (values[:, None, None].astype(np.float32) for values in (starts, lengths))
    center = (2 * np.arange(size, dtype=np.float32)[:, None] + 1) * lengths
    position = (2 * (np.arange(-outside, side + outside, dtype=np.float32) - starts) + 1) * size
    weight = np.abs(position - center)
    np.maximum(np.subtract(2 * np.maximum(lengths, size), weight, out=weight), 0, out=weight)
    weight *= (position > 0) & (position < 2 * size * lengths)
    # Cumulative sums are rounded, so that rounding errors do not add up.
    upto = weight.cumsum(-1, out=weight)
    np.rint(np.divide(upto, upto[..., -1:] * 2.0**-bits, out=upto), out=upto)
    upto *= 2.0**-bits
    upto[..., 1:] -= upto[..., :-1]
    return upto[..., outside : outside + side]


def rotate_randomly(images: Tensor, settings: Augmentation, seed: int, epoch: int, indices: np.ndarray) -> Tensor:
    """Return each image rotated by a random angle within the settings' range.

    Args:
        images: (B, 3, H, W) uint8.
    """
    if not settings.rotation:
        return images
    return warp(images, rotations((uniform(seed, epoch, indices, Stream.ANGLE) * 2 - 1) * settings.rotation))


def rotations(degrees: np.ndarray) -> np.ndarray:
    """Return the matrices (B, 2, 3) float64 with which ``warp`` rotates counter-clockwise."""
    angles = np.deg2rad(degrees)
    cos, sin, zero = np.cos(angles), np.sin(angles), np.zeros_like(angles)
    return np.stack([cos, -sin, zero, sin, cos, zero], axis=1).reshape(-1, 2, 3)


def warp(images: Tensor, matrices: np.ndarray) -> Tensor:
    """Return each image under its own affine map, nearest neighbor, black outside.

    Coordinates are computed in integers, so that every processor rounds a tie between two pixels in one direction.

    Args:
        images: (B, 3, H, W) uint8.
        matrices: (B, 2, 3) float64, from (x, y, 1) in the output to (x, y) in the input, in pixels from the center.
    """
    height, width = images.shape[-2:]
    units = np.rint(matrices * (1 << _MATRIX_BITS)).astype(np.int64)
    # Twice the coordinates of pixel centers are integers.
    x, y = (2 * np.arange(side) - (side - 1) for side in (width, height))
    size = images_together(images)
    terms = []
    for axis, side in enumerate((width, height)):
        by_x, by_y, shift = (units[:, axis, term, None] for term in range(3))
        # Relative to the outer corner of the frame that `_warp` adds.
        for term in (by_x * x, by_y * y + 2 * shift + (side + 2 << _MATRIX_BITS)):
            halved = (term >> (_MATRIX_BITS + 1 - _PIXEL_BITS)).astype(np.int32)
            terms.append(send(halved, images.device).split(size))
    return torch.cat([_warp(*piece) for piece in zip(images.split(size), *terms, strict=True)])


def _warp(images: Tensor, column_x: Tensor, column_y: Tensor, row_x: Tensor, row_y: Tensor) -> Tensor:
    """Return each pixel from a column and a row, which are sums of terms, int32, by x (B, W) and by y (B, H).

    Columns and rows are those of images with a black frame of one pixel.
    """
    height, width = images.shape[-2:]
    column = (column_x[:, None] + column_y[:, :, None]).bitwise_right_shift_(_PIXEL_BITS).clamp_(0, width + 1)
    row = (row_x[:, None] + row_y[:, :, None]).bitwise_right_shift_(_PIXEL_BITS).clamp_(0, height + 1)
    pixel = row.mul_(width + 2).add_(column).long()
    index = pixel.view(len(pixel), 1, -1).expand(-1, images.shape[1], -1)
    return F.pad(images, (1, 1, 1, 1)).flatten(2).gather(2, index).view_as(images)

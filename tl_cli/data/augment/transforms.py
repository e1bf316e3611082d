"""Random changes to a batch of images on its own device, with parameters of their own for every image.

Every parameter is a function of (seed, epoch, index of the image), so neither the batch, the number of workers nor
an interruption changes what an image looks like. Numbers become float32 before they leave the CPU: Apple's mps has
no float64.
"""

import math
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from tl_cli.contract import CropMode
from tl_cli.data.preprocess import send
from tl_cli.randomness import Purpose, mixed, splitmix64

# ITU-R 601-2 luma in ten-thousandths, as torchvision's grayscale.
_LUMA = (2989, 5870, 1140)

# As many as stay in a CPU's cache: of 64 images of 64 x 64, all at once, rotation took 3 times as long, colours 1.1
# times (one thread of an AMD EPYC, n=21).
_PIXELS_AT_ONCE = 1 << 16
# Of resizing matrices that are computed together: they take some 100 MB on the way.
_MATRIX_VALUES = 1 << 22

# Fractional bits of the numbers in a map of places, and of places in pixels: these are exact to 3e-5 pixels, and
# int32 holds 32,768 of them on either side.
_MATRIX_BITS = 32
_PLACE_BITS = 16

# Fractional bits of the weights of rows, of the levels between rows and columns, and of the weights of columns: a
# level has 8 bits, and float32 adds up whole numbers of 24 bits exactly, in any order.
_FIRST_BITS = 16
_LEVEL_BITS = 4
_SECOND_BITS = 12

# Of a random resized crop, at least.
CROP_RATIO = 3 / 4

# Zhong et al. 2017 with torchvision's range of aspect ratios, drawn again, as there, where a box does not fit.
_ERASED_AREA = (0.02, 1 / 3)
_ERASED_RATIO = (0.3, 3.3)
_ERASING_TRIES = 10

Policy = Literal["none", "randaugment", "trivialaugment"]
Border = Literal["black", "reflect"]


class Stream(IntEnum):
    """One independent series of random numbers for each use."""

    FLIP = 0
    CROP_TOP = 1
    CROP_LEFT = 2
    BRIGHTNESS = 3
    CONTRAST = 4
    SATURATION = 5
    HUE = 6
    ORDER = 7
    ANGLE = 8
    AREA = 9
    RATIO = 10
    VIEW = 11
    OP = 12
    SIGN = 13
    MAGNITUDE = 14
    ERASE = 15
    ERASE_AREA = 16
    ERASE_RATIO = 17
    ERASE_TOP = 18
    ERASE_LEFT = 19


@dataclass(frozen=True, slots=True)
class Augmentation:
    """What may happen to a training image.

    Attributes:
        flip: mirrored left to right with probability one half.
        shift: moved by up to this share of its side (RandomCrop with padding).
        border: what comes in where an image has moved away.
        min_area: smallest share of the area that a random resized crop keeps; 1 is no such crop.
        brightness: factor within 1 -+ this.
        contrast: the same, about the mean grey.
        saturation: the same, about each pixel's grey.
        hue: shift of the hue within -+ this, in turns of the colour circle.
        rotation: angle within -+ this, in degrees, nearest neighbour, black corners.
        policy: a published set of operations to draw from (``policies``).
        ops: how many operations RandAugment applies, one after another.
        magnitude: strength of RandAugment's operations, 0..30.
        erasing: probability that a random box is filled with one colour.
    """

    flip: bool = True
    shift: float = 0.0
    border: Border = "black"
    min_area: float = 1.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    rotation: float = 0.0
    policy: Policy = "none"
    ops: int = 2
    magnitude: int = 9
    erasing: float = 0.0

    @property
    def only_moves(self) -> bool:
        """Whether images keep their colours: they are cropped, moved and mirrored at most."""
        changes = self.brightness, self.contrast, self.saturation, self.hue, self.rotation, self.erasing
        return self.policy == "none" and not any(changes)


def uniform(seed: int, epoch: int, indices: np.ndarray, stream: Stream, turn: int = 0) -> np.ndarray:
    """Return one number in [0, 1) for each image, a function of the arguments alone.

    Args:
        indices: (B,) int64, positions of the images in the training part, or their keys where an image comes
            several times in an epoch (``loaders.training_order``).
        turn: which of several numbers that one stream gives an image, from 0.

    Returns:
        (B,) float64.
    """
    key = mixed(seed, Purpose.AUGMENTATION, epoch, stream, turn)
    bits = splitmix64(splitmix64(indices.astype(np.uint64) + np.uint64(key)))
    result: np.ndarray = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return result


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
        crop_mode: of the preprocessing. ``squash`` draws boxes of the squashed image, ``border`` of the padded one,
            whose boxes may begin before 0 and end beyond the image.
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
    """Return the batch moved and mirrored, image by image.

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
    # Few numbers are sent; places and what lies outside are worked out where the images are.
    row, column = send(rows, images.device)[:, :, None], send(columns, images.device)[:, None, :]
    if settings.border == "reflect":
        row, column = _reflected(row, height), _reflected(column, width)
    place = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
    index = place.view(len(place), 1, -1).expand(-1, images.shape[1], -1)
    moved = images.flatten(2).gather(2, index).view_as(images)
    if settings.border == "reflect" or not (down.any() or right.any()):
        return moved
    inside = ((row >= 0) & (row < height)) & ((column >= 0) & (column < width))
    return moved.mul_(inside[:, None])


def recolour_and_rotate(images: Tensor, settings: Augmentation, seed: int, epoch: int, indices: np.ndarray) -> Tensor:
    """Return the batch with brightness, contrast, saturation and hue changed in random order, then rotated.

    Args:
        images: (B, 3, H, W) uint8.
    """
    if settings.brightness or settings.contrast or settings.saturation or settings.hue:
        images = _recolour(images, settings, seed, epoch, indices)
    if settings.rotation:
        angles = (uniform(seed, epoch, indices, Stream.ANGLE) * 2 - 1) * settings.rotation
        images = rotate(images, angles)
    return images


def resized_crops(images: Tensor, boxes: np.ndarray, size: int, fill: tuple[int, int, int] = (0, 0, 0)) -> Tensor:
    """Return each image's box resized to (size, size), bilinear and antialiased.

    Resizing is separable, so each image is multiplied by its own two matrices of interpolation weights. Weights and
    levels are rounded so that float32 holds every sum exactly: the result does not depend on the batch or the
    processor. That moves a level by less than 0.1 before it is rounded.

    Args:
        images: (B, 3, H, W) uint8.
        boxes: (B, 4) int64 top, left, height, width.
        fill: red, green and blue where a box sticks out of its image.
    """
    height, width = images.shape[-2:]
    starts, stops = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    sticks_out = bool((starts < 0).any() or (stops > (height, width)).any())
    colour = send(np.array(fill, dtype=np.float32), images.device).view(3, 1, 1)
    scale = np.float32(1 << _LEVEL_BITS)
    at_once = min(_at_once(images), max(1, _MATRIX_VALUES // (size * max(height, width))))
    crops = []
    for piece, box in zip(images.split(at_once), np.split(boxes, range(at_once, len(boxes), at_once)), strict=True):
        vertical = _resize_matrices(box[:, 0], box[:, 2], size, height, _FIRST_BITS) * scale
        horizontal = _resize_matrices(box[:, 1], box[:, 3], size, width, _SECOND_BITS) / scale
        down, across = (send(values, images.device)[:, None] for values in (vertical, horizontal))
        crop = (down @ piece.float()).round_() @ across.mT
        if sticks_out:
            crop += (1 - down.sum(-1, keepdim=True) * across.sum(-1, keepdim=True).mT) * colour
        crops.append(to_levels(crop.round_()))
    return torch.cat(crops)


def erase(
    images: Tensor, settings: Augmentation, seed: int, epoch: int, indices: np.ndarray, fill: tuple[int, int, int]
) -> Tensor:
    """Return the batch with a box of some images filled with one colour: random erasing (Zhong et al. 2017).

    Args:
        images: (B, 3, H, W) uint8.
        fill: red, green and blue, 0..255.
    """
    chosen = np.flatnonzero(uniform(seed, epoch, indices, Stream.ERASE) < settings.erasing)
    if not len(chosen):
        return images
    boxes = erase_boxes(seed, epoch, indices[chosen], *images.shape[-2:])
    colour = send(np.array(fill, dtype=np.uint8), images.device).view(3, 1, 1)
    erased = images.clone()
    for place, (top, left, height, width) in zip(chosen.tolist(), boxes.tolist(), strict=True):
        erased[place, :, top : top + height, left : left + width] = colour
    return erased


def erase_boxes(seed: int, epoch: int, indices: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the boxes of random erasing: (B, 4) int64 top, left, height, width.

    Area uniform, aspect ratio log-uniform, smaller than the image in both directions. A box of no pixels stands where
    none of ten tries was.
    """
    boxes = np.zeros((len(indices), 4), dtype=np.int64)
    waiting = np.arange(len(indices))
    for turn in range(_ERASING_TRIES):
        if not len(waiting):
            break
        area, ratio, down, right = (
            uniform(seed, epoch, indices[waiting], stream, turn)
            for stream in (Stream.ERASE_AREA, Stream.ERASE_RATIO, Stream.ERASE_TOP, Stream.ERASE_LEFT)
        )
        area = np.interp(area, (0, 1), _ERASED_AREA) * height * width
        ratio = np.exp(np.interp(ratio, (0, 1), np.log(_ERASED_RATIO)))
        box_height, box_width = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
        top, left = np.floor(down * (height - box_height + 1)), np.floor(right * (width - box_width + 1))
        fits = (box_height < height) & (box_width < width)
        boxes[waiting[fits]] = np.stack([top, left, box_height, box_width], axis=1)[fits]
        waiting = waiting[~fits]
    return boxes


def rotate(images: Tensor, degrees: np.ndarray) -> Tensor:
    """Return each image rotated counter-clockwise about its centre by nearest neighbour, black outside.

    Args:
        images: (B, 3, H, W) uint8.
        degrees: (B,) float64.
    """
    return warp(images, rotations(degrees))


def rotations(degrees: np.ndarray) -> np.ndarray:
    """Return the matrices (B, 2, 3) float64 with which ``warp`` rotates counter-clockwise."""
    angles = np.deg2rad(degrees)
    cos, sin, zero = np.cos(angles), np.sin(angles), np.zeros_like(angles)
    return np.stack([cos, -sin, zero, sin, cos, zero], axis=1).reshape(-1, 2, 3)


def warp(images: Tensor, matrices: np.ndarray) -> Tensor:
    """Return each image under its own affine map, nearest neighbour, black outside.

    Places are worked out in integers, so that one midway between two pixels falls to the same side on every processor.

    Args:
        images: (B, 3, H, W) uint8.
        matrices: (B, 2, 3) float64, from places (x, y, 1) in the output to places (x, y) in the input, in pixels from
            the centre.
    """
    height, width = images.shape[-2:]
    units = np.rint(matrices * (1 << _MATRIX_BITS)).astype(np.int64)
    # Twice the places of pixel centres are whole numbers.
    x, y = (2 * np.arange(side) - (side - 1) for side in (width, height))
    size = _at_once(images)
    terms = []
    for axis, side in enumerate((width, height)):
        by_x, by_y, shift = (units[:, axis, place, None] for place in range(3))
        # From the outer corner of the frame that `_warp` adds.
        places = by_x * x, by_y * y + 2 * shift + (side + 2 << _MATRIX_BITS)
        terms += [
            send((place >> (_MATRIX_BITS + 1 - _PLACE_BITS)).astype(np.int32), images.device).split(size)
            for place in places
        ]
    return torch.cat([_warp(*piece) for piece in zip(images.split(size), *terms, strict=True)])


def _at_once(images: Tensor) -> int:
    """Return how many images are changed together: on a GPU all of them."""
    return max(1, _PIXELS_AT_ONCE // images[0, 0].numel()) if images.device.type == "cpu" else len(images)


def _warp(images: Tensor, column_x: Tensor, column_y: Tensor, row_x: Tensor, row_y: Tensor) -> Tensor:
    """Return each pixel from the column and the row that its terms, int32 by x (B, W) and by y (B, H), add up to.

    The columns and rows are those of images with a black frame of one pixel.
    """
    height, width = images.shape[-2:]
    column = (column_x[:, None] + column_y[:, :, None]).bitwise_right_shift_(_PLACE_BITS).clamp_(0, width + 1)
    row = (row_x[:, None] + row_y[:, :, None]).bitwise_right_shift_(_PLACE_BITS).clamp_(0, height + 1)
    place = row.mul_(width + 2).add_(column).long()
    index = place.view(len(place), 1, -1).expand(-1, images.shape[1], -1)
    return F.pad(images, (1, 1, 1, 1)).flatten(2).gather(2, index).view_as(images)


def per_image(values: np.ndarray, device: torch.device) -> Tensor:
    """Return (B, 1, 1, 1) float32 on a device, to be combined with images."""
    return send(values.astype(np.float32), device).view(-1, 1, 1, 1)


def _recolour(images: Tensor, settings: Augmentation, seed: int, epoch: int, indices: np.ndarray) -> Tensor:
    def factor(spread: float, stream: Stream) -> np.ndarray:
        return 1 + (uniform(seed, epoch, indices, stream) * 2 - 1) * spread

    shift = (uniform(seed, epoch, indices, Stream.HUE) * 2 - 1) * settings.hue
    factors = (
        factor(settings.brightness, Stream.BRIGHTNESS),
        factor(settings.contrast, Stream.CONTRAST),
        factor(settings.saturation, Stream.SATURATION),
        shift,
    )
    return recolour(images, factors, _orders(uniform(seed, epoch, indices, Stream.ORDER)))


def recolour(images: Tensor, factors: tuple[np.ndarray, ...], orders: np.ndarray) -> Tensor:
    """Return the batch after four colour changes, each image in an order of its own.

    Each is rounded to grey levels before the next, as torchvision's functional operations are.

    Args:
        images: (B, 3, H, W) uint8.
        factors: (B,) float64 each, of brightness, contrast, saturation (factors) and hue (turns).
        orders: (B, 4) int64, permutations of 0..3 in that order.
    """
    result = images
    changes = (brightness, contrast, saturation, _hue)
    for turn in range(4):
        current = result.clone()
        for kind, change in enumerate(changes):
            chosen = np.flatnonzero(orders[:, turn] == kind)
            if len(chosen):
                places = send(chosen, images.device).split(_at_once(images))
                amounts = per_image(factors[kind][chosen], images.device).split(_at_once(images))
                for place, amount in zip(places, amounts, strict=True):
                    current.index_copy_(0, place, change(result.index_select(0, place), amount))
        result = current
    return result


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Return the images (B, 3, H, W) uint8 multiplied by factors (B, 1, 1, 1) float32."""
    return to_levels(images.float() * factor)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Return the images (B, 3, H, W) uint8 moved away from their mean grey by factors (B, 1, 1, 1) float32."""
    # A float32 sum of more than 256 x 256 levels would depend on its order.
    total = _grey(images).to(torch.int32).sum((1, 2, 3), keepdim=True)
    mean = total.float() * (1 / images[0, 0].numel())
    return to_levels(factor * images.float() + (1 - factor) * mean)


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Return the images (B, 3, H, W) uint8 moved away from each pixel's grey by factors (B, 1, 1, 1) float32."""
    return to_levels(factor * images.float() + (1 - factor) * _grey(images))


def to_levels(values: Tensor) -> Tensor:
    """Return values cut to grey levels, uint8; the argument is clamped in place."""
    # By way of int16: straight from float32 it takes a CPU 4 times as long.
    return values.clamp_(0, 255).to(torch.int16).to(torch.uint8)


def _hue(images: Tensor, turns: Tensor) -> Tensor:
    """Through HSV and back: a rotation in YIQ is faster but is not hue."""
    # Compared as levels: bool from float32 takes 20 times as long on a CPU.
    largest = torch.maximum(torch.maximum(images[:, 0], images[:, 1]), images[:, 2])
    is_red, is_green = largest == images[:, 0], largest == images[:, 1]
    # Products, not quotients: a GPU divides by a number as it multiplies by the inverse, a CPU does not.
    channels = images.float().mul_(1 / 255)
    red, green, blue = channels.unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    # Less than any chroma but that of greys, whose differences are 0 too.
    safe = chroma.clamp_min(1 / 512)
    hue = torch.where(
        is_red,
        (green - blue).div_(safe),
        torch.where(is_green, (blue - red).div_(safe).add_(2), (red - green).div_(safe).add_(4)),
    )
    hue = hue.mul_(1 / 6).add_(turns.view(-1, 1, 1))
    # Both remainders by what is cheap and has the same bits: a part of a turn, and k, which is below 12.
    sixths = hue.sub_(hue.floor()).mul_(6)
    # Smith (1978), in the closed form: a channel is V - C * clamp(min(k, 4 - k), 0, 1), k = (n + 6 H) mod 6.
    wraps = torch.empty_like(sixths)
    for channel, offset in zip((red, green, blue), (5, 3, 1), strict=True):
        k = sixths + offset
        k.sub_(torch.ge(k, 6, out=wraps).mul_(6))
        share = torch.minimum(k, 4 - k).clamp_(0, 1)
        torch.sub(value, share.mul_(chroma), out=channel)
    return to_levels(channels.mul_(256 - 1e-3))


def _grey(images: Tensor) -> Tensor:
    """Return the grey levels (B, 1, H, W), whole numbers in float32."""
    red, green, blue = images.float().unbind(1)
    # Whole numbers below 2**22. The half keeps the quotient off the levels, where its rounding would decide.
    weighted = (_LUMA[0] * red).add_(_LUMA[1] * green).add_(_LUMA[2] * blue).add_(0.5)
    return weighted.mul_(1e-4).floor_().unsqueeze(1)


def _orders(numbers: np.ndarray) -> np.ndarray:
    """Return a permutation of 0..3 for each number in [0, 1), all 24 equally likely."""
    permutations = np.array(
        [[a, b, c, 6 - a - b - c] for a in range(4) for b in range(4) for c in range(4) if len({a, b, c}) == 3]
    )
    order: np.ndarray = permutations[(numbers * len(permutations)).astype(np.int64)]
    return order


def _offsets(share: float, side: int, numbers: np.ndarray) -> np.ndarray:
    reach = round(share * side)
    offsets: np.ndarray = np.floor(numbers * (2 * reach + 1)).astype(np.int64) - reach
    return offsets


def _reflected(places: Tensor, side: int) -> Tensor:
    """Return places that lie outside 0..side-1, by less than a side, mirrored at the outermost pixel's centre."""
    last = side - 1
    return last - (last - places.abs()).abs()


def _resize_matrices(starts: np.ndarray, lengths: np.ndarray, size: int, side: int, bits: int) -> np.ndarray:
    """Return (B, size, side) float32: row i holds the weights of the input pixels in output pixel i.

    A triangle filter as wide as the scale, as Pillow's and torch's antialiased bilinear resize. The weights are
    multiples of 2**-bits and add up to 1, or to less in a row that shows what lies outside.
    """
    outside = int(max(0, -starts.min(), (starts + lengths).max() - side))
    # In pixels / (2 * size), everything is a whole number that float32 holds.
    starts, lengths = (values[:, None, None].astype(np.float32) for values in (starts, lengths))
    centre = (2 * np.arange(size, dtype=np.float32)[:, None] + 1) * lengths
    place = (2 * (np.arange(-outside, side + outside, dtype=np.float32) - starts) + 1) * size
    weight = np.abs(place - centre)
    np.maximum(np.subtract(2 * np.maximum(lengths, size), weight, out=weight), 0, out=weight)
    weight *= (place > 0) & (place < 2 * size * lengths)
    # Their sums are rounded, so what one weight loses the next one gains.
    upto = weight.cumsum(-1, out=weight)
    upto /= upto[..., -1:] * 2.0**-bits
    np.rint(upto, out=upto)
    upto *= 2.0**-bits
    upto[..., 1:] -= upto[..., :-1]
    return upto[..., outside : outside + side]

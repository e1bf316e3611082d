"""From pixels to the input of a network. Training, evaluation and prediction all use these functions."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
import torchvision.transforms.v2.functional as tv
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode

from tl_cli.contract import Interpolation, Preprocessing
from tl_cli.data.decode import Picture, decode_picture

# A picture with a larger ratio of its sides is not resized as a whole: 20,000 x 4 pixels would become 1,280,000 x 256.
_ELONGATED = 8
# Large JPEGs are decoded with this many times the pixels that resizing leaves, in each direction. The mean difference
# from whole decoding on noise and photographs of four odd sizes, resized to 64..256: 2.9 grey levels at most with 2
# times, 0.93 with 3, 0.65 with 4, 0.46 with 5.
_SPARE = 5
# Pillow first averages whole blocks of pixels if there are this many times as many as needed.
_REDUCING_GAP = 64


@dataclass(frozen=True, slots=True)
class _Span:
    """The part of a picture's side that fills ``count`` pixels of the input, from its pixel ``first`` on."""

    start: float
    stop: float
    first: int
    count: int


def open_picture(source: Path | bytes, preprocessing: Preprocessing, max_pixels: int | None = None) -> Picture:
    """Return a decoded picture, no larger than the preprocessing needs it.

    Raises:
        DataError: it cannot be decoded.
    """
    side, pixel_range = decoded_side(preprocessing), preprocessing.pixel_range
    return decode_picture(source, short_side=side, pixel_range=pixel_range, max_pixels=max_pixels)


def read_input(source: Path | bytes, preprocessing: Preprocessing, max_pixels: int | None = None) -> Tensor:
    """Return the network's input for an image, before normalisation: (3, crop, crop) uint8.

    Raises:
        DataError: it cannot be decoded.
    """
    return prepare(open_picture(source, preprocessing, max_pixels), preprocessing)


def decoded_side(preprocessing: Preprocessing) -> int:
    """Return the ``short_side`` with which files are decoded for this preprocessing."""
    return math.ceil(_SPARE / 2 * preprocessing.resize)


def as_tensor(pixels: np.ndarray) -> Tensor:
    """Return pixels (H, W, 3) as (3, H, W), contiguous."""
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def prepare(picture: Picture, preprocessing: Preprocessing) -> Tensor:
    """Return the network's input for an image, before normalisation: (3, crop, crop) uint8."""
    if _is_plain(picture):
        return resize_crop(as_tensor(picture.pixels), preprocessing)
    spans = [
        _centred(side, resized, preprocessing.crop)
        for side, resized in zip(picture.size, _resized(*picture.size, preprocessing), strict=True)
    ]
    fill = mean_colour(preprocessing) if preprocessing.crop_mode == "border" else (0, 0, 0)
    return _cut_out(picture, spans, preprocessing.crop, preprocessing.interpolation, fill)


def cut_box(picture: Picture, box: np.ndarray, preprocessing: Preprocessing) -> Tensor:
    """Return a box of a picture resized to (3, crop, crop), bilinear and antialiased.

    Args:
        box: top, left, height, width in pixels of the whole picture; filled with the mean colour outside of it.
    """
    top, left, height, width = box.tolist()
    crop, (rows, columns) = preprocessing.crop, picture.size
    if _is_plain(picture) and top >= 0 and left >= 0 and top + height <= rows and left + width <= columns:
        cut = torch.from_numpy(picture.pixels[top : top + height, left : left + width]).permute(2, 0, 1)
        return resize(cut, (crop, crop), InterpolationMode.BILINEAR)
    spans = [_drawn(rows, top, height, crop), _drawn(columns, left, width, crop)]
    return _cut_out(picture, spans, crop, "bilinear", mean_colour(preprocessing))


def _cut_out(
    picture: Picture, spans: list[_Span], side: int, interpolation: Interpolation, fill: tuple[int, int, int]
) -> Tensor:
    """Return (3, side, side) uint8: a part of a picture, resized, in a square of one colour.

    Nothing larger than the square or the part is computed. The filter uses pixels beside the part too, as if the whole
    picture had been resized and then cropped.
    """
    pixels, (rows, columns) = picture.pixels, spans
    height, width = pixels.shape[:2]
    square = torch.tensor(fill, dtype=torch.uint8).view(3, 1, 1).repeat(1, side, side)
    if not (rows.count and columns.count):
        return square
    left, top, right, bottom = picture.box or (0, 0, width, height)
    down, across = (bottom - top) / picture.size[0], (right - left) / picture.size[1]
    y, y_from, y_to = _reach(top + rows.start * down, top + rows.stop * down, rows.count, height)
    x, x_from, x_to = _reach(left + columns.start * across, left + columns.stop * across, columns.count, width)
    part = np.ascontiguousarray(pixels[y_from:y_to, x_from:x_to])
    resized = Image.fromarray(part).resize(
        (columns.count, rows.count),
        Image.Resampling[interpolation.upper()],
        box=(x[0] - x_from, y[0] - y_from, x[1] - x_from, y[1] - y_from),
        reducing_gap=_REDUCING_GAP,
    )
    inside = square[:, rows.first : rows.first + rows.count, columns.first : columns.first + columns.count]
    inside.copy_(as_tensor(np.array(resized)))
    return square


def _reach(start: float, stop: float, count: int, side: int) -> tuple[tuple[float, float], int, int]:
    """Return a span within a side, and the pixels from which the widest filter (bicubic: two pixels) computes it."""
    start, stop = max(0.0, start), min(float(side), stop)
    reach = 2 * max(1.0, (stop - start) / count) + 1
    return (start, stop), max(0, math.floor(start - reach)), min(side, math.ceil(stop + reach))


def _centred(side: int, resized: int, crop: int) -> _Span:
    """Return the centre crop of a side that is resized; all of it, in the middle, if it is smaller than the crop."""
    if resized < crop:
        return _Span(0, side, (crop - resized) // 2, resized)
    first = round((resized - crop) / 2)
    return _Span(first * side / resized, (first + crop) * side / resized, 0, crop)


def _drawn(side: int, start: int, length: int, crop: int) -> _Span:
    """Return the part of a side within a box of ``length`` pixels from ``start``, which is resized to ``crop``."""
    inside = max(0, start), min(side, start + length)
    if inside[0] >= inside[1]:
        return _Span(0, side, 0, 0)
    first, stop = -((start - inside[0]) * crop // length), (inside[1] - start) * crop // length
    if first >= stop:  # less than a pixel of the input
        return _Span(*inside, min(first, crop - 1), 1)
    return _Span(start + first * length / crop, start + stop * length / crop, first, stop - first)


def _is_plain(picture: Picture) -> bool:
    """Return whether a picture was decoded whole, and is resized as a whole."""
    return picture.box is None and not _is_elongated(*picture.size)


def _is_elongated(height: int, width: int) -> bool:
    return max(height, width) > _ELONGATED * min(height, width)


def resize_crop(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Return the centre crops that a network sees, before normalisation.

    Args:
        images: (..., 3, H, W) uint8.

    Returns:
        (..., 3, crop, crop) uint8. Resizing is antialiased and rounded to grey levels, so that every path to
        a network (training, evaluation, a served model) feeds it the same numbers.
    """
    height, width = images.shape[-2:]
    if _is_elongated(height, width):
        flat = images.reshape(-1, *images.shape[-3:]).cpu()
        cuts = torch.stack([prepare(Picture.of(image.permute(1, 2, 0).numpy()), preprocessing) for image in flat])
        return cuts.view(*images.shape[:-2], *cuts.shape[-2:]).to(images.device)
    size = _resized(height, width, preprocessing)
    if size != (height, width):
        images = resize(images, size, InterpolationMode(preprocessing.interpolation))
    down, right = (max(0, preprocessing.crop - side) for side in images.shape[-2:])
    if preprocessing.crop_mode == "border" and (down or right):
        around = [right // 2, down // 2, right - right // 2, down - down // 2]
        images = tv.pad(images, around, fill=list(mean_colour(preprocessing)))
    if tuple(images.shape[-2:]) != (preprocessing.crop, preprocessing.crop):
        images = tv.center_crop(images, [preprocessing.crop])
    return images


def resize(images: Tensor, size: tuple[int, int], mode: InterpolationMode) -> Tensor:
    """Return (..., 3, height, width) uint8, antialiased.

    On a CPU in integers, with equal results on all; torchvision uses float32 for bilinear without AVX2.
    """
    if images.device.type != "cpu" or mode is not InterpolationMode.BILINEAR or images.shape[-2:] == size:
        images = tv.resize(images, list(size), interpolation=mode, antialias=True)
    else:
        flat = images.reshape(-1, *images.shape[-3:])
        images = F.interpolate(flat, size, mode="bilinear", antialias=True).view(*images.shape[:-2], *size)
    return images


def _resized(height: int, width: int, preprocessing: Preprocessing) -> tuple[int, int]:
    """Return the height and width before the crop."""
    resize = preprocessing.resize
    if preprocessing.crop_mode == "squash":
        return resize, resize
    # Rounded as timm's ResizeKeepRatio and torchvision's Resize do, so published accuracies can be reproduced.
    if preprocessing.crop_mode == "border":
        ratio = max(height, width) / resize
        return max(1, round(height / ratio)), max(1, round(width / ratio))
    side = min(height, width)
    return max(1, height * resize // side), max(1, width * resize // side)


def mean_colour(preprocessing: Preprocessing) -> tuple[int, int, int]:
    """Return the mean as red, green and blue, 0..255."""
    red, green, blue = (min(255, max(0, round(255 * mean))) for mean in preprocessing.mean)
    return red, green, blue


def normalise(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Return (B, 3, H, W) float32 in the images' memory format, by the weights' statistics.

    Args:
        images: uint8 or float, range 0..255.
    """
    if images.is_contiguous() or not images.is_contiguous(memory_format=torch.channels_last):
        return _normalise(
            images, *(np.reshape(values, (3, 1, 1)) for values in (preprocessing.mean, preprocessing.std))
        )
    batch, channels, height, width = images.shape
    # Whole rows of pixels: with three values per row, as in memory, arithmetic takes a CPU 7 times as long.
    rows = images.permute(0, 2, 3, 1).reshape(batch, height, width * channels)
    rows = _normalise(rows, *(np.tile(values, width) for values in (preprocessing.mean, preprocessing.std)))
    return rows.view(batch, height, width, channels).permute(0, 3, 1, 2)


def _normalise(values: Tensor, mean: np.ndarray, std: np.ndarray) -> Tensor:
    middle, spread = (send(numbers.astype(np.float32), values.device) for numbers in (mean, std))
    if values.dtype == torch.uint8:
        return values.float().div_(255).sub_(middle).div_(spread)
    return (values / 255 - middle) / spread


def send(values: np.ndarray, device: torch.device) -> Tensor:
    """Return an array on a device, without waiting for what a GPU computes."""
    # Memory that is not pinned is copied before this returns, so the array may be freed.
    return torch.from_numpy(values).to(device, non_blocking=device.type == "cuda")

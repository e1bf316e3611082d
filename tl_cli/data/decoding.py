"""From pixels to the input of a network: the one place for it."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
import torchvision.transforms.v2.functional as tv
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode

from tl_cli.contract import PixelRange, Preprocessing
from tl_cli.data.pictures import decode_pixels


def decode(source: Path | bytes, *, short_side: int | None = None, pixel_range: PixelRange | None = None) -> Tensor:
    """Return a picture as ``decode_pixels`` does, laid out for a network: (3, H, W) uint8."""
    pixels = decode_pixels(source, short_side=short_side, pixel_range=pixel_range)
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def resize_crop(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Return the centre crops that a network sees, before normalisation.

    Args:
        images: (..., 3, H, W) uint8.

    Returns:
        (..., 3, crop, crop) uint8. Resizing is antialiased and rounded to grey levels, so that every path to
        a network (training, evaluation, a served model) feeds it the same numbers.
    """
    height, width = images.shape[-2:]
    wanted = _resized(height, width, preprocessing)
    if wanted != (height, width):
        images = resize(images, wanted, InterpolationMode(preprocessing.interpolation))
    if preprocessing.crop_mode == "border":
        images = _padded(images, preprocessing)
    if tuple(images.shape[-2:]) != (preprocessing.crop, preprocessing.crop):
        images = tv.center_crop(images, [preprocessing.crop])
    return images


def resize(images: Tensor, size: tuple[int, int], mode: InterpolationMode) -> Tensor:
    """Return (..., 3, height, width) uint8, antialiased.

    On a CPU in integers, with the same result on each; torchvision takes float32 for bilinear where there is no AVX2.
    """
    resized: Tensor
    if images.device.type == "cpu" and mode is InterpolationMode.BILINEAR and images.shape[-2:] != size:
        flat = images.reshape(-1, *images.shape[-3:])
        resized = F.interpolate(flat, size, mode="bilinear", antialias=True).view(*images.shape[:-2], *size)
    else:
        resized = tv.resize(images, list(size), interpolation=mode, antialias=True)
    return resized


def _resized(height: int, width: int, preprocessing: Preprocessing) -> tuple[int, int]:
    """Return the height and width before the crop."""
    resize = preprocessing.resize
    if preprocessing.crop_mode == "squash":
        return resize, resize
    # Rounded as timm's ResizeKeepRatio and torchvision's Resize do, so published accuracies can be reproduced.
    if preprocessing.crop_mode == "border":
        side = max(height, width)
        return max(1, round(height * resize / side)), max(1, round(width * resize / side))
    side = min(height, width)
    return max(1, height * resize // side), max(1, width * resize // side)


def _padded(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Return images of at least the crop's size, filled up with the mean colour around them."""
    down, right = (max(0, preprocessing.crop - side) for side in images.shape[-2:])
    if not (down or right):
        return images
    colour = send(np.array([round(255 * value) for value in preprocessing.mean]), images.device).to(images.dtype)
    size = (*images.shape[:-2], images.shape[-2] + down, images.shape[-1] + right)
    filled = colour.view(3, 1, 1).expand(size).clone()
    top, left = down // 2, right // 2
    filled[..., top : top + images.shape[-2], left : left + images.shape[-1]] = images
    return filled


def normalise(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Return (B, 3, H, W) float32 in the images' memory format, by the weights' statistics.

    Args:
        images: uint8 or float, range 0..255.
    """
    is_by_pixel = images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()
    if is_by_pixel:
        batch, channels, height, width = images.shape
        # Rows of pixels: with three values a row, as the layout has it, arithmetic takes a CPU 7 times as long.
        rows = images.permute(0, 2, 3, 1).reshape(batch, height, width * channels)
        mean, std = (np.tile(values, width) for values in (preprocessing.mean, preprocessing.std))
        normalised = _normalise(rows, mean, std).view(batch, height, width, channels).permute(0, 3, 1, 2)
    else:
        mean, std = (np.reshape(values, (3, 1, 1)) for values in (preprocessing.mean, preprocessing.std))
        normalised = _normalise(images, mean, std)
    return normalised


def _normalise(values: Tensor, mean: np.ndarray, std: np.ndarray) -> Tensor:
    middle, spread = (send(numbers.astype(np.float32), values.device) for numbers in (mean, std))
    if values.dtype == torch.uint8:
        return values.float().div_(255).sub_(middle).div_(spread)
    return (values / 255 - middle) / spread


def send(values: np.ndarray, device: torch.device) -> Tensor:
    """Return an array on a device; a GPU goes on with what it computes meanwhile."""
    # Memory that is not pinned is copied before this returns, so the array may be freed.
    return torch.from_numpy(values).to(device, non_blocking=device.type == "cuda")

"""Color changes of a batch of images, each image with its own strength."""

from itertools import permutations

import numpy as np
import torch
from torch import Tensor

from tl_cli.data.augment.pixels import change_chosen, to_levels
from tl_cli.data.augment.settings import Augmentation, Stream, uniform

# ITU-R 601-2 luma in ten-thousandths, as torchvision's grayscale.
_LUMA = (2989, 5870, 1140)
_ORDERS = np.array(list(permutations(range(4))))


def jitter(images: Tensor, settings: Augmentation, seed: int, epoch: int, indices: np.ndarray) -> Tensor:
    """Return the batch with brightness, contrast, saturation and hue changed in random order.

    Args:
        images: (B, 3, H, W) uint8.
    """
    if not (settings.brightness or settings.contrast or settings.saturation or settings.hue):
        return images

    def drawn(spread: float, stream: Stream) -> np.ndarray:
        return (uniform(seed, epoch, indices, stream) * 2 - 1) * spread

    factors = (
        1 + drawn(settings.brightness, Stream.BRIGHTNESS),
        1 + drawn(settings.contrast, Stream.CONTRAST),
        1 + drawn(settings.saturation, Stream.SATURATION),
        drawn(settings.hue, Stream.HUE),
    )
    numbers = uniform(seed, epoch, indices, Stream.ORDER)
    return adjust(images, factors, _ORDERS[(numbers * len(_ORDERS)).astype(np.int64)])


def adjust(images: Tensor, factors: tuple[np.ndarray, ...], orders: np.ndarray) -> Tensor:
    """Return the batch after four color changes, in the order given for each image.

    Each is rounded to gray levels before the next, as torchvision's functional operations are.

    Args:
        images: (B, 3, H, W) uint8.
        factors: (B,) float64 each, of brightness, contrast, saturation (factors) and hue (turns).
        orders: (B, 4) int64, permutations of 0..3 in that order.
    """
    result = images
    changes = (brightness, contrast, saturation, hue)
    for turn in range(4):
        current = result.clone()
        for kind, change in enumerate(changes):
            change_chosen(current, result, np.flatnonzero(orders[:, turn] == kind), change, factors[kind])
        result = current
    return result


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Return the images (B, 3, H, W) uint8 multiplied by factors (B, 1, 1, 1) float32."""
    return to_levels(images.float() * factor)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Return the images (B, 3, H, W) uint8 moved away from their mean gray by factors (B, 1, 1, 1) float32."""
    # A float32 sum of more than 256 x 256 levels would depend on its order.
    total = _gray(images).to(torch.int32).sum((1, 2, 3), keepdim=True)
    mean = total.float() * (1 / images[0, 0].numel())
    return to_levels(factor * images.float() + (1 - factor) * mean)


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Return the images (B, 3, H, W) uint8 moved away from each pixel's gray by factors (B, 1, 1, 1) float32."""
    return to_levels(factor * images.float() + (1 - factor) * _gray(images))


def hue(images: Tensor, turns: Tensor) -> Tensor:
    """Return the images (B, 3, H, W) uint8 with their hue shifted by turns (B, 1, 1, 1) of the color circle.

    The conversion is to HSV and back: a rotation in YIQ is faster but changes more than the hue.
    """
    # Compared as levels: bool from float32 takes 20 times as long on a CPU.
    largest = torch.maximum(torch.maximum(images[:, 0], images[:, 1]), images[:, 2])
    is_red, is_green = largest == images[:, 0], largest == images[:, 1]
    # Multiplied, since a GPU replaces a division by a constant with a multiplication and a CPU does not.
    channels = images.float().mul_(1 / 255)
    red, green, blue = channels.unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    # Smaller than any chroma other than 0, where the differences are 0 too.
    safe = chroma.clamp_min(1 / 512)
    angle = torch.where(
        is_red,
        (green - blue).div_(safe),
        torch.where(is_green, (blue - red).div_(safe).add_(2), (red - green).div_(safe).add_(4)),
    )
    angle = angle.mul_(1 / 6).add_(turns.view(-1, 1, 1))
    # Cheaper than remainder(), with the same bits: the fraction of a turn, and k, which is below 12.
    sixths = angle.sub_(angle.floor()).mul_(6)
    # Smith (1978), in the closed form: a channel is V - C * clamp(min(k, 4 - k), 0, 1), k = (n + 6 H) mod 6.
    wraps = torch.empty_like(sixths)
    for channel, offset in zip((red, green, blue), (5, 3, 1), strict=True):
        k = sixths + offset
        k.sub_(torch.ge(k, 6, out=wraps).mul_(6))
        weight = torch.minimum(k, 4 - k).clamp_(0, 1)
        torch.sub(value, weight.mul_(chroma), out=channel)
    return to_levels(channels.mul_(256 - 1e-3))


def _gray(images: Tensor) -> Tensor:
    """Return the gray levels (B, 1, H, W), integers in float32."""
    red, green, blue = images.float().unbind(1)
    # Integers below 2**22. Adding a half keeps the quotient away from integers, where rounding errors would matter.
    weighted = (_LUMA[0] * red).add_(_LUMA[1] * green).add_(_LUMA[2] * blue).add_(0.5)
    return weighted.mul_(1e-4).floor_().unsqueeze(1)

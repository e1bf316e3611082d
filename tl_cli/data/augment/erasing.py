"""Random erasing (Zhong et al. 2017): a box of some images is filled with one color."""

import numpy as np
from torch import Tensor

from tl_cli.data.augment.settings import Augmentation, Stream, uniform
from tl_cli.data.preprocess import send

# Fractions of the area as in the paper; range of aspect ratios and number of tries as in torchvision.
_ERASED_AREA = (0.02, 1 / 3)
_ERASED_RATIO = (0.3, 3.3)
_ERASING_TRIES = 10


def erase(
    images: Tensor, settings: Augmentation, seed: int, epoch: int, indices: np.ndarray, fill: tuple[int, int, int]
) -> Tensor:
    """Return the batch with a random box of some images filled with one color.

    Args:
        images: (B, 3, H, W) uint8.
        fill: red, green and blue, 0..255.
    """
    chosen = np.flatnonzero(uniform(seed, epoch, indices, Stream.ERASE) < settings.random_erasing)
    if not len(chosen):
        return images
    boxes = erase_boxes(seed, epoch, indices[chosen], *images.shape[-2:])
    color = send(np.array(fill, dtype=np.uint8), images.device).view(3, 1, 1)
    erased = images.clone()
    for index, (top, left, height, width) in zip(chosen.tolist(), boxes.tolist(), strict=True):
        erased[index, :, top : top + height, left : left + width] = color
    return erased


def erase_boxes(seed: int, epoch: int, indices: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the boxes of random erasing: (B, 4) int64 top, left, height, width.

    Area uniform, aspect ratio log-uniform; empty if ten tries gave none that is smaller than the image on both sides.
    """
    boxes = np.zeros((len(indices), 4), dtype=np.int64)
    remaining = np.arange(len(indices))
    for turn in range(_ERASING_TRIES):
        area, ratio, down, right = (
            uniform(seed, epoch, indices[remaining], stream, turn)
            for stream in (Stream.ERASE_AREA, Stream.ERASE_RATIO, Stream.ERASE_TOP, Stream.ERASE_LEFT)
        )
        area = np.interp(area, (0, 1), _ERASED_AREA) * height * width
        ratio = np.exp(np.interp(ratio, (0, 1), np.log(_ERASED_RATIO)))
        box_height, box_width = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
        top, left = np.floor(down * (height - box_height + 1)), np.floor(right * (width - box_width + 1))
        fits = (box_height < height) & (box_width < width)
        boxes[remaining[fits]] = np.stack([top, left, box_height, box_width], axis=1)[fits]
        remaining = remaining[~fits]
    return boxes

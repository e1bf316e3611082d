"""Settings of augmentation, and its random numbers.

Every number is a function of (seed, epoch, index of the image), so an image is augmented equally in any batch, with any
number of workers and after an interruption.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from enum import IntEnum
from typing import Literal

import numpy as np

from tl_cli.choices import AugmentName, AutoAugment
from tl_cli.randomness import Purpose, mixed, splitmix64

Border = Literal["black", "reflect"]


# One independent series of random numbers for each use, numbered from 0. New ones are added at the end, since a resumed
# run continues with these numbers.
Stream = IntEnum(
    "Stream",
    "FLIP CROP_TOP CROP_LEFT BRIGHTNESS CONTRAST SATURATION HUE ORDER ANGLE AREA RATIO VIEW OP SIGN MAGNITUDE ERASE "
    "ERASE_AREA ERASE_RATIO ERASE_TOP ERASE_LEFT",
    start=0,
)


@dataclass(frozen=True, slots=True)
class Augmentation:
    """The random changes of a training image. A field that ``TrainConfig`` has too takes its value from there.

    Attributes:
        flip: mirror left to right with probability one half.
        shift: largest shift as a fraction of the side (RandomCrop with padding).
        border: what fills the pixels that a shift uncovers.
        min_area: smallest fraction of the area that a random resized crop keeps; 1 turns it off.
        brightness: range of the brightness factor, 1 -+ this.
        contrast: range of the factor of the distance from the image's mean gray, 1 -+ this.
        saturation: range of the factor of the distance from each pixel's gray, 1 -+ this.
        hue: range of the shift of the hue, -+ this, in turns of the color circle.
        rotation: range of the angle, -+ this, in degrees; nearest neighbour, black corners.
        auto_augment: a published set of operations to draw from (``policies``).
        auto_ops: how many operations RandAugment applies, one after another.
        auto_magnitude: strength of RandAugment's operations, 0..30.
        random_erasing: probability that a random box is filled with one color.
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
    auto_augment: AutoAugment = "none"
    auto_ops: int = 2
    auto_magnitude: int = 9
    random_erasing: float = 0.0

    @property
    def only_moves(self) -> bool:
        """Whether images are at most cropped, shifted and mirrored."""
        changes = self.brightness, self.contrast, self.saturation, self.hue, self.rotation, self.random_erasing
        return self.auto_augment == "none" and not any(changes)

    @property
    def all_views(self) -> tuple[Literal["plain", "mirrored"], ...] | None:
        """What may become of an image if it is at most mirrored; None if there is more."""
        if self.shift or self.min_area < 1 or self.rotation or not self.only_moves:
            return None
        return ("plain", "mirrored") if self.flip else ("plain",)


# By the names of ``--augment``.
PRESETS: Mapping[AugmentName, Augmentation] = {
    "none": Augmentation(flip=False),
    "shift": Augmentation(flip=False, shift=0.125, border="reflect"),
    "flip": Augmentation(),
    "flip-shift": Augmentation(shift=0.125, border="reflect"),
    "flip-crop": Augmentation(min_area=0.35),
    "blog": Augmentation(shift=0.125, brightness=0.2, contrast=0.2, saturation=0.2, hue=0.1, rotation=15),
}


def augmentation(preset: AugmentName, config: object) -> Augmentation:
    """Return a preset in which every field that ``config`` also has is replaced by the value of ``config``."""
    given = {each.name: getattr(config, each.name) for each in fields(Augmentation) if hasattr(config, each.name)}
    return replace(PRESETS[preset], **given)


def uniform(seed: int, epoch: int, indices: np.ndarray, stream: Stream, turn: int = 0) -> np.ndarray:
    """Return one number in [0, 1) for each image, a function of the arguments alone.

    Args:
        indices: (B,) int64, indices of the images in the training part, or their keys if images are repeated in an
            epoch (``batches.training_order``).
        turn: which number of the stream for an image, from 0.

    Returns:
        (B,) float64.
    """
    key = mixed(seed, Purpose.AUGMENTATION, epoch, stream, turn)
    bits = splitmix64(splitmix64(indices.astype(np.uint64) + np.uint64(key)))
    result: np.ndarray = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return result

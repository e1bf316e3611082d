"""Sizes of the pictures of a data set, from their headers."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from tl_cli.data.decode import picture_size
from tl_cli.data.images import Images, PackedImages
from tl_cli.errors import DataError

# A header takes a tenth of a millisecond; a median of 500 pictures is within a few percentiles of that of all.
_SAMPLE = 500
# A centre crop of 3:2 photographs, which networks are trained on, leaves out 33%, of 16:9 44%.
_MUCH = 0.4
# If a larger share of the pictures loses much, there is a note although a typical one does not.
_SOME = 0.1


@dataclass(frozen=True, slots=True)
class Sizes:
    """Heights and widths of some pictures.

    Attributes:
        heights: (N,) int64, N > 0.
        widths: (N,) int64.
        is_sample: whether there are more pictures than these.
    """

    heights: np.ndarray
    widths: np.ndarray
    is_sample: bool = False

    @classmethod
    def of(cls, sizes: Sequence[tuple[int, int]], *, is_sample: bool = False) -> "Sizes | None":
        """Return the sizes (height, width), None where there are none."""
        if not sizes:
            return None
        heights, widths = np.array(sizes, dtype=np.int64).T
        return cls(heights, widths, is_sample)

    @property
    def short_sides(self) -> np.ndarray:
        """The shorter side of each picture, sorted."""
        return np.sort(np.minimum(self.heights, self.widths))

    @property
    def median(self) -> int:
        """Median of the short sides; with an even number of pictures the larger of the two in the middle."""
        return int(self.short_sides[len(self.heights) // 2])

    @property
    def smallest(self) -> int:
        """The smallest short side."""
        return int(self.short_sides[0])

    @property
    def largest(self) -> int:
        """The largest short side."""
        return int(self.short_sides[-1])

    def share_below(self, pixels: int) -> float:
        """Return the share of pictures whose short side is below this."""
        return float(np.mean(self.short_sides < pixels))

    def crop_note(self) -> str | None:
        """Return a note if a center crop leaves out much of the pictures, else None."""
        left_out = 1 - np.minimum(self.heights, self.widths) / np.maximum(self.heights, self.widths)
        typical = int(np.argsort(left_out, kind="stable")[len(left_out) // 2])
        affected = float(np.mean(left_out > _MUCH))
        if left_out[typical] > _MUCH:
            size = f"{self.widths[typical]} x {self.heights[typical]} px"
            loss = f"{left_out[typical]:.0%} of a typical picture ({size})"
        elif affected >= _SOME:
            loss = f"more than {_MUCH:.0%} of {affected:.0%} of the pictures"
        else:
            return None
        return f"the centre crop leaves out {loss}; --resize pad or squash keeps all of it"


def measure(images: Images) -> Sizes | None:
    """Return the sizes of images, or of a fixed sample of them if there are many; None if no file can be read."""
    if isinstance(images, PackedImages):
        return Sizes.of([(images.pixels.shape[-2], images.pixels.shape[-1])])
    chosen = np.arange(len(images))
    if len(images) > _SAMPLE:
        # At random: every tenth of a, a_small, b, b_small, ... would be of one kind.
        chosen = np.sort(np.random.default_rng(0).choice(len(images), _SAMPLE, replace=False))
    sizes = []
    for index in chosen.tolist():
        with suppress(DataError):
            sizes.append(picture_size(images.path(index), images.max_pixels))
    return Sizes.of(sizes, is_sample=len(chosen) < len(images))

"""Where the numbers of a layer lie on the image: channels first, channels last, or a row of tokens."""

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, cat

# Tokens that stand for no place: of the class, of distillation, registers.
_MOST_PREFIX_TOKENS = 8
_SMALLEST_GRID = 2


@dataclass(frozen=True, slots=True)
class Places:
    """How a layer's output (B, ...) lies on the image.

    Attributes:
        order: of channels, rows and columns.
        height: places from top to bottom.
        width: places from left to right.
        prefix: tokens before those that have a place.
    """

    order: Literal["channels first", "channels last", "tokens"]
    height: int
    width: int
    prefix: int = 0

    def maps(self, output: Tensor) -> Tensor:
        """Return the output as maps (B, C, height, width), a view of it."""
        if self.order == "channels first":
            return output
        if self.order == "channels last":
            return output.permute(0, 3, 1, 2)
        tokens = output[:, self.prefix :].transpose(1, 2)
        return tokens.reshape(*tokens.shape[:2], self.height, self.width)

    def back(self, maps: Tensor, output: Tensor) -> Tensor:
        """Return maps in the shape of ``output``, whose tokens without a place are kept."""
        if self.order == "channels first":
            return maps
        if self.order == "channels last":
            return maps.permute(0, 2, 3, 1)
        return cat([output[:, : self.prefix], maps.flatten(2).transpose(1, 2)], 1)


def places_of(shape: tuple[int, ...], images: int) -> Places | None:
    """Return how an output of this shape lies on square images; None where it has no places, or too few, or other rows.

    Args:
        shape: of the output, with the batch.
        images: in the batch.
    """
    if len(shape) < 3 or shape[0] != images:
        return None
    if len(shape) == 4:
        _, one, two, three = shape
        if two == three and two >= _SMALLEST_GRID:
            return Places("channels first", two, three)
        return Places("channels last", one, two) if one == two and one >= _SMALLEST_GRID else None
    if len(shape) == 3:
        side = math.isqrt(shape[1])
        prefix = shape[1] - side * side
        if side >= _SMALLEST_GRID and prefix <= _MOST_PREFIX_TOKENS:
            return Places("tokens", side, side, prefix)
    return None

"""How a layer's output is laid out over the image: channels first, channels last, or a sequence of tokens."""

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, cat

# Tokens without a position: class, distillation, registers.
_MOST_PREFIX_TOKENS = 8
_SMALLEST_GRID = 2


@dataclass(frozen=True, slots=True)
class MapLayout:
    """How a layer's output (B, ...) is laid out over the image.

    Attributes:
        order: of channels, rows and columns.
        height: rows of positions.
        width: columns of positions.
        prefix: tokens before the first with a position.
    """

    order: Literal["channels first", "channels last", "tokens"]
    height: int
    width: int
    prefix: int = 0

    def maps(self, output: Tensor) -> Tensor:
        """Return a view of the output as maps (B, C, height, width)."""
        if self.order == "channels first":
            return output
        if self.order == "channels last":
            return output.permute(0, 3, 1, 2)
        tokens = output[:, self.prefix :].transpose(1, 2)
        return tokens.reshape(*tokens.shape[:2], self.height, self.width)

    def restore(self, maps: Tensor, output: Tensor) -> Tensor:
        """Return maps in the shape of ``output``, with its tokens that have no position."""
        if self.order == "channels first":
            return maps
        if self.order == "channels last":
            return maps.permute(0, 2, 3, 1)
        return cat([output[:, : self.prefix], maps.flatten(2).transpose(1, 2)], 1)


def layout_of(shape: tuple[int, ...], images: int) -> MapLayout | None:
    """Return the layout of an output of this shape for square images; None where it has no maps of 2 x 2 or more.

    Args:
        shape: of the output, with the batch.
        images: in the batch.
    """
    if len(shape) < 3 or shape[0] != images:
        return None
    if len(shape) == 4:
        _, one, two, three = shape
        if two == three and two >= _SMALLEST_GRID:
            return MapLayout("channels first", two, three)
        return MapLayout("channels last", one, two) if one == two and one >= _SMALLEST_GRID else None
    if len(shape) == 3:
        side = math.isqrt(shape[1])
        prefix = shape[1] - side * side
        if side >= _SMALLEST_GRID and prefix <= _MOST_PREFIX_TOKENS:
            return MapLayout("tokens", side, side, prefix)
    return None

"""Convolutions in equal but cheaper forms, for maps so small that most of a kernel covers only padding."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# All bounds: one thread of a Zen 4 core, torch 2.15, float32, 64 images, minima of 5 to 9 alternated rounds.
# A 3x3 kernel of 512 channels on 1x1 maps, forward and backward: 16.4 ms as a convolution, 5.4 as a matrix; of 256 on
# 2x2 maps 15.4 and 7.1. On 4x4 maps the matrix has more zeros than the kernel has weights.
_MATRIX_PIXELS = 4
# The matrix is written anew each time, which few images do not pay back.
_MATRIX_IMAGES = 16
# The weight gradient of a 5x5 depthwise kernel, 480 channels on 4x4 maps: 14.5 ms in oneDNN, 4.5 as matrix products;
# on 8x8 maps both take 15.
_PRODUCT_PIXELS = 16
# Of a batch that is computed in float32 piece by piece.
_PIECE_BYTES = 4 << 20
# oneDNN's fast weight gradient of a 3x3 depthwise kernel needs maps of 4x4: 0.6 ms, and 5 on maps of 2x2.
_FAST_SIDE = 4


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a map under a kernel that is cut down to the taps that reach the map.

    Attributes:
        size: of the map.
        first: index of the first remaining tap.
        taps: number of remaining taps.
        stride: of the kernel.
        before: zeros before the map, for the remaining taps.
        after: zeros after it.
        out: size of the output.
        dilation: of the kernel.
    """

    size: int
    first: int
    taps: int
    stride: int
    before: int
    after: int
    out: int
    dilation: int = 1

    @property
    def takes_even_padding(self) -> bool:
        """Whether equal padding before and after the map gives the same output: a stride may never reach the end."""
        reach = (self.taps - 1) * self.dilation + 1
        return self.out == (self.size + 2 * self.before - reach) // self.stride + 1

    def window(self, position: int) -> tuple[slice, slice]:
        """Return which of the remaining taps cover which part of the map at one output position."""
        start = position * self.stride - self.before
        low, high = max(0, start), min(self.size, start + self.taps)
        return slice(low - start, high - start), slice(low, high)


def is_supported(conv: nn.Conv2d) -> bool:
    """Whether ``convolve`` can compute a convolution: plain ones padded with zeros, and timm's Conv2dSame."""
    if conv.padding_mode != "zeros" or _pads_itself(conv):
        return conv.padding_mode == "zeros"
    if type(conv).forward is not nn.Conv2d.forward or isinstance(conv.padding, str):
        return False
    sides = zip(conv.kernel_size, conv.padding, conv.dilation, strict=True)
    # The kernel must cover a pixel at every output position, however small the map is.
    return all(padding <= (taps - 1) * dilation for taps, padding, dilation in sides)


def output_pixels(conv: nn.Conv2d, maps: Tensor) -> int:
    """Return the number of pixels of one output map of a convolution."""
    return math.prod(side.out for side in sides_of(conv, maps))


def convolve(conv: nn.Conv2d, maps: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the output of ``conv`` for maps with these weights, equal except for the order of sums.

    On a CPU a depthwise convolution that has a gradient is computed in float32 under autocast too: there its bfloat16
    gradient took 7 times as long, while that of the dense ones gained. Its output has autocast's type.

    Args:
        maps: (B, C, H, W).
        weight: shaped as ``conv.weight``.
        bias: (out_channels,), or None.
    """
    if maps.device.type != "cpu":
        return _plain(maps, weight, bias, sides_of(conv, maps), conv)
    if not is_depthwise(conv):
        return _dense(conv, maps, weight, bias)
    learns = torch.is_grad_enabled() and (maps.requires_grad or weight.requires_grad)
    if learns and torch.is_autocast_enabled("cpu"):
        output: Tensor = _InFloat32.apply(maps, weight, bias, sides_of(conv, maps), torch.get_autocast_dtype("cpu"))
        return output
    return _depthwise(conv, maps, weight, bias)


def is_depthwise(conv: nn.Conv2d) -> bool:
    """Whether each channel has one kernel."""
    return conv.groups == conv.in_channels == conv.out_channels > 1


def _depthwise(conv: nn.Conv2d, maps: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    sides = sides_of(conv, maps)
    if math.prod(conv.dilation) > 1:
        return _plain(maps, weight, bias, sides, conv)
    rows, columns = cropped_sides(conv, maps)
    weight = remaining_taps(weight, rows, columns)
    if weight.shape[2:] == maps.shape[2:] == (1, 1):
        return _add_bias(maps * weight.view(1, -1, 1, 1), bias)
    learns = weight.requires_grad and torch.is_grad_enabled()
    is_short = any(_missing(side) for side in (rows, columns))
    fits = all(side.taps == 3 and side.after <= side.before + _missing(side) for side in (rows, columns))
    if learns and is_short and fits:
        return _enlarged(conv, maps, weight, bias, rows, columns)
    if learns and rows.taps * columns.taps > 9 and rows.size * columns.size <= _PRODUCT_PIXELS:
        return _add_bias(_Depthwise.apply(maps, weight, rows, columns), bias)
    return _plain(maps, weight, bias, (rows, columns), conv)


def _dense(conv: nn.Conv2d, maps: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    sides = sides_of(conv, maps)
    rows, columns = sides
    pixels, positions = rows.size * columns.size, rows.out * columns.out
    is_small = max(pixels, positions) <= _MATRIX_PIXELS and len(maps) >= _MATRIX_IMAGES
    if not is_small or conv.groups > 1 or math.prod(conv.dilation) > 1:
        return _plain(maps, weight, bias, sides, conv)
    if pixels == weight[0, 0].numel() == positions == 1:
        return F.linear(maps.flatten(1), weight.flatten(1), bias)[:, :, None, None]
    # A single tap is a matrix product already, and other layouts than this one would have to be moved first.
    if weight[0, 0].numel() == 1 or weight.stride(1) > 1:
        return _plain(maps, weight, bias, sides, conv)
    rows, columns = (_cropped(side) for side in sides)
    matrix: Tensor = _Matrix.apply(remaining_taps(weight, rows, columns), rows, columns)
    product = F.linear(maps.permute(0, 2, 3, 1).flatten(1), matrix)
    return _add_bias(product.view(len(maps), rows.out, columns.out, -1).permute(0, 3, 1, 2), bias)


def _add_bias(output: Tensor, bias: Tensor | None) -> Tensor:
    return output if bias is None else output + bias.to(output.dtype).view(1, -1, 1, 1)


def _plain(maps: Tensor, weight: Tensor, bias: Tensor | None, sides: tuple[Side, Side], conv: nn.Conv2d) -> Tensor:
    maps, padding = _padded(maps, *sides)
    return F.conv2d(maps, weight, bias, conv.stride, padding, conv.dilation, conv.groups)


def _enlarged(conv: nn.Conv2d, maps: Tensor, weight: Tensor, bias: Tensor | None, rows: Side, columns: Side) -> Tensor:
    """Convolve maps with more zeros after them, and cut off what these add to the output."""
    larger = F.pad(maps, (0, _missing(columns), 0, _missing(rows)))
    output = F.conv2d(larger, weight, bias, conv.stride, (rows.before, columns.before), 1, conv.groups)
    return output[:, :, : rows.out, : columns.out]


def _missing(side: Side) -> int:
    return max(0, _FAST_SIDE - side.size)


def _pads_itself(conv: nn.Conv2d) -> bool:
    # By name: importing timm takes seconds, and only its own models need it.
    return type(conv).__name__ == "Conv2dSame" and type(conv).__module__.startswith("timm.")


def sides_of(conv: nn.Conv2d, maps: Tensor) -> tuple[Side, Side]:
    """Return rows and columns of maps (B, C, H, W) under the whole kernel."""
    return _side(conv, maps, 0), _side(conv, maps, 1)


def _side(conv: nn.Conv2d, maps: Tensor, axis: int) -> Side:
    size, taps, stride, dilation = maps.shape[2 + axis], conv.kernel_size[axis], conv.stride[axis], conv.dilation[axis]
    reach = (taps - 1) * dilation + 1
    if _pads_itself(conv):
        # TensorFlow's "SAME": the odd zero comes after.
        zeros = max(0, (math.ceil(size / stride) - 1) * stride + reach - size)
        before, after = zeros // 2, zeros - zeros // 2
    else:
        assert not isinstance(conv.padding, str)
        before = after = int(conv.padding[axis])
    out = (size + before + after - reach) // stride + 1
    return Side(size, 0, taps, stride, before, after, out, dilation)


def cropped_sides(conv: nn.Conv2d, maps: Tensor) -> tuple[Side, Side]:
    """Return rows and columns of maps (B, C, H, W) under those taps that cover a pixel at some output position."""
    rows, columns = sides_of(conv, maps)
    return _cropped(rows), _cropped(columns)


def _cropped(side: Side) -> Side:
    """Return the side with only those taps that cover the map at some output position."""
    last_start = side.stride * (side.out - 1)
    first = max(0, side.before - last_start)
    taps = min(side.taps - 1, side.before + side.size - 1) - first + 1
    before = side.before - first
    after = max(0, last_start + taps - side.size - before)
    return Side(side.size, first, taps, side.stride, before, after, side.out)


def remaining_taps(weight: Tensor, rows: Side, columns: Side) -> Tensor:
    """Return the taps of a kernel (O, I, h, w) that belong to cropped sides."""
    if weight.shape[2:] == (rows.taps, columns.taps):
        return weight
    return weight[:, :, rows.first : rows.first + rows.taps, columns.first : columns.first + columns.taps]


def _padded(maps: Tensor, rows: Side, columns: Side) -> tuple[Tensor, tuple[int, int]]:
    """Return maps, padded here if the two ends differ, and the padding that is left to the convolution."""
    if _is_even(rows, columns):
        return maps, (rows.before, columns.before)
    return F.pad(maps, (columns.before, columns.after, rows.before, rows.after)), (0, 0)


class _Matrix(torch.autograd.Function):
    """A kernel (O, I, h, w), channels-last, as a matrix (positions x O, pixels x I) from a whole map to its output."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, rows: Side, columns: Side) -> Tensor:
        ctx.sides, ctx.channels = (rows, columns), weight.shape[:2]
        kernel = weight.permute(2, 3, 0, 1)
        wide = weight.new_zeros(_matrix_shape(rows, columns, *ctx.channels))
        for position, taps, pixels in _windows(rows, columns):
            wide[position][:, *pixels] = kernel[taps].permute(2, 0, 1, 3)
        return wide.flatten(3).flatten(0, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        rows, columns = ctx.sides
        wide = gradient.view(_matrix_shape(rows, columns, *ctx.channels))
        kernel = gradient.new_zeros((rows.taps, columns.taps, *ctx.channels))
        for position, taps, pixels in _windows(rows, columns):
            kernel[taps] += wide[position][:, *pixels].permute(1, 2, 0, 3)
        return kernel.permute(2, 3, 0, 1), None, None


def _matrix_shape(rows: Side, columns: Side, outputs: int, inputs: int) -> tuple[int, ...]:
    return (rows.out, columns.out, outputs, rows.size, columns.size, inputs)


def _windows(rows: Side, columns: Side) -> Iterator[tuple[tuple[int, int], tuple[slice, slice], tuple[slice, slice]]]:
    for row in range(rows.out):
        row_taps, row_pixels = rows.window(row)
        for column in range(columns.out):
            column_taps, column_pixels = columns.window(column)
            yield (row, column), (row_taps, column_taps), (row_pixels, column_pixels)


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution whose weight gradient is a matrix product per channel, over the images."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor, rows: Side, columns: Side) -> Tensor:
        ctx.save_for_backward(maps, weight)
        ctx.sides = rows, columns
        padded, padding = _padded(maps, rows, columns)
        return F.conv2d(padded, weight, None, (rows.stride, columns.stride), padding, 1, len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        maps, weight = ctx.saved_tensors
        rows, columns = ctx.sides
        of_maps = _maps_gradient(gradient, maps, weight, ctx.sides) if ctx.needs_input_grad[0] else None
        of_weight = None
        if ctx.needs_input_grad[1]:
            channels = len(weight)
            pixels = maps.permute(1, 0, 2, 3).reshape(channels, len(maps), -1)
            gradients = gradient.permute(1, 0, 2, 3).reshape(channels, len(maps), -1)
            # (C, output positions, pixels of the map): the products, summed over the images.
            products = torch.bmm(gradients.transpose(1, 2), pixels).flatten(1)
            of_weight = (products @ coverage(rows, columns, weight.dtype)).view(weight.shape)
        return of_maps, of_weight, None, None


class _InFloat32(torch.autograd.Function):
    """A depthwise convolution that computes in float32 on maps of another type, a few images at a time.

    A copy of the whole batch in float32 would not fit the caches: 64 images of 96 channels and 48 x 48 pixels took
    131 ms forward and backward, 4 images at a time 60 ms (CPU time of one thread, Intel Xeon with AMX, medians of 5).
    """

    @staticmethod
    def forward(
        ctx: Any, maps: Tensor, weight: Tensor, bias: Tensor | None, sides: tuple[Side, Side], dtype: torch.dtype
    ) -> Tensor:
        ctx.save_for_backward(maps, weight)
        ctx.sides = sides
        shape = (len(maps), len(weight), *(side.out for side in sides))
        output = torch.empty(shape, dtype=dtype, device=maps.device, memory_format=_format(maps))
        with torch.autocast("cpu", enabled=False):
            for images, padded in _in_float32(maps, *sides):
                output[images] = F.conv2d(padded, weight, bias, **_options(*sides), groups=len(weight))
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        maps, weight = ctx.saved_tensors
        options = _options(*ctx.sides)
        needed = list(ctx.needs_input_grad[:3])
        of_maps = torch.empty_like(maps) if needed[0] else None
        sums = [torch.zeros_like(weight), weight.new_zeros(len(weight))]
        for images, padded in _in_float32(maps, *ctx.sides):
            of_padded, *parts = torch.ops.aten.convolution_backward(
                gradient[images].float(), padded, weight, [len(weight)], options["stride"], options["padding"],
                options["dilation"], False, [0, 0], len(weight), needed,
            )  # fmt: skip
            if of_maps is not None:
                is_padded = padded.shape[2:] != maps.shape[2:]
                of_maps[images] = _inner(of_padded, *ctx.sides) if is_padded else of_padded
            for total, part in zip(sums, parts, strict=True):
                if part is not None:
                    total += part
        of_weight, of_bias = (total if is_needed else None for total, is_needed in zip(sums, needed[1:], strict=True))
        return of_maps, of_weight, of_bias, None, None


def _maps_gradient(gradient: Tensor, maps: Tensor, weight: Tensor, sides: tuple[Side, Side]) -> Tensor:
    rows, columns = sides
    padded, padding = _padded(maps, rows, columns)
    of_maps: Tensor = torch.ops.aten.convolution_backward(
        gradient, padded, weight, None, [rows.stride, columns.stride], list(padding), [1, 1], False, [0, 0],
        len(weight), [True, False, False],
    )[0]  # fmt: skip
    return of_maps if padded is maps else _inner(of_maps, rows, columns)


def _inner(padded: Tensor, rows: Side, columns: Side) -> Tensor:
    return padded[:, :, rows.before : rows.before + rows.size, columns.before : columns.before + columns.size]


def _in_float32(maps: Tensor, rows: Side, columns: Side) -> Iterator[tuple[slice, Tensor]]:
    """Yield successive images of a batch in float32, with zeros around them where the convolution cannot add these.

    The memory of one piece is used for the next.
    """
    height, width = maps.shape[2:]
    if not _is_even(rows, columns):
        height, width = (side.before + side.size + side.after for side in (rows, columns))
    count = max(1, min(len(maps), _PIECE_BYTES // (4 * maps.shape[1] * height * width)))
    shape = (count, maps.shape[1], height, width)
    buffer = torch.zeros(shape, device=maps.device).contiguous(memory_format=_format(maps))
    inner = buffer if _is_even(rows, columns) else _inner(buffer, rows, columns)
    for first in range(0, len(maps), count):
        piece = maps[first : first + count]
        inner[: len(piece)].copy_(piece)
        yield slice(first, first + count), buffer[: len(piece)]


def _is_even(rows: Side, columns: Side) -> bool:
    return rows.takes_even_padding and columns.takes_even_padding


def _options(rows: Side, columns: Side) -> dict[str, list[int]]:
    """Return the arguments of the convolution of what ``_in_float32`` yields."""
    padding = [rows.before, columns.before] if _is_even(rows, columns) else [0, 0]
    return {
        "stride": [rows.stride, columns.stride],
        "padding": padding,
        "dilation": [rows.dilation, columns.dilation],
    }


def _format(maps: Tensor) -> torch.memory_format:
    is_last = maps.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if is_last else torch.contiguous_format


@lru_cache(maxsize=64)
def coverage(rows: Side, columns: Side, dtype: torch.dtype) -> Tensor:
    """Return (positions x pixels, taps): 1 where a tap covers a pixel at an output position."""
    high, wide = (_coverage_along(side) for side in (rows, columns))
    return torch.einsum("oit,pju->opijtu", high, wide).reshape(-1, rows.taps * columns.taps).to(dtype)


def _coverage_along(side: Side) -> Tensor:
    position, pixel, tap = torch.meshgrid(
        torch.arange(side.out), torch.arange(side.size), torch.arange(side.taps), indexing="ij"
    )
    return (position * side.stride + tap - side.before == pixel).float()

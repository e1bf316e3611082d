"""Convolutions on small maps that lie in memory as (C, H, W, B), images last.

There a pointwise convolution is one matrix product and a depthwise one a product per channel, forward and backward,
and nothing is copied from one layer to the next. Tensors keep their shape (B, C, H, W); only their strides differ.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tl_cli.compute.small_maps import Side, coverage, cropped_sides, is_depthwise, remaining_taps

# A depthwise kernel is written as a matrix (positions, pixels), mostly zeros: maps of 12 x 12 have 20,736 per channel.
_MOST_PIXELS = 144
# The matrix products have a column for each image; few are slower than a convolution.
FEWEST_IMAGES = 16

_Gradients = tuple[Tensor | None, ...]


def is_images_last(maps: Tensor) -> bool:
    """Whether maps (B, C, H, W) lie in memory as (C, H, W, B)."""
    return maps.dim() == 4 and maps.stride(0) == 1 and maps.permute(1, 2, 3, 0).is_contiguous()


def fits(conv: nn.Conv2d, maps: Tensor) -> bool:
    """Whether ``convolve`` computes this convolution: a depthwise one, or a pointwise one on maps with images last.

    Args:
        maps: (B, C, H, W).
    """
    if maps.shape[2] * maps.shape[3] > _MOST_PIXELS or max(conv.dilation) > 1:
        return False
    is_pointwise = conv.groups == 1 and conv.kernel_size == conv.stride == (1, 1) and conv.padding == (0, 0)
    return is_depthwise(conv) or (is_pointwise and is_images_last(maps))


def convolve(conv: nn.Conv2d, maps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return the output of ``conv``, with images last.

    Args:
        maps: (B, C, H, W).
        weight: shaped as ``conv.weight``.
        bias: (out_channels,).
    """
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else maps.dtype
    output: Tensor
    if is_depthwise(conv):
        rows, columns = cropped_sides(conv, maps)
        output = _Depthwise.apply(maps, remaining_taps(weight, rows, columns), bias, rows, columns, dtype)
    else:
        output = _Pointwise.apply(maps, weight, bias, dtype)
    return output


class _Pointwise(torch.autograd.Function):
    """One product of (out, in) with (in, pixels x images)."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
        values, matrix = _channels_first(maps, dtype).flatten(1), weight.flatten(1).to(dtype)
        ctx.save_for_backward(values, matrix)
        ctx.of_maps, ctx.of_weight = _like(maps), weight.dtype
        output = _empty((len(maps), len(weight), *maps.shape[2:]), dtype)
        torch.addmm(bias.to(dtype)[:, None], matrix, values, out=_view(output).flatten(1))
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> _Gradients:
        values, matrix = ctx.saved_tensors
        gradients = _channels_first(gradient, matrix.dtype).flatten(1)
        maps = weight = bias = None
        if ctx.needs_input_grad[0]:
            shape, dtype = ctx.of_maps
            maps = _empty(shape, matrix.dtype)
            torch.mm(matrix.t(), gradients, out=_view(maps).flatten(1))
            maps = maps.to(dtype)
        if ctx.needs_input_grad[1]:
            weight = (gradients @ values.t()).to(ctx.of_weight)[:, :, None, None]
        if ctx.needs_input_grad[2]:
            bias = gradients.sum(1, dtype=ctx.of_weight)
        return maps, weight, bias, None


class _Depthwise(torch.autograd.Function):
    """For each channel, a product of (positions, pixels) with (pixels, images)."""

    @staticmethod
    def forward(
        ctx: Any, maps: Tensor, weight: Tensor, bias: Tensor, rows: Side, columns: Side, dtype: torch.dtype
    ) -> Tensor:
        covered = coverage(rows, columns, dtype)
        matrices = (weight.flatten(1).to(dtype) @ covered.t()).unflatten(1, (rows.out * columns.out, -1))
        values = _channels_first(maps, dtype)
        ctx.save_for_backward(values, matrices, covered)
        ctx.of_maps, ctx.of_weight = _like(maps), _like(weight)
        output = _empty((len(maps), len(weight), rows.out, columns.out), dtype)
        torch.baddbmm(bias.to(dtype)[:, None, None], matrices, values, out=_view(output))
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> _Gradients:
        values, matrices, covered = ctx.saved_tensors
        gradients = _channels_first(gradient, matrices.dtype)
        shape, dtype = ctx.of_weight
        maps = weight = bias = None
        if ctx.needs_input_grad[0]:
            maps = _empty(ctx.of_maps[0], matrices.dtype)
            torch.bmm(matrices.transpose(1, 2), gradients, out=_view(maps))
            maps = maps.to(ctx.of_maps[1])
        if ctx.needs_input_grad[1]:
            products = torch.bmm(gradients, values.transpose(1, 2)).flatten(1)
            weight = (products @ covered).to(dtype).view(shape)
        if ctx.needs_input_grad[2]:
            bias = gradients.sum((1, 2), dtype=dtype)
        return maps, weight, bias, None, None, None


def _like(tensor: Tensor) -> tuple[torch.Size, torch.dtype]:
    return tensor.shape, tensor.dtype


def _channels_first(maps: Tensor, dtype: torch.dtype) -> Tensor:
    """Return maps (B, C, H, W) as (C, H*W, B), copied only if they are not images last."""
    return maps.to(dtype).permute(1, 2, 3, 0).contiguous().flatten(1, 2)


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return maps (B, C, H, W) with images last; no view, since activations change them in place."""
    images, _, height, width = shape
    return torch.empty_strided(shape, (1, height * width * images, width * images, images), dtype=dtype)


def _view(maps: Tensor) -> Tensor:
    """Return (C, H*W, B), which shares the memory of maps with images last."""
    return maps.permute(1, 2, 3, 0).flatten(1, 2)

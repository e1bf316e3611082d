import pytest
import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn

from tl_cli.compute.small_maps import convolve, is_supported


def gradients(output: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=output.dtype)
    return torch.autograd.grad((output * weights).sum(), inputs)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 1), (2, 2), (3, 3), (4, 4), (5, 3), (2, 7)])
def test_outputs_and_gradients_equal_torchs_on_every_small_map(
    shape: tuple[int, int], groups: int, layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    maps = torch.randn(16, 6, *shape, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    for kernel, stride, padding in [(1, 1, 0), (3, 1, 1), (3, 2, 1), (5, 1, 2), (5, 2, 2), (7, 1, 3), (3, 1, 2)]:
        for bias in (True, False):
            conv = nn.Conv2d(6, 6, kernel, stride, padding, groups=groups, bias=bias).double()
            conv.to(memory_format=layout)
            assert is_supported(conv)
            expected, output = conv(maps), convolve(conv, maps, conv.weight, conv.bias)
            torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-10)
            by = (maps, *conv.parameters())
            torch.testing.assert_close(gradients(output, *by), gradients(expected, *by), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("kernel", "padding", "groups"), [(1, 1, 4), (1, 1, 1), (3, 3, 4), (2, 2, 1), (3, 2, 4), (3, 1, 4)]
)
def test_a_kernel_that_covers_only_padding_is_computed_by_torch(kernel: int, padding: int, groups: int) -> None:
    conv = nn.Conv2d(4, 4, kernel, padding=padding, groups=groups)
    if not is_supported(conv):
        assert padding >= kernel
        return
    for side in (1, 2, 3):
        maps = torch.randn(16, 4, side, side)
        expected = conv(maps)
        torch.testing.assert_close(convolve(conv, maps, conv.weight, conv.bias), expected)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
# Maps of the largest are computed in three pieces of two, two and one image.
@pytest.mark.parametrize(("images", "side"), [(3, 4), (3, 9), (3, 16), pytest.param(5, 240, marks=pytest.mark.slow)])
def test_under_autocast_depthwise_convolutions_with_gradients_are_rounded_once(
    images: int, side: int, layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    for conv in (
        nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8, bias=False),
        Conv2dSame(8, 8, 5, 2, groups=8), Conv2dSame(8, 8, 3, 2, groups=8, bias=False),
    ):  # fmt: skip
        maps = torch.randn(images, 8, side, side).bfloat16().contiguous(memory_format=layout).requires_grad_()
        exact = maps.detach().float().requires_grad_()
        expected = conv(exact)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = convolve(conv, maps, conv.weight, conv.bias)
            with torch.no_grad():
                assert convolve(conv, maps, conv.weight, conv.bias).dtype == torch.bfloat16
        torch.testing.assert_close(output, expected.bfloat16(), rtol=0.01, atol=1e-6)
        weights = torch.randn(output.shape).bfloat16()
        output.backward(weights)
        by = torch.autograd.grad((expected * weights.float()).sum(), (exact, *conv.parameters()))
        torch.testing.assert_close(maps.grad, by[0].bfloat16(), rtol=0.01, atol=1e-6)
        for parameter, gradient in zip(conv.parameters(), by[1:], strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=2e-5 * float(gradient.abs().max()))

"""Convolutions with images last: outputs and gradients of torch's own, and no copies between layers."""

import pytest
import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from tl_cli.compute.device import Autocasting, Machine
from tl_cli.compute.fused import find_shortcuts, installed
from tl_cli.compute.images_last import convolve, fits, is_images_last

SIDES = [(1, 1), (2, 2), (3, 3), (6, 6), (12, 12), (5, 3), (2, 7)]


def moved(maps: Tensor) -> Tensor:
    """Return equal maps with images last."""
    return maps.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)


def results(output: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output.dtype)
    return output, *torch.autograd.grad((output * weights).sum(), inputs)


@pytest.mark.parametrize("layout", ["contiguous", "channels last", "images last"])
@pytest.mark.parametrize("side", SIDES)
def test_outputs_and_gradients_equal_torchs(side: tuple[int, int], layout: str) -> None:
    torch.manual_seed(0)
    maps = torch.randn(5, 6, *side, dtype=torch.float64)
    maps = moved(maps) if layout == "images last" else maps
    maps = maps.to(memory_format=torch.channels_last) if layout == "channels last" else maps
    maps.requires_grad_()
    kinds = [nn.Conv2d(6, 6, kernel, stride, kernel // 2, groups=6) for kernel in (1, 3, 5, 7) for stride in (1, 2)]
    kinds += [Conv2dSame(6, 6, kernel, stride, groups=6) for kernel in (3, 5) for stride in (1, 2)]
    kinds += [nn.Conv2d(6, 4, 1)] if layout == "images last" else []
    for conv in kinds:
        conv.double()
        assert fits(conv, maps)
        output = convolve(conv, maps, conv.weight, conv.bias)
        assert is_images_last(output)
        by = (maps, conv.weight, conv.bias)
        for one, other in zip(results(output, *by), results(conv(maps), *by), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_other_convolutions_and_larger_maps_are_left_to_torch() -> None:
    small, large = torch.zeros(2, 8, 12, 12), torch.zeros(2, 8, 13, 12)
    assert fits(nn.Conv2d(8, 8, 3, padding=1, groups=8), small)
    assert fits(nn.Conv2d(8, 4, 1), moved(small))
    for conv, maps in [
        (nn.Conv2d(8, 8, 3, padding=1, groups=8), large), (nn.Conv2d(8, 4, 1), small),
        (nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8), small), (nn.Conv2d(8, 16, 3, groups=8), small),
        (nn.Conv2d(8, 8, 3), moved(small)), (nn.Conv2d(8, 8, 1, stride=2), moved(small)),
        (nn.Conv2d(8, 8, 1, groups=2), moved(small)), (nn.Conv2d(8, 8, 1, padding=1), moved(small)),
    ]:  # fmt: skip
        assert not fits(conv, maps), conv


def block(inside: int = 12) -> nn.Sequential:
    """A MobileNet block: depthwise and pointwise convolutions whose norms can be folded, and activations in place."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for conv in (
        nn.Conv2d(3, inside, 3, padding=1), nn.Conv2d(inside, inside, 3, 2, 1, groups=inside, bias=False),
        nn.Conv2d(inside, 8, 1), nn.Conv2d(8, inside, 1, bias=False), nn.Conv2d(inside, inside, 5, 1, 2, groups=inside),
    ):  # fmt: skip
        norm = nn.BatchNorm2d(conv.out_channels)
        norm.running_var.uniform_(0.5, 1.5)
        norm.bias.data.normal_()
        layers += [conv, norm, nn.ReLU6(inplace=True)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inside, 3)).eval()


def gradients(network: nn.Module, images: Tensor) -> Tensor:
    network.zero_grad()
    network(images).square().sum().backward()
    return torch.cat([parameter.grad.double().flatten() for parameter in network.parameters()])


def test_a_chain_stays_in_place_from_its_first_depthwise_convolution_on() -> None:
    network, images = block(), torch.randn(16, 3, 16, 16)
    shortcuts = find_shortcuts(network, images[:2], images_last=True)
    assert [shortcut.images_last for shortcut in shortcuts] == [True] * 5
    # Of 16 x 16 pixels the first depthwise convolution leaves 8 x 8: only the second one begins a chain.
    for inputs, expected in [
        (images, [False, False, False, False, True]),
        (images[..., :12, :12], [False] + [True] * 4),
    ]:
        plain = gradients(network, inputs)
        seen: list[bool] = []

        def note(module: nn.Module, inputs: object, output: Tensor, seen: list[bool] = seen) -> None:
            seen.append(is_images_last(output))

        handles = [module.register_forward_hook(note) for module in network if isinstance(module, nn.ReLU6)]
        with installed(shortcuts, fold=True, images_last=True):
            torch.testing.assert_close(gradients(network, inputs), plain, rtol=1e-4, atol=1e-4)
        for handle in handles:
            handle.remove()
        assert seen == expected


def test_bf16_gradients_point_where_those_of_autocast_do() -> None:
    network, images = block(64), torch.randn(32, 3, 12, 12)
    exact = gradients(network, images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = gradients(network, images)
        with installed(find_shortcuts(network, images[:2], images_last=True), fold=True, images_last=True):
            found = gradients(network, images)
    assert cosine_similarity(found, exact, 0) > min(0.99, float(cosine_similarity(rounded, exact, 0)) - 0.01)


def test_few_images_and_passes_without_gradients_stay_images_first() -> None:
    network = block()
    shortcuts = find_shortcuts(network, torch.randn(2, 3, 12, 12), images_last=True)
    with installed(shortcuts, fold=True, images_last=True):
        assert not is_images_last(network[:6](torch.randn(15, 3, 12, 12)))
        assert is_images_last(network[:6](torch.randn(16, 3, 12, 12)))
        with torch.no_grad():
            assert not is_images_last(network[:6](torch.randn(16, 3, 12, 12)))


def test_images_last_are_not_used_where_a_network_fails_with_them() -> None:
    class Viewed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1, groups=3), nn.BatchNorm2d(3)

        def forward(self, images: Tensor) -> Tensor:
            return self.norm(self.conv(images)).view(3 * len(images), -1)

    network = Viewed().eval()
    (shortcut,) = find_shortcuts(network, torch.randn(2, 3, 4, 4), images_last=True)
    assert (shortcut.norm, shortcut.images_last) == (network.norm, False)
    with installed([shortcut], fold=True, images_last=True):
        assert network(torch.randn(16, 3, 4, 4)).shape == (48, 16)


def test_a_machine_trains_and_evaluates_with_its_layout() -> None:
    network, images = block(), torch.randn(16, 3, 12, 12)
    expected = gradients(network, images)
    seen: list[bool] = []
    for module in network:
        if isinstance(module, nn.ReLU6):
            module.register_forward_hook(lambda _, __, output: seen.append(is_images_last(output)))
    for layout, is_last in (("channels-last", False), ("images-last", True)):
        passing = Autocasting(network, Machine(torch.device("cpu"), layout=layout)).eval()
        passing(images)  # finds the shortcuts
        seen.clear()
        torch.testing.assert_close(gradients(passing, images), expected, rtol=1e-4, atol=1e-4)
        assert seen == [False] + [is_last] * 4

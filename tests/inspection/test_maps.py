import pytest
import torch

from tl_cli.inspection.maps import layout_of


@pytest.mark.parametrize(
    ("shape", "order", "height", "prefix"),
    [
        ((2, 64, 7, 7), "channels first", 7, 0),
        ((2, 7, 7, 64), "channels last", 7, 0),
        ((2, 49, 64), "tokens", 7, 0),
        ((2, 50, 64), "tokens", 7, 1),
        ((2, 201, 64), "tokens", 14, 5),
        ((2, 7, 7, 7), "channels first", 7, 0),
    ],
)
def test_every_layout_becomes_maps_and_is_restored(
    shape: tuple[int, ...], order: str, height: int, prefix: int
) -> None:
    layout = layout_of(shape, 2)
    assert layout is not None
    assert (layout.order, layout.height, layout.width, layout.prefix) == (order, height, height, prefix)
    output = torch.randn(shape)
    maps = layout.maps(output)
    assert maps.shape == (2, shape[1] if order == "channels first" else shape[-1], height, height)
    assert torch.equal(layout.restore(maps, output), output)
    doubled = layout.restore(maps * 2, output)
    assert torch.equal(layout.maps(doubled), maps * 2)
    if order == "tokens":
        assert torch.equal(doubled[:, :prefix], output[:, :prefix])


@pytest.mark.parametrize("shape", [(2, 10), (2, 64, 1, 1), (2, 64, 49, 32), (8, 49, 64), (2, 60, 64), (2, 3, 64), (2,)])
def test_outputs_without_positions_have_no_layout(shape: tuple[int, ...]) -> None:
    assert layout_of(shape, 2) is None

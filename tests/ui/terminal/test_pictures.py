import pytest
import torch

from tests.support.screens import make_screen, printed
from tl_cli.ui.terminal.pictures import overlaid, scaled, shaded, thumbnail


@pytest.mark.parametrize("size", [(1, 500), (500, 1), (7, 7), (2000, 1500)])
def test_a_thumbnail_keeps_the_shape_and_stays_small(size: tuple[int, int]) -> None:
    on = make_screen(80, colour=True)
    on.print(thumbnail(torch.zeros(3, *size, dtype=torch.uint8), 18))
    rows = printed(on).rstrip("\n").split("\n")
    assert 1 <= len(rows) <= 10


def test_an_overlay_is_bright_where_the_heat_is_high() -> None:
    picture = torch.full((3, 8, 8), 128, dtype=torch.uint8)
    heat = torch.zeros(8, 8)
    heat[:4] = 1
    over = overlaid(picture, heat).float()
    assert over.dtype == torch.float32
    assert over[:, :4].mean() > 1.4 * over[:, 4:].mean()


def test_shades_are_denser_for_larger_numbers() -> None:
    lines = shaded(torch.linspace(0, 1, 20).expand(10, 20), 20).plain.splitlines()
    # Twenty numbers in ten shades: 0, 1/19, ..., 1, each rounded to the nearest ninth.
    assert lines == ["  ..::--==++**##%%@@"] * 10


@pytest.mark.parametrize(("size", "expected"), [((10, 20), (32, 16)), ((300, 3), (1, 32)), ((5, 5), (32, 32))])
def test_an_image_is_scaled_to_its_longer_side(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert scaled(torch.zeros(3, *size, dtype=torch.uint8), 32).size == expected

import pytest

from tests.support.screens import make_screen, printed
from tl_cli.data.sources.catalogue import SETS
from tl_cli.ui.terminal.listings import print_sets


@pytest.mark.parametrize("width", [40, 71, 80, 200])
def test_the_list_of_data_sets_fits_and_no_number_is_cut(width: int) -> None:
    screen = make_screen(width)
    print_sets(screen, tuple(SETS.values()))
    lines = printed(screen).splitlines()
    assert max(map(len, lines)) <= width
    row = next(line.split() for line in lines if line.startswith("cifar10 "))
    assert row[:2] == ["cifar10", "10"]
    assert "170" in row
    assert ("50,000" in row, "CIFAR-10" in row) == (width >= 72, width >= 72)

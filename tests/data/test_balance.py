import numpy as np
import pytest

from tl_cli.data.balance import imbalance


@pytest.mark.parametrize(("sizes", "ratio"), [((5, 5), 1.0), ((20, 2, 4), 10.0), ((7, 0), 7.0)])
def test_imbalance_is_the_largest_class_over_the_smallest(sizes: tuple[int, ...], ratio: float) -> None:
    assert imbalance(np.repeat(np.arange(len(sizes)), sizes), len(sizes)) == ratio

"""``list_data`` has the names of the libraries' data sets."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from tl_cli import list_data
from tl_cli.errors import UsageError


def test_the_digits_have_the_numbers_of_scikit_learn() -> None:
    (digits,) = list_data("digits").to_list()
    labels = load_digits().target
    assert digits["classes"] == len(np.unique(labels))
    assert sum(digits["images"].values()) == len(labels)
    assert list(digits) == ["name", "title", "classes", "images", "download_mb", "mirrors"]
    # A mirrored digit is not a digit.
    assert digits["mirrors"] is False


def test_a_pattern_matches_names_and_titles() -> None:
    assert [row.name for row in list_data("cifar").sets] == ["cifar10", "cifar100"]
    assert [row.name for row in list_data("CIFAR-10").sets] == ["cifar10"]
    assert {"cifar10", "digits"} < {row.name for row in list_data().sets}


def test_an_unknown_name_is_refused_with_the_nearest_name_or_a_fix(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Did you mean cifar10"):
        list_data("cifr10")
    with pytest.raises(UsageError, match="tl data check"):
        list_data(str(tmp_path))

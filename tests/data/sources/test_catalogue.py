import inspect
import subprocess
import sys

import pytest
from torchvision import datasets as tv

from tl_cli.data.sources.catalogue import LEFT_OUT, SETS, canonical
from tl_cli.data.sources.found import LAYOUTS

BASES = {"ImageFolder", "DatasetFolder", "VisionDataset", "LSUNClass", "wrap_dataset_for_transforms_v2"}


def test_each_data_set_of_torchvision_is_offered_or_has_a_reason() -> None:
    known = {canonical(name) for name in (*SETS, *LEFT_OUT)}
    assert {canonical(name) for name in tv.__all__ if name not in BASES} <= known
    assert not set(SETS) & set(LEFT_OUT)


@pytest.mark.parametrize("name", sorted(set(SETS) - {"digits"}))
def test_addresses_and_hashes_are_those_that_torchvision_publishes(name: str) -> None:
    dataset = next(getattr(tv, key) for key in tv.__all__ if canonical(key) == name)
    source = inspect.getsource(sys.modules[dataset.__module__])
    for file in SETS[name].files:
        assert file.url.rpartition("/")[2] in source
        if name != "fgvcaircraft":
            assert f'"{file.md5}"' in source


@pytest.mark.parametrize("name", sorted(SETS))
def test_a_row_is_consistent(name: str) -> None:
    row = SETS[name]
    assert row.name == name == canonical(name)
    assert frozenset(row.images) in LAYOUTS
    assert row.names is None or len(set(row.names)) == row.classes
    assert row.folder is None or all(row.folder.startswith(file.into) for file in row.files)


def test_digits_letters_and_signs_are_not_mirrored() -> None:
    fixed = {name for name, row in SETS.items() if not row.mirrors}
    mnists = {"digits", "mnist", "kmnist", "emnist", "qmnist"}
    assert fixed == mnists | {"usps", "svhn", "semeion", "gtsrb", "renderedsst2"}


def test_reading_the_catalogue_imports_neither_torch_nor_numpy() -> None:
    code = "import sys, tl_cli.data.sources.catalogue as c; print(len(c.SETS), {'torch', 'numpy'} & set(sys.modules))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.split() == ["24", "set()"]

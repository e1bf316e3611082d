from pathlib import Path

import pytest

from tl_cli.data.sources.csv_paths import Lookup
from tl_cli.errors import DataError


@pytest.fixture
def listing(tmp_path: Path) -> Path:
    for name in ("images/a.png", "train/b.jpg", "test/b.jpg", "c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path / "labels.csv"


@pytest.mark.parametrize(
    ("listed", "part", "path"),
    [
        ("c.png", None, "c.png"),
        ("images\\a.png", None, "images/a.png"),
        ("a", None, "images/a.png"),
        ("b.jpg", "test", "test/b.jpg"),
        ("missing.png", None, "missing.png"),
    ],
)
def test_an_image_is_found_by_the_end_of_its_path(listed: str, part, path: str, listing: Path) -> None:
    assert Lookup(listing).name(2, listed, part) == path


@pytest.mark.parametrize(
    ("listed", "message"),
    [("", "line 7: the path is empty"), ("b", "may be test/b.jpg or train/b.jpg"), ("z", "has no ending")],
)
def test_a_name_that_is_missing_or_ambiguous_is_refused_with_its_line(listed: str, message: str, listing: Path) -> None:
    with pytest.raises(DataError, match=message):
        Lookup(listing).name(7, listed)


def test_a_confined_lookup_refuses_paths_outside_its_folder(listing: Path) -> None:
    with pytest.raises(DataError, match="lies outside the archive"):
        Lookup(listing, confined=True).name(2, "../secret.png")

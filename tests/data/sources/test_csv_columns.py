from pathlib import Path

import pytest

from tl_cli.contract import Columns
from tl_cli.data.sources.csv_columns import is_listing, read_table
from tl_cli.errors import DataError


def test_path_label_and_split_are_read_under_their_usual_names() -> None:
    table = read_table(Path("labels.csv"), b"split,label,path\ntrain,cat,1.png\nvalid,dog,2.png\n")
    rows = list(table.rows())
    assert [line for line, _ in rows] == [2, 3]
    assert [table.label(line, values) for line, values in rows] == ["cat", "dog"]


@pytest.mark.parametrize(
    ("text", "expected"), [("path,label\n1.png,a\n", True), ("id,answer\n1,2\n", False), ("", False)]
)
def test_a_listing_is_a_csv_with_paths_and_labels(text: str, expected: bool, tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text(text)
    assert is_listing(path) == expected


def test_a_named_column_that_is_missing_is_refused() -> None:
    with pytest.raises(DataError, match="breed"):
        read_table(Path("labels.csv"), b"path,label\n1.png,a\n", Columns(label="breed"))

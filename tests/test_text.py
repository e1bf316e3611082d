import csv
import io
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tl_cli.text import csv_text, json_text, safe_text

HOSTILE = st.text(st.one_of(st.characters(), st.sampled_from("\x1b\x9b\x07\r\n\u202e\u2066\ud800[/]\\")), max_size=300)


@given(HOSTILE)
def test_safe_text_is_printable_and_bounded(name: str) -> None:
    text = safe_text(name)
    assert text.isprintable()
    assert len(text) < 200 * 10


def test_ordinary_names_are_not_changed() -> None:
    assert safe_text("Küche 猫 [bold]") == "Küche 猫 [bold]"


NUMBERS = st.floats(allow_nan=True, allow_infinity=True)


@given(st.recursive(NUMBERS | st.text() | st.none(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_json_is_valid_for_any_numbers(data: object) -> None:
    json.loads(json_text(data), parse_constant=pytest.fail)


def test_nan_and_infinity_become_null_and_empty_cells() -> None:
    odd = {"a": math.nan, "b": [1.5, (math.inf, "NaN")], "c": -math.inf}
    assert json.loads(json_text(odd)) == {"a": None, "b": [1.5, [None, "NaN"]], "c": None}
    assert csv_text([["a", 1.5, math.nan, None, math.inf]]) == "a,1.5,,,\n"


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("=cmd|' /C calc'!A0", "'=cmd|' /C calc'!A0"),
        ("+1+cmd|'/C calc'!A0", "'+1+cmd|'/C calc'!A0"),
        ("-2+3+cmd|'/C calc'!A0", "'-2+3+cmd|'/C calc'!A0"),
        ("@SUM(1,1)", "'@SUM(1,1)"),
        ("  =1+1", "'  =1+1"),
        ("\uff1d1+1", "'\uff1d1+1"),
        ("-", "'-"),
        # Numbers stay numbers; such a character after the first is harmless.
        ("-1.5e-3", "-1.5e-3"),
        ("+7", "+7"),
        (-0.25, "-0.25"),
        ("a=b", "a=b"),
        ("", ""),
    ],
)
def test_no_cell_of_a_csv_is_a_formula(cell: object, expected: str) -> None:
    (row,) = csv.reader(io.StringIO(csv_text([[cell, "x"]])))
    assert row == [expected, "x"]


@given(st.text())
def test_no_text_begins_with_a_character_that_owasp_forbids(text: str) -> None:
    (row,) = csv.reader(io.StringIO(csv_text([[text, "x"]])))
    assert row[0][:1] not in ("=", "@", "\t", "\r")
    if row[0][:1] in ("+", "-") and row[0]:
        float(row[0].rstrip("%"))

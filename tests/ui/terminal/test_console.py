import csv
import io
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tl_cli.ui.terminal.console import csv_text, json_text, plain, safe_text, settle_encoding

HOSTILE = st.text(st.one_of(st.characters(), st.sampled_from("\x1b\x9b\x07\r\n\u202e\u2066\ud800[/]\\")), max_size=300)


@given(HOSTILE)
def test_nothing_a_terminal_would_obey_passes(name: str) -> None:
    text = safe_text(name)
    assert text.isprintable()
    assert len(text) < 200 * 10
    console = Console(file=io.StringIO(), width=60)
    console.print(plain(name))
    assert not set(console.file.getvalue()) & set("\x1b\x9b\x07\u202e\ud800")


def test_ordinary_names_are_left_alone() -> None:
    assert safe_text("Küche 猫 [bold]") == "Küche 猫 [bold]"


@pytest.mark.parametrize("name", ["猫", "a…b", "é[/]"])
def test_a_stream_that_cannot_print_a_name_prints_a_stand_in(name: str) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    settle_encoding(stream)
    print(safe_text(name), file=stream, flush=True)
    printed = stream.buffer.getvalue().decode()
    assert printed.isascii()
    assert len(printed) == len(name) + 1


def test_a_c_locale_gets_ascii_in_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.TextIOWrapper):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("LC_ALL", "C")
    terminal, pipe = Terminal(io.BytesIO(), encoding="utf-8"), io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    settle_encoding(terminal)
    settle_encoding(pipe)
    assert (terminal.encoding, pipe.encoding) == ("ascii", "utf-8")


NUMBERS = st.floats(allow_nan=True, allow_infinity=True)


@given(st.recursive(NUMBERS | st.text() | st.none(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_what_is_printed_for_programs_is_json_whatever_the_numbers_are(data: object) -> None:
    json.loads(json_text(data), parse_constant=pytest.fail)


def test_numbers_that_json_and_csv_do_not_have_are_null_and_empty() -> None:
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
        # Numbers stay numbers, and what only holds such a character is text already.
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
def test_no_text_begins_as_owasp_forbids(text: str) -> None:
    (row,) = csv.reader(io.StringIO(csv_text([[text, "x"]])))
    assert row[0][:1] not in ("=", "@", "\t", "\r")
    if row[0][:1] in ("+", "-") and row[0]:
        float(row[0].rstrip("%"))

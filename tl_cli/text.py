"""Text that is safe to print: escaped control characters, valid JSON, CSV without formulas, HTML. No Rich here."""

import csv
import io
import json
import math
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from html import escape
from typing import Any

from pydantic_core import to_jsonable_python


def safe_text(value: object, *, limit: int = 200) -> str:
    r"""Return a file name, a class or a message without characters that control a terminal.

    Control characters, escapes, bidirectional marks and lone surrogates become ``\xNN``; text longer than ``limit``
    characters is cut.
    """
    text = "".join(_visible(character) for character in str(value)[: limit + 1])
    return text if len(text) <= limit else text[: limit - 3] + "..."


def json_text(data: object, *, indent: int | None = None) -> str:
    """Return data as JSON, with null for NaN and infinity, which JSON cannot express."""
    return json.dumps(finite(data), indent=indent, allow_nan=False)


def finite(data: object) -> object:
    """Return plain data with None for NaN and infinity, which JSON cannot express."""
    if isinstance(data, Mapping):
        return {key: finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def plain_data(result: object, *, exclude: Collection[str] = ()) -> dict[str, Any]:
    """Return a dataclass as plain JSON types: tuples as lists, paths as text, the dataclasses in it as objects.

    Args:
        exclude: fields to leave out.
    """
    data: dict[str, Any] = to_jsonable_python(result, exclude=set(exclude))
    return data


def html_table(heading: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table for a notebook, with every cell escaped."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in heading)
    body = ("".join(f"<td>{escape(str(cell))}</td>" for cell in row) for row in rows)
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in (head, *body))}</table>"


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Return rows as CSV, with names as safe text, uncut.

    None, NaN and infinity become empty cells. Text that a spreadsheet would run as a formula gets an apostrophe in
    front.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    for row in rows:
        cells = (finite(cell) for cell in row)
        table.writerow(
            [_inert(safe_text(cell, limit=10 * len(cell))) if isinstance(cell, str) else cell for cell in cells]
        )
    return text.getvalue()


# https://owasp.org/www-community/attacks/CSV_Injection
_FORMULA = frozenset("=+-@\t\r")
_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?%?\s*")


def _inert(text: str) -> str:
    """Return text that no spreadsheet reads as a formula; a number stays a number."""
    # Spreadsheets accept the full-width forms of these characters too.
    begins = unicodedata.normalize("NFKC", text).lstrip(" ")[:1] in _FORMULA
    return f"'{text}" if begins and not _NUMBER.fullmatch(text) else text


def _visible(character: str) -> str:
    if character == " " or character.isprintable():
        return character
    code = ord(character)
    if unicodedata.category(character) == "Zs":
        return " "
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"

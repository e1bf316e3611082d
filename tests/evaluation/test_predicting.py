"""The forms in which an image reaches a served model."""

import base64
from urllib.parse import quote

import pytest

from tl_cli.errors import DataError
from tl_cli.evaluation.predicting import encoded

# All characters of both alphabets, and a length that needs padding.
DATA = bytes(range(256)) + b"\xfb\xff\xfe" * 20 + b"x"
STANDARD, SAFE = base64.b64encode(DATA).decode(), base64.urlsafe_b64encode(DATA).decode()


@pytest.mark.parametrize(
    "text",
    [
        STANDARD,
        SAFE,
        SAFE.rstrip("="),
        base64.encodebytes(DATA).decode(),
        f"data:image/png;base64,{STANDARD}",
        f"data:image/png;base64,{SAFE}",
        f"data:image/png;base64,{quote(STANDARD, safe='')}",
        f" DATA:;charset=x;BASE64,{STANDARD}\n",
        f"data:image/png,{quote(DATA, safe='')}",
    ],
)
def test_every_form_of_base64_and_data_url_is_decoded(text: str) -> None:
    assert encoded(text) == DATA


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("%%%", "not base64"),
        ("aGVsbG8g_", "not base64"),
        ("aGVsbG8\u00fc", "it has the character '\u00fc'"),
        ("data:image/png;base64,aGVs\u4e2d", "it has the character"),
        ("aGVsb", "is it complete"),
        ("data:image/png;base64,%FF%00", "not base64"),
        ("data:image/png;base64", "has a comma"),
    ],
)
def test_invalid_base64_is_refused_with_the_reason(text: str, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        encoded(text)

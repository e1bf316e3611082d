import io
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.text import Text

from tests.support.histories import FACTS, HOSTILE
from tl_cli.tracking.facts import Differences
from tl_cli.ui.terminal.console import THEME
from tl_cli.ui.terminal.run_tables import print_differences, print_runs, spark

RUNS = [
    replace(FACTS, status="finished", is_best=True, curve=(0.1, 0.5, 0.9)),
    replace(FACTS, run_id="a" * 32, name="猫" * 40, status="dead", val_accuracy=None, test_accuracy=None),
    replace(
        FACTS, run_id="b" * 32, name="short", status="silent", parent_id="x", experiment="other", epochs=(None, None)
    ),
]


def printed(width: int, show, *arguments, encoding: str = "utf-8", **options) -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="replace")
    console = Console(theme=THEME, file=file, width=width, force_terminal=True)
    show(console, *arguments, **options)
    file.flush()
    return Text.from_ansi(file.buffer.getvalue().decode(encoding)).plain


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_the_list_fits_every_width_with_the_most_important_columns(width: int) -> None:
    text = printed(width, print_runs, RUNS, total=30, where="sqlite:///mlflow.db", filtered=False)
    lines = text.splitlines()
    assert max(Text(line).cell_len for line in lines) <= width
    for expected in ("3f2a91c0", "aaaaaaaa", "*91.00%", "dead", "silent"):
        assert expected in text
    assert "tl runs close records its end" in " ".join(text.split())
    assert "3 of 30 shown" in text
    assert ("▁▅█" in text) == (width >= 60)


def test_names_are_printed_without_interpreting_markup() -> None:
    text = printed(200, print_runs, RUNS, total=3, where="x", filtered=False)
    assert r"\x1b[31m" in text
    assert "[/]" in text
    assert HOSTILE not in text


def test_an_empty_list_gives_the_reason() -> None:
    assert "no runs in x yet" in printed(80, print_runs, [], total=0, where="x", filtered=False)
    assert "passes the filters" in printed(80, print_runs, [], total=0, where="x", filtered=True)


@given(st.lists(st.floats(0, 1), max_size=80), st.integers(1, 20))
def test_a_spark_line_is_short_and_its_end_is_the_last_value(values: list[float], width: int) -> None:
    line = spark(values, width)
    assert len(line) == min(len(values), width)
    if values and values[-1] == max(values) > min(values):
        assert line[-1] == "█"
    assert spark(values, width, ascii_only=True).isascii()


def test_a_spark_line_rises_with_its_values() -> None:
    assert spark([0.0, 0.5, 1.0], 12) == "▁▅█"
    assert spark([0.3, 0.3], 12) == "▅▅"
    assert spark([float(number) for number in range(100)], 8) == "▂▃▄▄▅▆▇█"


@pytest.mark.parametrize("width", [40, 80, 200])
def test_differences_fit_every_width(width: int) -> None:
    apart = Differences(
        RUNS[:2],
        {"lr": ["0.1", "0.01"], "mixup": [None, "0.2"], "model": ["resnet18", "\x1b[31m" + "x" * 60]},
        {"machine": ["box", "other"]},
        {"test/accuracy": [0.88, None], "time/train_seconds": [61.0, 7200.0]},
        55,
    )
    text = printed(width, print_differences, apart, {})
    assert max(Text(line).cell_len for line in text.splitlines()) <= width
    for expected in ("lr", "0.01", "not recorded", "88.00%", "1:01", "machine", "55 settings are equal"):
        assert expected in text, expected
    assert "equal in all" in printed(width, print_differences, apart, {"seed": "0"})

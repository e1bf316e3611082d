import io
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from tests.support.screens import Terminal
from tl_cli.text import safe_text
from tl_cli.ui.terminal.console import THEME, is_live, make_console, plain, settle_encoding, shortened

HOSTILE = st.text(st.one_of(st.characters(), st.sampled_from("\x1b\x9b\x07\r\n\u202e\u2066\ud800[/]\\")), max_size=300)


@given(HOSTILE)
def test_control_characters_are_never_printed(name: str) -> None:
    console = Console(file=io.StringIO(), width=60)
    console.print(plain(name))
    assert not set(console.file.getvalue()) & set("\x1b\x9b\x07\u202e\ud800")


@pytest.mark.parametrize("name", ["猫", "a…b", "é[/]"])
def test_a_stream_that_cannot_print_a_character_prints_a_replacement(name: str) -> None:
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


def test_a_name_is_shortened_in_its_middle() -> None:
    assert shortened("short", 10) == "short"
    assert shortened("/home/someone/flowers/first/best", 20) == "/home/som...rst/best"
    assert [cell_len(shortened("\u732b" * 30, room)) <= room for room in range(3, 30)] == [True] * 27


@pytest.mark.parametrize(
    "environment",
    [
        {"TERM": "dumb"},
        {"CI": "true"},
        {"CI": "1"},
        {"JPY_PARENT_PID": "77"},  # set by jupyter_client for every kernel
        {"TERM": "xterm-color", "PAGER": "cat", "FORCE_COLOR": "1"},  # set by every ipykernel
    ],
)
def test_dumb_terminals_ci_and_notebooks_are_not_redrawn(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    assert is_live(Console(theme=THEME, file=Terminal()))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert not is_live(Console(theme=THEME, file=Terminal()))


@pytest.mark.parametrize("value", ["", "false", "False", "0", "no", "off"])
def test_a_variable_ci_that_is_off_is_not_ci(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("CI", value)
    assert is_live(Console(theme=THEME, file=Terminal()))


@pytest.mark.parametrize("name", ["FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"])
def test_only_the_stream_decides_whether_it_is_a_terminal(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv(name, "1")
    assert not is_live(Console(theme=THEME, file=io.StringIO()))
    assert is_live(Console(theme=THEME, file=Terminal()))


def test_plain_output_can_be_requested(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert is_live(make_console())
    assert not is_live(make_console(plain=True))

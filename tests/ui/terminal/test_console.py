import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tl_cli.text import safe_text
from tl_cli.ui.terminal.console import plain, settle_encoding

HOSTILE = st.text(st.one_of(st.characters(), st.sampled_from("\x1b\x9b\x07\r\n\u202e\u2066\ud800[/]\\")), max_size=300)


@given(HOSTILE)
def test_control_characters_are_never_printed(name: str) -> None:
    console = Console(file=io.StringIO(), width=60)
    console.print(plain(name))
    assert not set(console.file.getvalue()) & set("\x1b\x9b\x07\u202e\ud800")


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

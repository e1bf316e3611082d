import io

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tl_cli.ui.console import plain, safe_text

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

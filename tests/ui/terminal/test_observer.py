import io

import pytest
from rich.console import Console
from rich.text import Text

from tl_cli.ui.terminal import progress
from tl_cli.ui.terminal.console import THEME
from tl_cli.ui.terminal.observer import TerminalObserver


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("w.pth", 4_000_000, None, "bytes"), "4.0 MB"),
        (("w.pth", 500_000, 900_000, "bytes"), "500.0 kB/900.0 kB"),
        (("decoding images", 2_000_000, 20_000_000), "2,000,000/20,000,000"),
        (("reading images", 1_200, None), "1,200"),
    ],
)
def test_progress_is_shown_in_the_unit_of_the_work(arguments: tuple, expected: str, monkeypatch) -> None:
    monkeypatch.setattr(progress, "is_live", lambda console: True)
    console = Console(theme=THEME, file=io.StringIO(), width=120, height=20, force_terminal=True)
    with TerminalObserver(console) as observer:
        observer.progress(*arguments)
    words = Text.from_ansi(console.file.getvalue()).plain.split()
    assert " ".join(expected.split()) in " ".join(words)

import io
import subprocess
import sys

import pytest
from rich.console import Console
from rich.text import Text

from tests.support.screens import Terminal
from tl_cli.ui.terminal.console import THEME
from tl_cli.ui.terminal.observer import TerminalObserver, drawn_progress


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Console:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("CI", raising=False)
    return Console(theme=THEME, file=Terminal(), width=120, height=20)


def words(console: Console) -> str:
    return " ".join(Text.from_ansi(console.file.getvalue()).plain.split())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("w.pth", 4_000_000, None, "bytes"), "4.0 MB"),
        (("w.pth", 1_500_000, 45_000_000, "bytes"), "1.5 MB/45.0 MB"),
        (("w.pth", 900, None, "bytes"), "900 bytes"),
        (("decoding images", 2_000_000, 20_000_000), "2,000,000/20,000,000"),
        (("reading images", 1_200, None), "1,200"),
    ],
)
def test_progress_is_shown_in_the_unit_of_the_work(arguments: tuple, expected: str, terminal: Console) -> None:
    with TerminalObserver(terminal) as observer:
        observer.progress(*arguments)
    assert expected in words(terminal)


def test_a_closed_observer_leaves_the_lines_that_others_print(terminal: Console) -> None:
    with TerminalObserver(terminal) as observer:
        observer.progress("first", 1, 2)
        observer.close()
        terminal.print("a line")
        before = len(terminal.file.getvalue())
        observer.progress("second", 1, 2)
    second = terminal.file.getvalue()[before:]
    assert "second" in second
    assert "first" not in second
    # The new bar begins at the cursor: the cursor does not move up before it is drawn.
    assert "\x1b[1A" not in second.partition("second")[0]


def test_a_pipe_gets_no_progress() -> None:
    pipe = Console(theme=THEME, file=io.StringIO(), width=80)
    with drawn_progress(pipe) as progress:
        progress("x", 1, 2)
    assert pipe.file.getvalue() == ""


def test_progress_imports_nothing_heavy() -> None:
    code = (
        "import sys, tl_cli.ui.terminal.observer; "
        "print({'torch', 'numpy', 'plotext', 'matplotlib', 'mlflow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"

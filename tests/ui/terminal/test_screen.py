import errno
import io
import os
import pty
import shutil
import sys
from pathlib import Path

import pytest
from rich.console import Console
from rich.text import Text

from tl_cli.ui.terminal.screen import Display

ENTER, LEAVE = b"\x1b[?1049h", b"\x1b[?1049l"
SCREEN = """
import sys
from rich.text import Text
from tl_cli.ui.terminal.console import make_console
from tl_cli.ui.terminal.screen import Display

with Display(Text("on the screen"), console=make_console(), screen=True, redirect_stdout=False, redirect_stderr=False):
    sys.stdin.readline()
"""


class Shell:
    """An interactive shell with job control in a new terminal."""

    def __init__(self) -> None:
        pid, self.terminal = pty.fork()
        if pid == 0:
            os.environ.update({"TERM": "xterm", "PS1": "$ "})
            os.execlp("bash", "bash", "--norc", "--noprofile", "-i")
        self.pid = pid
        self.seen = b""

    def type(self, text: str) -> None:
        os.write(self.terminal, text.encode())

    def until(self, wanted: bytes) -> bytes:
        """Return the output up to and including ``wanted``."""
        while wanted not in self.seen:
            self.seen += os.read(self.terminal, 4096)
        before, found, self.seen = self.seen.partition(wanted)
        return before + found


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs a shell with jobs")
def test_ctrl_z_restores_the_shells_screen_and_fg_returns_to_the_full_screen(tmp_path: Path) -> None:
    (tmp_path / "screen.py").write_text(SCREEN)
    shell = Shell()
    shell.type(f"{sys.executable} {tmp_path / 'screen.py'}\n")
    shell.until(ENTER)
    shell.until(b"on the screen")
    shell.type("\x1a")
    assert b"Stopped" not in shell.until(LEAVE)
    # Nothing is drawn between this and the shell's own line.
    assert b"on the screen" not in shell.until(b"Stopped")
    shell.type("fg\n")
    shell.until(ENTER)
    shell.until(b"on the screen")
    shell.type("\x1a")
    shell.until(LEAVE)
    shell.until(b"Stopped")
    shell.type("fg\n")
    shell.until(ENTER)
    shell.type("\n")
    shell.until(LEAVE)
    shell.type("exit 0\n")
    assert os.waitpid(shell.pid, 0)[1] == 0


class ClosesWithTheScreen(io.StringIO):
    """A terminal that is closed as soon as the full screen is requested."""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if ENTER.decode() in self.getvalue():
            raise OSError(errno.EIO, "Input/output error")
        return super().write(text)


def test_a_terminal_closed_while_the_screen_opens_ends_no_training() -> None:
    file = ClosesWithTheScreen()
    console = Console(file=file, force_terminal=True, width=80, height=20)
    with Display(Text("on the screen"), console=console, screen=True) as display:
        display.refresh()
        display.update(Text("more"), refresh=True)
    assert ENTER.decode() in file.getvalue()

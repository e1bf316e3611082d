"""Consoles whose output a test reads."""

import io

from rich.console import Console
from rich.text import Text

from tl_cli.ui.terminal.console import THEME

HOSTILE = "[red]\x1b[31mb\u202ed"


def make_screen(width: int, height: int = 40, *, colour: bool = False, encoding: str = "utf-8") -> Console:
    """Return a console that writes to memory; a character that its encoding lacks is an error."""
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict", newline="")
    system = "truecolor" if colour else None
    return Console(
        theme=THEME, width=width, height=height, file=file, force_terminal=colour, color_system=system, highlight=False
    )


def printed(screen: Console) -> str:
    """Return what was printed, with escape codes."""
    screen.file.flush()
    return screen.file.buffer.getvalue().decode(screen.file.encoding)  # type: ignore[attr-defined]


def shown(screen: Console) -> str:
    """Return what was printed, without escape codes."""
    return Text.from_ansi(printed(screen)).plain

"""The terminal: one console, what it can show, and text from outside made safe to print."""

import codecs
import io
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TextIO

from rich.cells import cell_len, set_cell_size
from rich.console import Console as Console
from rich.text import Text
from rich.theme import Theme

from tl_cli.errors import without_secrets
from tl_cli.text import safe_text

THEME = Theme(
    {
        "good": "green",
        "bad": "red",
        "note": "dim",
        "train": "blue",
        "val": "dark_orange",
        "mark": "magenta",
    }
)


_STAND_IN = "tl-stand-in"


def _stand_in(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return "".join("~" if c == "…" else "?" for c in error.object[error.start : error.end]), error.end


codecs.register_error(_STAND_IN, _stand_in)


class _Console(Console):
    """Rich's console, except that the command decides what happens when the reader of its output is gone."""

    def on_broken_pipe(self) -> None:
        """Raise the BrokenPipeError that is being handled, where Rich would exit."""
        raise


def make_console(*, quiet: bool = False, stderr: bool = False, plain: bool = False) -> Console:
    """Return a console for stdout (or stderr); Rich itself handles FORCE_COLOR, NO_COLOR and TERM=dumb.

    Args:
        plain: never redraw anything, even on a terminal.
    """
    settle_encoding(sys.stderr if stderr else sys.stdout)
    return _Console(
        theme=THEME, quiet=quiet, stderr=stderr, highlight=False, soft_wrap=False,
        force_interactive=False if plain else None,
    )  # fmt: skip


def try_to_show(show: Callable[[], None]) -> BrokenPipeError | None:
    """Print a result, before it is recorded; return the error where the reader of the pipe is gone.

    It is raised by the caller once the result is recorded: ``tl eval | head`` records as much as ``tl eval`` does.
    """
    try:
        show()
    except BrokenPipeError as error:
        return error
    return None


def is_live(console: Console) -> bool:
    """Whether a screen that redraws itself is possible and useful: in a terminal's foreground, not in CI or a notebook.

    FORCE_COLOR asks for colours, not for a screen, so it has no say.
    """
    return (
        is_terminal(console)
        and console.is_interactive
        and not console.is_dumb_terminal
        and os.environ.get("CI", "").strip().lower() in _OFF
        and not _is_in_notebook()
        and is_in_foreground(console)
    )


_OFF = ("", "0", "false", "no", "off")


def is_terminal(console: Console) -> bool:
    """Whether the console's stream is a terminal, whatever the environment says."""
    with suppress(ValueError, AttributeError):  # a closed stream, or an object that only writes
        return console.file.isatty()
    return False


def _is_in_notebook() -> bool:
    """Whether a Jupyter kernel started this process: its cells are terminals to ``isatty``, but show every frame.

    jupyter_client sets the first variable, and every ipykernel the other two.
    """
    asked = os.environ.get
    return "JPY_PARENT_PID" in os.environ or (asked("TERM"), asked("PAGER")) == ("xterm-color", "cat")


def is_in_foreground(console: Console) -> bool:
    """Whether this process may draw on its terminal, rather than being a job in the background."""
    with suppress(OSError, ValueError, AttributeError):  # no terminal, no descriptor, no jobs on this system
        return os.tcgetpgrp(console.file.fileno()) == os.getpgrp()
    return True


def is_ascii(console: Console) -> bool:
    """Whether only ASCII may be printed."""
    return not console.encoding.lower().startswith("utf")


def settle_encoding(stream: TextIO) -> None:
    """Let a stream print what it can and something of equal width for the rest, whatever its encoding.

    Under an explicit C locale Python writes UTF-8 all the same; a terminal that was told so shows rubbish.
    """
    if not isinstance(stream, io.TextIOWrapper):
        return
    if stream.isatty() and os.environ.get("LC_ALL", "") in ("C", "POSIX"):
        stream.reconfigure(encoding="ascii", errors=_STAND_IN)
    elif not stream.encoding.lower().startswith("utf"):
        stream.reconfigure(errors=_STAND_IN)


def plain(value: object, style: str = "", *, limit: int = 200) -> Text:
    """Return safe text that Rich never reads as markup."""
    return Text(safe_text(value, limit=limit), style=style)


def shortened(value: object, cells: int) -> str:
    """Return safe text of at most so many cells of a terminal; of a longer one both ends, where names differ."""
    text = safe_text(value, limit=4000)
    if cell_len(text) <= cells:
        return text
    room = max(0, cells - 3)
    end = text[::-1]
    # Cut by cells, as wide characters have two; what is padded where one would not fit whole is taken off.
    return set_cell_size(text, room - room // 2).rstrip() + "..."[:cells] + set_cell_size(end, room // 2)[::-1].lstrip()


def print_error(message: str) -> None:
    """Print a failure to stderr, line by line safe."""
    _print_aside(Text("error: ", style="bold red"), message)


def print_warning(message: str) -> None:
    """Print a warning to stderr."""
    _print_aside(Text("warning: ", style="bold yellow"), message)


def print_note(message: str) -> None:
    """Print to stderr what is neither a failure nor a warning."""
    _print_aside(Text(), message)


def _print_aside(text: Text, message: str) -> None:
    text.append("\n".join(safe_text(line, limit=2000) for line in without_secrets(message).splitlines()))
    # Where nobody can read it, as its terminal or disk is gone, what is being done goes on.
    with suppress(OSError):
        make_console(stderr=True).print(text, soft_wrap=True)

"""Consoles for stdout and stderr: what the terminal supports, and messages on stderr."""

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
    """Rich's console, except that a closed pipe is an error for the command to handle."""

    def on_broken_pipe(self) -> None:
        """Raise the BrokenPipeError again, where Rich would exit."""
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
    """Print a result that is not recorded yet; return the error if the pipe is closed.

    The caller raises it after recording, so that ``tl eval | head`` records as much as ``tl eval``.
    """
    try:
        show()
    except BrokenPipeError as error:
        return error
    return None


def is_live(console: Console) -> bool:
    """Whether to redraw a screen: in a terminal's foreground, but not in CI or a notebook.

    FORCE_COLOR requests colours, not a screen, and is ignored.
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
    """Whether the console's stream is a terminal, regardless of environment variables."""
    with suppress(ValueError, AttributeError):  # a closed stream, or an object that only writes
        return console.file.isatty()
    return False


def _is_in_notebook() -> bool:
    """Whether a Jupyter kernel started this process: ``isatty`` is true in its cells, but each frame stays visible.

    jupyter_client sets the first variable, and every ipykernel the other two.
    """
    get = os.environ.get
    return "JPY_PARENT_PID" in os.environ or (get("TERM"), get("PAGER")) == ("xterm-color", "cat")


def is_in_foreground(console: Console) -> bool:
    """Whether this process may draw on its terminal, rather than being a job in the background."""
    with suppress(OSError, ValueError, AttributeError):  # no terminal, no descriptor, no job control
        return os.tcgetpgrp(console.file.fileno()) == os.getpgrp()
    return True


def is_ascii(console: Console) -> bool:
    """Whether only ASCII may be printed."""
    return not console.encoding.lower().startswith("utf")


def settle_encoding(stream: TextIO) -> None:
    """Make a stream replace characters that its encoding lacks with others of equal width.

    With LC_ALL=C, Python still writes UTF-8, which such a terminal cannot show.
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
    """Return safe text of at most ``cells`` terminal cells; long text loses its middle, as names differ at the ends."""
    text = safe_text(value, limit=4000)
    if cell_len(text) <= cells:
        return text
    room = max(0, cells - 3)
    end = text[::-1]
    # Wide characters take two cells; set_cell_size pads where half of one would fit, and strip removes that.
    return set_cell_size(text, room - room // 2).rstrip() + "..."[:cells] + set_cell_size(end, room // 2)[::-1].lstrip()


def print_error(message: str) -> None:
    """Print a failure to stderr; control characters are escaped."""
    _print_aside(Text("error: ", style="bold red"), message)


def print_warning(message: str) -> None:
    """Print a warning to stderr."""
    _print_aside(Text("warning: ", style="bold yellow"), message)


def print_note(message: str) -> None:
    """Print information to stderr."""
    _print_aside(Text(), message)


def _print_aside(text: Text, message: str) -> None:
    text.append("\n".join(safe_text(line, limit=2000) for line in without_secrets(message).splitlines()))
    # A closed terminal or a full disk must not end the command.
    with suppress(OSError):
        make_console(stderr=True).print(text, soft_wrap=True)

"""What use cases report, in a terminal: warnings on stderr, progress on the console."""

from contextlib import ExitStack
from types import TracebackType
from typing import Self

from rich.console import Console

from tl_cli.api.observer import Observer
from tl_cli.io.download import Unit
from tl_cli.ui.terminal.console import print_warning
from tl_cli.ui.terminal.progress import FileProgress


class TerminalObserver(Observer):
    """Prints warnings, and draws progress as long as it is open.

    Args:
        console: for progress; one on stderr where stdout is for programs.
    """

    def __init__(self, console: Console) -> None:
        self._progress = FileProgress(console)
        self._open = ExitStack()

    def __enter__(self) -> Self:
        self._open.enter_context(self._progress)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, trace)

    def warn(self, message: str) -> None:
        """Print a warning to stderr."""
        print_warning(message)

    def progress(self, what: str, done: int, total: int | None, unit: Unit = "items") -> None:
        """Draw or redraw the line of ``what``."""
        self._progress(what, done, total, unit)

"""What use cases report, in a terminal: warnings on stderr, progress on the console. No torch, NumPy or plotext."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.filesize import decimal

from tl_cli.api.observer import Observer
from tl_cli.io.download import Progress, Unit
from tl_cli.ui.terminal.console import is_live, print_warning
from tl_cli.ui.terminal.layout import progress_bar
from tl_cli.ui.terminal.screen import Display

_REFRESH_PER_SECOND = 4


class TerminalObserver(Observer):
    """Prints warnings, and draws a progress bar from the first report of progress until it is closed.

    Args:
        console: for progress; one on stderr where stdout is for programs. A pipe gets no bar.
    """

    def __init__(self, console: Console) -> None:
        self._progress_console = console
        self._is_drawn = is_live(console) and not console.quiet
        self._display: Display | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove the progress bar; the next report of progress draws a new one."""
        if self._display is not None:
            self._display.stop()
            self._display = None

    def warn(self, message: str) -> None:
        """Print a warning to stderr."""
        print_warning(message)

    def progress(self, what: str, done: int, total: int | None, unit: Unit = "items") -> None:
        """Draw or redraw the bar of ``what``, such as a download, or a pass over files."""
        if not self._is_drawn:
            return
        format_amount = decimal if unit == "bytes" else "{:,}".format
        amount = "/".join(format_amount(number) for number in (done, total) if number is not None)
        bar = progress_bar(what, done, total or done, amount, self._progress_console.width)
        if self._display is None:
            self._display = Display(
                bar, console=self._progress_console, transient=True, refresh_per_second=_REFRESH_PER_SECOND
            )
            self._display.start()
        self._display.update(bar)


@contextmanager
def drawn_progress(console: Console) -> Iterator[Progress]:
    """Draw the progress that is reported within the block."""
    with TerminalObserver(console) as observer:
        yield observer.progress

"""Displays that redraw themselves; the terminal may close, or return to its shell for a while (Ctrl-Z)."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from rich.console import Console, RenderableType
from rich.live import Live
from rich.spinner import Spinner

from tl_cli.ui.terminal.console import is_in_foreground, is_live


class Display(Live):
    """Rich's live display, with support for closed terminals and Ctrl-Z.

    After the terminal is closed, nothing is drawn. On Ctrl-Z a full screen is hidden before the process stops; it is
    shown again by the first refresh in the foreground: after ``fg``, not after ``bg``.
    """

    _is_hidden = False

    def start(self, refresh: bool = False) -> None:
        """Show the display."""
        # Before the first frame, which Ctrl-Z may follow. Shells without job control make children ignore SIGTSTP.
        if self._screen and hasattr(signal, "SIGTSTP") and signal.getsignal(signal.SIGTSTP) is signal.SIG_DFL:
            signal.signal(signal.SIGTSTP, self._suspend)
        try:
            super().start(refresh)
        except OSError:  # the terminal was closed meanwhile
            self.stop()
        except BaseException:  # no thread can be started, or a signal arrived
            self.stop()
            raise

    def stop(self) -> None:
        """Remove the display."""
        if hasattr(signal, "SIGTSTP") and signal.getsignal(signal.SIGTSTP) == self._suspend:
            signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        with suppress(OSError):
            super().stop()

    def refresh(self) -> None:
        """Draw the display again, unless another process is in the terminal's foreground."""
        with self._lock, suppress(OSError):
            if self._is_hidden and is_in_foreground(self.console):
                self._show(shown=True)
            if not self._is_hidden:
                super().refresh()

    def _suspend(self, signum: int, frame: FrameType | None) -> None:
        # The lock keeps the refreshing thread from drawing before all threads are stopped.
        with self._lock:
            with suppress(OSError):
                self._show(shown=False)
            signal.signal(signum, signal.SIG_DFL)
            signal.raise_signal(signum)
            signal.signal(signum, self._suspend)

    def _show(self, *, shown: bool) -> None:
        self._is_hidden = not shown
        self._alt_screen = shown
        self.console.set_alt_screen(shown)
        self.console.show_cursor(not shown)


def full_screen(console: Console, content: RenderableType, *, refresh_per_second: float = 4) -> Display:
    """Return a display of the content, laid out again at each refresh, on the terminal's alternate screen.

    A resize leaves no traces, and the previous content of the terminal comes back.
    """
    return Display(
        get_renderable=lambda: content, console=console, screen=True, refresh_per_second=refresh_per_second,
        redirect_stdout=False, redirect_stderr=False,
    )  # fmt: skip


@contextmanager
def loading(console: Console, library: str) -> Iterator[None]:
    """Show that a slow library is being imported in the block: a spinner on a terminal, else a line."""
    if library in sys.modules or console.quiet:
        yield
    elif is_live(console):
        # The library's own warnings go to stderr as they are.
        spinner = Spinner("dots", f"loading {library}")
        with Display(spinner, console=console, transient=True, redirect_stdout=False, redirect_stderr=False):
            yield
    else:
        console.print(f"loading {library}", style="note")
        console.file.flush()
        yield

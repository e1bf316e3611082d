"""Displays that redraw themselves; the terminal may close, or return to its shell for a while (Ctrl-Z)."""

import signal
from contextlib import suppress
from types import FrameType

from rich.live import Live

from tl_cli.ui.terminal.console import is_in_foreground


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

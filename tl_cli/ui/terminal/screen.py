"""Displays that redraw themselves, on a terminal that may go away or be taken back by its shell for a while."""

import signal
from contextlib import suppress
from types import FrameType

from rich.live import Live

from tl_cli.ui.terminal.console import is_in_foreground


class Display(Live):
    """Rich's live display, which survives its terminal and leaves it to the shell on Ctrl-Z.

    Nothing more is drawn once the terminal is gone. A full screen is left before the process stops, and comes back with
    the first refresh in the foreground: after ``fg``, not after ``bg``.
    """

    _is_hidden = False

    def start(self, refresh: bool = False) -> None:
        """Show the display."""
        # Before the first frame, as Ctrl-Z may come right after. A shell without jobs has its children ignore it.
        if self._screen and hasattr(signal, "SIGTSTP") and signal.getsignal(signal.SIGTSTP) is signal.SIG_DFL:
            signal.signal(signal.SIGTSTP, self._suspend)
        try:
            super().start(refresh)
        except BaseException:  # no thread can be started, or a signal has come
            self.stop()
            raise

    def stop(self) -> None:
        """Take the display away."""
        if hasattr(signal, "SIGTSTP") and signal.getsignal(signal.SIGTSTP) == self._suspend:
            signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        with suppress(OSError):
            super().stop()

    def refresh(self) -> None:
        """Draw the display again, unless the terminal is somebody else's now."""
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

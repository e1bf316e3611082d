"""Turns signals into exceptions: immediately, or at the end of a block that must not be interrupted.

A second signal is raised immediately, even within such a block.
"""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from tl_cli.errors import Interrupted

NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
# Debounce a double Ctrl-C.
_SAME_PRESS_S = 1.0

_depth = 0
_waiting: int | None = None
_signalled_at = -1.0
_raised: int | None = None
_handled: set[signal.Signals] = set()


def listen() -> None:
    """Raise ``Interrupted`` for Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 from now on.

    A signal that was ignored when this process started stays ignored: SIGHUP under ``nohup``, SIGINT in a
    script's background job.
    """
    global _raised
    _raised = None
    for signum in known():
        if signum in _handled or signal.getsignal(signum) is not signal.SIG_IGN:
            _handled.add(signum)
            signal.signal(signum, _handle)


def ignore() -> None:
    """Ignore these signals from now on, while the command finishes."""
    for signum in _handled:
        signal.signal(signum, signal.SIG_IGN)


def known() -> list[signal.Signals]:
    """Return the signals that end a command and exist on this system."""
    return [getattr(signal, name) for name in NAMES if hasattr(signal, name)]


def raised() -> Interrupted | None:
    """Return the exception of the last signal, which a library may have replaced by its own; None without a signal."""
    return None if _raised is None else Interrupted(_raised)


@contextmanager
def held() -> Iterator[None]:
    """Delay a signal until the end of the block, so that its changes are complete.

    Raises:
        Interrupted: at the end if a signal came during the block; immediately at the second signal.
    """
    global _depth, _waiting
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
        if _depth == 0 and _waiting is not None:
            signum, _waiting = _waiting, None
            raise _interruption(signum)


def _handle(signum: int, frame: FrameType | None) -> None:
    global _waiting, _signalled_at
    now = time.monotonic()
    is_double = 0 <= now - _signalled_at < _SAME_PRESS_S
    _signalled_at = now
    if is_double:
        return
    if _depth and _waiting is None:
        _waiting = signum
        return
    _waiting = None
    raise _interruption(signum)


def _interruption(signum: int) -> Interrupted:
    global _raised
    _raised = signum
    return Interrupted(signum)

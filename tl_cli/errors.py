"""All errors that a command reports, and short texts for their messages; nothing here prints or exits.

TlError                   exit 1: the work failed
├── DownloadError         a file could not be fetched, or arrived wrong
├── DivergedError         the loss is no longer finite
├── StorageError          a file could not be written (disk full, read-only)
│   └── DamagedError        a file does not hold what was written
├── TrackingError         the MLflow store cannot be used
└── UsageError            exit 2: bad usage or input
    ├── UnknownModelError   no such architecture
    ├── DataError           images or folders that cannot be used as asked
    ├── WeightsError        weights that cannot be read or do not fit
    └── RunNotFoundError    no such run, or more than one

Interrupted               exit 128 + signal: Ctrl-C, SIGTERM, SIGHUP, SIGUSR1 (no TlError, so that nothing catches it)
"""

import re
import shlex
import signal
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import ClassVar


class TlError(Exception):
    """The base of every failure that is reported as one message and an exit code, without a traceback."""

    exit_code: ClassVar[int] = 1


class DownloadError(TlError):
    """A file could not be fetched, or its hash is not the published one."""


class DivergedError(TlError):
    """The training loss is NaN or infinite."""


class StorageError(TlError):
    """A file could not be written."""


class DamagedError(StorageError):
    """A file does not hold what was written to it."""


class TrackingError(TlError):
    """The MLflow store or server cannot be used."""


class UsageError(TlError):
    """The command line, the config file or an input is wrong."""

    exit_code = 2


class UnknownModelError(UsageError):
    """No architecture of that name exists; the message holds the nearest names."""


class DataError(UsageError):
    """Images, labels or folders that cannot be used as asked."""


class WeightsError(UsageError):
    """Weights that cannot be read, are not what they claim to be, or do not fit the architecture."""


class RunNotFoundError(UsageError):
    """No run, or more than one, matches the name."""


class Interrupted(BaseException):
    """A signal stopped the command.

    Not a KeyboardInterrupt, which Typer would turn into exit code 1.

    Attributes:
        signum: SIGINT, SIGTERM, SIGHUP or SIGUSR1.
    """

    def __init__(self, signum: int) -> None:
        super().__init__("Ctrl-C" if signum == signal.SIGINT else signal.Signals(signum).name)
        self.signum = signum

    @property
    def exit_code(self) -> int:
        """The shell's convention: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP, 138 for SIGUSR1."""
        return 128 + self.signum


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message without secrets, or its class if it has no message."""
    return without_secrets(next(iter(str(error).splitlines()), "")) or type(error).__name__


def without_secrets(text: str) -> str:
    """Return text with user, password and query removed from addresses, to be shown or recorded."""
    return _QUERY.sub(r"\1", _CREDENTIALS.sub(r"\1", text))


# A password may contain anything but a slash, even @; punctuation that ends a sentence or quotation is kept.
_CREDENTIALS = re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^\s/]*@", re.IGNORECASE)
_QUERY = re.compile(r"(\b[a-z][a-z0-9+.-]*://[^\s?#]*)(?:\?|#(?!/))\S*?(?=[\])}>'\",;:.!]*(?:\s|$))", re.IGNORECASE)


def some(names: Sequence[str], show: int = 5) -> str:
    """Return the first few names, and how many more there are."""
    more = f" and {len(names) - show} more" if len(names) > show else ""
    return ", ".join(names[:show]) + more


def shortened(name: str, most: int = 120) -> str:
    """Return a name for a message, cut if it is too long."""
    return name if len(name) <= most else f"{name[:most]}..."


def suggest(name: str, known: Iterable[str], *, show: int = 5) -> str:
    """Return " Did you mean ...?" with the nearest of ``known``, or the first few if none is similar."""
    known = list(dict.fromkeys(known))
    near = get_close_matches(name.lower(), known, n=show, cutoff=0.6)
    if near:
        return f" Did you mean {_either(near)}?"
    end = ", ..." if len(known) > show else "."
    return f" Known: {', '.join(known[:show])}{end}" if known else ""


def _either(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def uri_flag(tracking_uri: str | None) -> str:
    """Return the flag, after a space, with which a suggested command finds the same store; empty for the default."""
    return f" --tracking-uri {shlex.quote(without_secrets(tracking_uri))}" if tracking_uri else ""

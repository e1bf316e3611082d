"""Recognizes the errors of libraries that have run out of memory or threads, and suggests options that help."""

import errno
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Literal

from tl_cli.errors import TlError

Resource = Literal["memory", "GPU memory", "threads"]

_SIGNS: dict[Resource, str] = {
    "threads": r"can't start new thread|resource temporarily unavailable|thread creation failed",
    "GPU memory": r"\b(cuda|hip|mps|xpu)\b.*out of memory|(cublas|cudnn)_status_alloc_failed",
    # torch, NumPy, mmap, oneDNN (whose "primitive descriptor" is about an unsupported operation) and C++.
    "memory": r"out of memory|not enough memory|(can't|cannot|could not|failed to|unable to) (allocate|mmap)\b"
    r"|could not (create|execute) a primitive(?! descriptor)|could not (create|initialize) a memory|bad_?alloc"
    r"|failed to map segment from shared object(?!: operation not permitted)",
}
# What may help, by option, in the order of the advice.
_HELP: dict[Resource, dict[str, str]] = {
    "threads": {"--workers": "--workers 0", "--threads": "--threads 1"},
    "GPU memory": {
        "--batch-size": "a smaller --batch-size (with --accumulate the step stays as large)",
        "--input-size": "a smaller --input-size",
        "--precision": "--precision bf16",
        "--no-feature-cache": "--no-feature-cache",
        "--device": "--device cpu",
    },
    "memory": {
        "--batch-size": "a smaller --batch-size (with --accumulate the step stays as large)",
        "--input-size": "a smaller --input-size",
        "--no-feature-cache": "--no-feature-cache",
        "--limit": "fewer images with --limit",
        "--workers": "fewer --workers",
    },
}


class ShortageError(TlError):
    """Memory, GPU memory or threads have run out.

    Attributes:
        resource: what ran out.
        options: those that help; None: all options of the command.
    """

    def __init__(self, resource: Resource, where: str = "", options: Collection[str] | None = None) -> None:
        super().__init__(f"out of {resource}{where and ' '}{where}")
        self.resource = resource
        self.options = options

    def advice(self, command: Collection[str]) -> str:
        """Return what to try, limited to the options of a command."""
        fitting = command if self.options is None else self.options
        tries = [text for option, text in _HELP[self.resource].items() if option in fitting and option in command]
        if self.resource == "threads":
            tries.append("a higher limit on processes (ulimit -u) and memory (ulimit -v)")
        elif self.resource == "memory":
            tries.append(f"a higher limit than the {_limit()} of ulimit -v" if _limit() else "closing other programs")
        else:
            tries.append("closing what else uses the GPU")
        return f"try {', '.join(tries[:-1])}{' or ' * (len(tries) > 1)}{tries[-1]}"


def find_shortage(error: BaseException) -> ShortageError | None:
    """Return the shortage that is an error or one of its causes; None for other errors."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ShortageError):
            return cause
        resource = _resource(cause)
        if resource is not None:
            is_loading = isinstance(cause, ImportError)
            return ShortageError(resource, "while loading libraries", ()) if is_loading else ShortageError(resource)
        cause = cause.__cause__
    return None


def pass_on(error: Exception) -> None:
    """Raise an error again if it is about a shortage, so that it is not reported as a damaged file."""
    if find_shortage(error) is not None:
        raise error


@contextmanager
def during(where: str, *options: str) -> Iterator[None]:
    """Add to an error about a shortage where it happened.

    Args:
        where: such as ``while training``.
        options: those that reduce what the block needs.

    Raises:
        ShortageError: memory or threads have run out.
    """
    try:
        yield
    except Exception as error:
        shortage = find_shortage(error)
        if shortage is None or isinstance(error, ShortageError):
            raise
        raise ShortageError(shortage.resource, where, options) from error


def _resource(error: BaseException) -> Resource | None:
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return "memory"
    if isinstance(error, TlError) or not isinstance(error, Exception):
        return None
    # Without the file's name, which might match.
    message = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return next((name for name, signs in _SIGNS.items() if re.search(signs, message, re.IGNORECASE)), None)


def _limit() -> str:
    """Return the limit on this process's memory, or "" if there is none."""
    try:
        import resource
    except ImportError:  # Windows
        return ""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return "" if limit == resource.RLIM_INFINITY else f"{limit / 1e9:.1f} GB"

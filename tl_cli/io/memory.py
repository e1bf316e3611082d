"""How much memory this process may use."""

from contextlib import suppress
from pathlib import Path

import psutil

# https://docs.kernel.org/admin-guide/cgroup-v2.html and version 1; "max" is no number and no limit.
_LIMITS = ("memory.max", "memory/memory.limit_in_bytes")


def memory_bytes(cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the memory that this process may use: the machine's, or less in a container with a limit.

    Args:
        cgroups: where Linux lists the limits of this container.
    """
    limits = [psutil.virtual_memory().total]
    for name in _LIMITS:
        with suppress(OSError, ValueError):
            limits.append(int((cgroups / name).read_text(encoding="ascii")))
    return min(limits)

"""Pictures without labels, as people name them on a command line: files, folders, patterns, a list on stdin."""

import glob
import os
from collections.abc import Iterable, Iterator, Sequence

from tl_cli.data.folder import is_picture

STDIN = "-"


def wanted_pictures(names: Sequence[str], lines: Iterable[str]) -> Iterator[str]:
    """Yield the paths that are meant, one by one: nothing is held that was yielded.

    A folder stands for every picture below it, in order; a pattern for what it matches, ``**`` for folders between;
    ``-`` for the lines. What is named itself is taken as it is, whatever its ending and whether it is there or not.
    """
    for name in names:
        if name == STDIN:
            yield from (line for line in (each.rstrip("\r\n") for each in lines) if line)
        elif _is_folder(name):
            yield from _below(name)
        elif glob.has_magic(name) and not os.path.lexists(name):
            for match in sorted(glob.glob(name, recursive=True)):  # noqa: PTH207 (Path.glob takes no absolute pattern)
                if not _is_folder(match):
                    yield match
                elif "**" not in name:
                    yield from _below(match)
        else:
            yield name


def _is_folder(name: str) -> bool:
    # Unlike Path it takes any name: one that is too long for the system, or in a folder that may not be entered.
    return os.path.isdir(name)  # noqa: PTH112


def _below(folder: str) -> Iterator[str]:
    for here, inner, files in os.walk(folder):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        yield from (os.path.join(here, name) for name in sorted(files) if is_picture(name))

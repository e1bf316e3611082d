"""Pictures without labels, as people name them on a command line: files, folders, patterns, a list on stdin."""

import glob
import os
from collections.abc import Iterable, Iterator, Sequence

from tl_cli.data.sources.folder import is_image_file
from tl_cli.io.file_uris import local_path

STDIN = "-"


def wanted_pictures(names: Sequence[str], lines: Iterable[str]) -> Iterator[str]:
    """Yield the paths that are meant, one by one: of folders and lists nothing is held that was yielded.

    A folder stands for every picture below it, in order; a pattern for what it matches, ``**`` for folders between;
    ``-`` for the lines. What is named itself is taken as it is, whatever its ending and whether it is there or not; so
    is a folder or a pattern that stands for nothing, so that it is told.
    """
    for name in names:
        if name == STDIN:
            yield from (
                line for line in (local_path(each.rstrip("\r\n").removeprefix("\ufeff")) for each in lines) if line
            )
            continue
        if _is_folder(name):
            meant = _below(name)
        elif glob.has_magic(name) and not os.path.lexists(name):
            meant = _matching(name)
        else:
            meant = iter((name,))
        first = next(meant, name)
        yield first
        yield from meant


def is_there(name: str) -> bool:
    """Whether a name is the list on stdin, is that of a file or folder, or has a pattern's characters."""
    return name == STDIN or os.path.lexists(name) or glob.has_magic(name)


def _matching(pattern: str) -> Iterator[str]:
    """Yield what a pattern matches: of folders the pictures below them, of files those that it names."""
    is_any = os.path.basename(pattern) in ("*", "**")  # noqa: PTH119 (a pattern is no path)
    seen: set[str] = set()
    for match in sorted(glob.glob(pattern, recursive=True)):  # noqa: PTH207 (Path.glob takes no absolute pattern)
        found = _below(match) if _is_folder(match) else iter((match,) if not is_any or is_image_file(match) else ())
        for path in found:
            # A folder's pictures may be matched by themselves too.
            if os.path.normpath(path) not in seen:
                seen.add(os.path.normpath(path))
                yield path


def _is_folder(name: str) -> bool:
    # Unlike Path it takes any name: one that is too long for the system, or in a folder that may not be entered.
    return os.path.isdir(name)  # noqa: PTH112


def _below(folder: str) -> Iterator[str]:
    visited: set[tuple[int, int]] = set()
    for here, inner, files in os.walk(folder, followlinks=True):
        place = os.stat(here)
        if (place.st_dev, place.st_ino) in visited:
            # A link back to where this came from.
            inner.clear()
            continue
        visited.add((place.st_dev, place.st_ino))
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        yield from (os.path.join(here, name) for name in sorted(files) if is_image_file(name))

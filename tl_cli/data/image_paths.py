"""Pictures without labels, as given on a command line: files, folders, patterns, a list on stdin."""

import glob
import os
from collections.abc import Iterable, Iterator, Sequence

from tl_cli.data.sources.folder import is_image_file
from tl_cli.io.file_uris import local_path

STDIN = "-"


def list_pictures(names: Sequence[str], lines: Iterable[str]) -> Iterator[str]:
    """Yield the paths of the pictures one by one, so that folders and lists may be of any length.

    A folder is replaced by every picture below it, in order; a pattern by what it matches (``**``: any folders); ``-``
    by the lines. A file is yielded whatever its suffix, even if it does not exist; so is a folder or a pattern without
    pictures, for the error message.
    """
    for name in names:
        if name == STDIN:
            yield from filter(None, (local_path(line.rstrip("\r\n").removeprefix("\ufeff")) for line in lines))
            continue
        paths: Iterator[str] = iter(())
        if _is_folder(name):
            paths = _below(name)
        elif glob.has_magic(name) and not os.path.lexists(name):
            paths = _matching(name)
        yield next(paths, name)
        yield from paths


def is_there(name: str) -> bool:
    """Return whether a name is the list on stdin, an existing file or folder, or a pattern."""
    return name == STDIN or os.path.lexists(name) or glob.has_magic(name)


def _matching(pattern: str) -> Iterator[str]:
    """Yield the files that a pattern matches, and the pictures below folders that it matches."""
    is_any = os.path.basename(pattern) in ("*", "**")  # noqa: PTH119 (a pattern is no path)
    seen: set[str] = set()
    for match in sorted(glob.glob(pattern, recursive=True)):  # noqa: PTH207 (Path.glob takes no absolute pattern)
        found = _below(match) if _is_folder(match) else iter((match,) if not is_any or is_image_file(match) else ())
        for path in found:
            # A picture of a matched folder may be matched itself too.
            if os.path.normpath(path) not in seen:
                seen.add(os.path.normpath(path))
                yield path


def _is_folder(name: str) -> bool:
    # Unlike Path it accepts any name: one that is too long for the system, or in a folder without permission.
    return os.path.isdir(name)  # noqa: PTH112


def _below(folder: str) -> Iterator[str]:
    visited: set[tuple[int, int]] = set()
    for here, inner, files in os.walk(folder, followlinks=True):
        status = os.stat(here)
        identity = status.st_dev, status.st_ino
        if identity in visited:
            # A link back to a folder above.
            inner.clear()
            continue
        visited.add(identity)
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        yield from (os.path.join(here, name) for name in sorted(files) if is_image_file(name))

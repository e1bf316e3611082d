"""Zip and tar archives as sources: each is unpacked once into a folder, which its readers mark as used."""

import hashlib
import os
import shlex
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath

from tl_cli.contract import USUAL_COLUMNS, Columns
from tl_cli.data.cache_entries import remove_unread
from tl_cli.data.sources import csv, folder
from tl_cli.data.sources.found import Found
from tl_cli.data.sources.unpack import Limits, unpack
from tl_cli.errors import DataError, shortened, some
from tl_cli.io.atomic import make_folder_once, storing
from tl_cli.io.download import Progress, silent
from tl_cli.io.use_lock import mark_used

# Notes, one per line. Hidden, so it is neither unpacked from an archive nor read as an image.
_NOTES = ".left-out"
# Descriptors of the copies that this process reads, by the beginning of their names; closed as the process ends.
_in_use: dict[str, int] = {}


def scan(
    path: Path,
    cache: Path,
    progress: Progress = silent,
    *,
    columns: Columns = USUAL_COLUMNS,
    hints: Columns = USUAL_COLUMNS,
    partial: bool = False,
    lenient: bool = False,
    max_pixels: int | None = None,
) -> Found:
    """Return the classes and images of an archive of folders, or of one with a CSV listing at its top.

    Args:
        cache: where it is unpacked, once for each path, size and time of change.
        columns: as for ``csv.scan``, as is ``hints``.
        partial: as for ``folder.scan``, as is ``lenient``.
        max_pixels: limit of an image, which also limits its file; None is the usual limit.

    Raises:
        DataError: it is damaged, encrypted, unsafe, too large for the disk, or contains no usable images.
        StorageError: the disk is full or may not be written.
    """
    path = path.expanduser().resolve()
    unpacked = _unpack_once(path, cache, progress, max_pixels)
    top = _descend(unpacked)
    listings = csv.listings_in(top, columns, hints)
    try:
        if len(listings) == 1:
            found = csv.scan(listings[0], columns=columns, hints=hints, confined=True, partial=partial, lenient=lenient)
        elif columns != USUAL_COLUMNS:
            raise DataError(f"{len(listings)} CSVs at the top have the columns that are named; there must be one")
        else:
            found = folder.scan(top, partial=partial, lenient=lenient)
    except DataError as error:
        _unmark(unpacked)
        remove_unread(unpacked)
        raise DataError(f"in {path}, unpacked: {error}") from error
    kept = unpacked / _NOTES
    notes = kept.read_text("utf-8").splitlines() if kept.exists() else []
    return replace(found, notes=(*found.notes, *notes))


def _unpack_once(path: Path, cache: Path, progress: Progress, max_pixels: int | None) -> Path:
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    name, version = path.name.partition(".")[0][:64], _digest(f"{status.st_size} {status.st_mtime_ns}")
    target = cache / "unpacked" / f"{name}-{_digest(str(path))}-{version}"

    def fill(temporary: Path) -> Path:
        content = temporary / "content"
        content.mkdir()
        limits = Limits.of_disk(content, max_pixels)
        unpacked = unpack(path, content, select=_is_useful, keep_name=_is_visible, limits=limits, progress=progress)
        if not unpacked.files and unpacked.archives:
            inner = some([shortened(name) for name in unpacked.archives])
            raise DataError(
                f"{path} holds no images, but archives ({inner}); unpack it and give one of them: "
                f"--data {shlex.quote(PurePosixPath(unpacked.archives[0]).name)}"
            )
        if not unpacked.files:
            raise DataError(f"{path} holds no images; {folder.EXPECTED}")
        if notes := unpacked.notes():
            with storing(target):
                (content / _NOTES).write_text("\n".join(notes), "utf-8")
        return content

    make_folder_once(target, fill)
    while not _mark(target):
        make_folder_once(target, fill)
    _remove_others(target)
    return target


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _stem(copy: Path) -> str:
    """Return the common beginning of the names of all copies of an archive."""
    return str(copy).rpartition("-")[0]


def _mark(copy: Path) -> bool:
    """Keep other processes from removing a copy while this one runs; return whether the copy still exists."""
    try:
        descriptor = os.open(copy, os.O_RDONLY)
    except OSError:
        return copy.exists()  # Windows opens no folders
    mark_used(descriptor)
    # Removed while this waited for the lock, it may exist again as another folder.
    is_same = copy.exists() and os.path.samestat(os.fstat(descriptor), copy.stat())
    _unmark(copy)
    _in_use[_stem(copy)] = descriptor
    return is_same


def _unmark(copy: Path) -> None:
    descriptor = _in_use.pop(_stem(copy), None)
    if descriptor is not None:
        os.close(descriptor)


def _remove_others(copy: Path) -> None:
    """Remove the copies of earlier versions of an archive, except those that a process reads."""
    with suppress(OSError):
        for other in list(copy.parent.iterdir()):
            if _stem(other) == _stem(copy) and other != copy:
                remove_unread(other)
            elif other.suffix == ".old" and _stem(other) == _stem(copy.with_name(f".{copy.name}")):
                shutil.rmtree(other, ignore_errors=True)


def _is_visible(name: str) -> bool:
    return not any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)


def _is_useful(name: str) -> bool:
    path = PurePosixPath(name)
    return _is_visible(name) and (folder.is_image_file(path.name) or path.suffix.lower() in csv.SUFFIXES)


def _descend(top: Path) -> Path:
    """Return the first folder that contains more than one folder: people pack a folder rather than its contents."""
    while len(inside := _content(top)) == 1 and inside[0].is_dir():
        if all(folder.is_image_file(entry.name) for entry in _content(inside[0])):
            break
        top = inside[0]
    return top


def _content(top: Path) -> list[Path]:
    """Return the folders, images and CSVs in a folder; the other files are empty ones."""
    return [entry for entry in top.iterdir() if entry.is_dir() or _is_useful(entry.name)]

"""Whether the files of a data set are pictures to their last byte, and what else is odd about them."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from tl_cli.contract import SplitName
from tl_cli.data.found import Found
from tl_cli.data.images import FileImages, fingerprint
from tl_cli.data.pictures import decode_pixels
from tl_cli.errors import DataError, StorageError
from tl_cli.fetch import Progress, cache_root, silent, write_text

# With which a file is looked at: a large JPEG is then decoded to its last byte at an eighth of the work.
_LOOK_SIDE = 32
_NAMED = 20
# More files are remembered, so that the next run need not look again.
_WORTH_REMEMBERING = 500
_CHUNK = 64

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Bad:
    """A file that cannot be decoded to its end: its name in the data set, and why."""

    name: str
    reason: str


def unreadable(images: FileImages, *, workers: int, progress: Progress = silent) -> list[Bad]:
    """Return the files that do not decode to their last byte. What was looked at once is looked at when it changes.

    Raises:
        DataError: a file is no longer there.
    """
    key = hashlib.sha256(fingerprint(images).encode()).hexdigest()
    path = cache_root() / "looked-at" / f"{key}.json"
    if len(images) >= _WORTH_REMEMBERING:
        with suppress(OSError, ValueError, TypeError):
            return [Bad(*row) for row in json.loads(path.read_text())]

    def look(index: int) -> Bad | None:
        try:
            decode_pixels(os.path.join(images.root, images.ids[index]), short_side=_LOOK_SIDE)
        except DataError as error:
            return Bad(images.ids[index], _reason(error, images, index))
        return None

    found = [bad for bad in each(len(images), look, workers, progress, "checking images") if bad is not None]
    if len(images) >= _WORTH_REMEMBERING:
        with suppress(StorageError):
            write_text(path, json.dumps([[bad.name, bad.reason] for bad in found]))
    return found


def each(
    count: int, work: Callable[[int], T], workers: int, progress: Progress = silent, doing: str = ""
) -> Iterator[T]:
    """Yield what ``work`` gives for each of so many images, in order, computed on threads."""

    def chunk(start: int) -> list[T]:
        return [work(index) for index in range(start, min(count, start + _CHUNK))]

    pool = ThreadPoolExecutor(max(1, workers))
    try:
        done = 0
        for results in pool.map(chunk, range(0, count, _CHUNK)):
            done += len(results)
            progress(doing, done, count)
            yield from results
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def check_all(parts: Mapping[SplitName, FileImages], *, workers: int, progress: Progress = silent) -> None:
    """Refuse images of which some cannot be decoded, and name them.

    Raises:
        DataError: some cannot be; the message names them.
    """
    bad = [
        (part, each)
        for part, images in parts.items()
        for each in unreadable(images, workers=workers, progress=progress)
    ]
    if not bad:
        return
    total = sum(len(images) for images in parts.values())
    lines = [f"  {found.name}: {found.reason}" for _, found in bad[:_NAMED]]
    if len(bad) > _NAMED:
        lines.append(f"  and {len(bad) - _NAMED:,} more; tl data check lists them all")
    raise DataError(
        f"{len(bad):,} of {total:,} images cannot be decoded:\n" + "\n".join(lines) + "\n"
        "mend or remove them, or leave them out with --on-bad-image skip"
    )


def without_unreadable(found: Found, *, workers: int, progress: Progress = silent) -> Found:
    """Return the images that decode to their end, and a note of those that are left out.

    Raises:
        DataError: nothing is left of a class of the training images.
    """
    parts, notes = dict(found.parts), list(found.notes)
    for part, images in found.parts.items():
        if not isinstance(images, FileImages):
            continue
        bad = {each.name for each in unreadable(images, workers=workers, progress=progress)}
        if not bad:
            continue
        kept = np.array([index for index, name in enumerate(images.ids) if name not in bad], dtype=np.int64)
        parts[part] = images.subset(kept)
        named = ", ".join(sorted(bad)[:5]) + (" ..." if len(bad) > 5 else "")
        notes.append(f"{len(bad):,} of {len(images):,} {part} images cannot be decoded and are left out: {named}")
        gone = sorted(set(images.labels.tolist()) - set(parts[part].labels.tolist()))
        if part == "train" and gone:
            names = ", ".join(found.classes[label] for label in gone)
            raise DataError(f"no image of {names} can be decoded; {named}")
    return Found(found.classes, parts, tuple(notes))


def _reason(error: DataError, images: FileImages, index: int) -> str:
    """Return why a file cannot be decoded, without its name."""
    path = os.path.join(images.root, images.ids[index])
    return str(error).replace(path, "").strip() or "cannot be decoded"


def count_by_class(labels: np.ndarray, classes: Sequence[str]) -> list[int]:
    """Return how many images each class has."""
    return [int(count) for count in np.bincount(labels, minlength=len(classes))]

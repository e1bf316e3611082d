"""Whether the files of a data set are pictures to their last byte, and what else is odd about them."""

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np
from pydantic import NonNegativeInt, TypeAdapter

from tl_cli.contract import PixelRange, SplitName
from tl_cli.data.decode import decode_pixels, header, open_regular
from tl_cli.data.duplicates import SIDE, Sketch, alike_groups, sketch
from tl_cli.data.images import FileImages, Images, fingerprint, with_contents
from tl_cli.data.sources.found import Found
from tl_cli.errors import DataError, StorageError
from tl_cli.io.atomic import write_text
from tl_cli.io.download import Progress, cache_root, silent

# With which a file is looked at: a large JPEG is then decoded to its last byte at an eighth of the work.
_LOOK_SIDE = SIDE
_NAMED = 20
# More files are remembered, so that the next run need not look again.
_WORTH_REMEMBERING = 500
_CHUNK = 64
# Less between the smallest and the largest value shows next to nothing. So do fewer different values, unless they reach
# as far as those of a drawing in black and white.
_NARROW, _FEW_LEVELS, _WIDE = 16, 8, 128
_FEW_BY_NATURE = ("1", "P", "PA")

# Errors that a file has for as long as it is unchanged; others may pass.
_LASTING = (None, errno.EINVAL, errno.EFBIG)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Bad:
    """A file that cannot be decoded to its end: its name in the data set, and why."""

    name: str
    reason: str


_REMEMBERED: TypeAdapter[list[tuple[NonNegativeInt, str]]] = TypeAdapter(list[tuple[NonNegativeInt, str]])


def unreadable(images: FileImages, *, workers: int, progress: Progress = silent) -> list[Bad]:
    """Return the files that do not decode to their last byte. What was looked at once is looked at when it changes."""
    path = remembered_in(images, workers=workers, progress=progress)
    if path is not None:
        with suppress(OSError, ValueError, IndexError):  # pydantic's errors are ValueErrors
            return [Bad(images.ids[index], reason) for index, reason in _REMEMBERED.validate_json(path.read_bytes())]
    passing = False

    def look(index: int) -> tuple[int, str] | None:
        nonlocal passing
        try:
            _look_pixels(images, index)
        except DataError as error:
            # A network, permissions: it may be another day's no more.
            passing |= getattr(error.__cause__, "errno", None) not in _LASTING
            return index, _reason(error, images, index)
        return None

    found = [bad for bad in each(len(images), look, workers, progress, "checking images") if bad is not None]
    if path is not None and not passing:
        with suppress(StorageError):
            # By their places: the same files may have other names the next time.
            write_text(path, json.dumps(found))
    return [Bad(images.ids[index], reason) for index, reason in found]


def remembered_in(images: FileImages, what: str = "", *, workers: int, progress: Progress = silent) -> Path | None:
    """Return where it is kept what was found in these very files; None where they are few, or one is not there."""
    if len(images) < _WORTH_REMEMBERING:
        return None
    try:
        read = with_contents({"": images}, workers=workers, progress=progress)[""]
        key = hashlib.sha256(f"{fingerprint(read)}{what}".encode()).hexdigest()
    except DataError:
        return None
    return cache_root() / "looked-at" / f"{key}.json"


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


def check_all(
    parts: Mapping[SplitName, FileImages], *, workers: int, progress: Progress = silent, may_skip: bool = True
) -> None:
    """Refuse images of which some cannot be decoded, and name them.

    Args:
        may_skip: the command has the option ``--on-bad-image``.

    Raises:
        DataError: some cannot be; the message names them.
    """
    bad = [found for images in parts.values() for found in unreadable(images, workers=workers, progress=progress)]
    if not bad:
        return
    total = sum(len(images) for images in parts.values())
    lines = [f"  {found.name}: {found.reason}" for found in bad[:_NAMED]]
    if len(bad) > _NAMED:
        lines.append(f"  and {len(bad) - _NAMED:,} more; tl data check lists them all")
    raise DataError(
        f"{len(bad):,} of {total:,} images cannot be decoded:\n"
        + "\n".join(lines)
        + "\n"
        + ("fix or remove them, or leave them out with --on-bad-image skip" if may_skip else "fix or remove them")
    )


def without_unreadable(found: Found, *, workers: int, progress: Progress = silent, strict: bool = True) -> Found:
    """Return the images that decode to their end, and a note of those that are left out.

    Args:
        strict: every class of the training images must keep an image.

    Raises:
        DataError: nothing is left of a class of the training images.
    """
    parts, notes = dict(found.parts), list(found.notes)
    with suppress(DataError):  # one is not there, and is left out below
        parts = with_contents(parts, workers=workers, progress=progress)
    for part, images in list(parts.items()):
        if not isinstance(images, FileImages):
            continue
        bad = {each.name: each.reason for each in unreadable(images, workers=workers, progress=progress)}
        if not bad:
            continue
        kept = np.array([index for index, name in enumerate(images.ids) if name not in bad], dtype=np.int64)
        parts[part] = images.subset(kept)
        named = ", ".join(sorted(bad)[:5]) + (" ..." if len(bad) > 5 else "")
        if not len(kept):
            raise DataError(f"no {part} image can be decoded: {named} ({bad[min(bad)]})")
        notes.append(f"{len(bad):,} of {len(images):,} {part} images cannot be decoded and are left out: {named}")
        gone = sorted(set(images.labels.tolist()) - set(parts[part].labels.tolist()))
        if part == "train" and gone and strict:
            names = ", ".join(found.classes[label] for label in gone)
            raise DataError(f"no image of {names} can be decoded; {named}")
    return Found(found.classes, parts, tuple(notes), found.faults)


@dataclass(frozen=True, slots=True)
class Look:
    """What a file is.

    Attributes:
        digest: SHA-256 of its pixels and their shape; of its bytes where it was not decoded at its full size or depth.
        kind: ``JPEG``; of pixels without a file ``pixels``.
        mode: Pillow's: ``RGB``, ``L``, ``P``, ``CMYK``.
        size: width and height in pixels, as it is stored.
        turned: its EXIF data say that it is to be turned.
        frames: more than one: an animation, of which the first is used; 0: those after the first are torn.
        is_deep: it has more than 8 bits per channel.
        levels: how many different values its pixels have, of 256.
        darkest: the smallest of them.
        brightest: the largest of them.
        sketch: by which pictures that look alike are found; None where it is too small or too plain for that.
        bad: why it cannot be decoded; empty where it can be. The rest is then unknown.
    """

    digest: bytes
    kind: str = ""
    mode: str = ""
    size: tuple[int, int] = (0, 0)
    turned: bool = False
    frames: int = 1
    is_deep: bool = False
    levels: int = 0
    darkest: int = 0
    brightest: int = 0
    sketch: Sketch | None = None
    bad: str = ""

    @property
    def span(self) -> int:
        """From the smallest value to the largest."""
        return self.brightest - self.darkest


Place: TypeAlias = tuple[SplitName, int]


@dataclass(frozen=True, slots=True)
class Twins:
    """Images that are equal or look alike.

    Attributes:
        places: part and index of each in the data.
        exact: they have equal bytes or pixels; else they look alike, which may mislead.
    """

    places: tuple[Place, ...]
    exact: bool


@dataclass(frozen=True, slots=True)
class Findings:
    """What was found in a data set.

    Attributes:
        looks: of each image, by part.
        twins: groups of equal pictures and of pictures that look alike.
        not_compared: pictures whose looks resemble too many others to be compared with all of them.
    """

    found: Found
    looks: Mapping[SplitName, list[Look]]
    twins: list[Twins]
    not_compared: int = 0

    def bad(self) -> list[tuple[SplitName, Bad]]:
        """Return the files that cannot be decoded."""
        return [
            (part, Bad(self.found.parts[part].ids[index], look.bad))
            for part, looks in self.looks.items()
            for index, look in enumerate(looks)
            if look.bad
        ]

    def flat(self) -> list[tuple[tuple[SplitName, int], Look]]:
        """Return the pictures with next to nothing to see in them: few grey levels, or all of them close together.

        Black and white pictures and those with a palette have few levels by their nature. Deep pictures have not: they
        are left few, which may be far apart, by a range that does not suit them.
        """
        return [
            ((part, index), look)
            for part, looks in self.looks.items()
            for index, look in enumerate(looks)
            if not look.bad
            and (
                look.span < _NARROW
                or (
                    look.levels < _FEW_LEVELS
                    and look.mode not in _FEW_BY_NATURE
                    and (look.is_deep or look.span < _WIDE)
                )
            )
        ]

    def name(self, place: Place) -> str:
        """Return the name of an image."""
        part, index = place
        return str(self.found.parts[part].ids[index])

    def label(self, place: Place) -> str:
        """Return the class of an image."""
        part, index = place
        return str(self.found.classes[self.found.parts[part].labels[index]])

    def across(self) -> list[Twins]:
        """Return the groups that lie in several parts."""
        return [group for group in self.twins if len({part for part, _ in group.places}) > 1]

    def conflicting(self) -> list[Twins]:
        """Return the groups whose images have different labels."""
        return [group for group in self.twins if len({self.label(place) for place in group.places}) > 1]

    def shared(self, *, exact: bool) -> dict[tuple[SplitName, SplitName], int]:
        """Return how many images of a part are in an earlier part too, or look like one there, by (part, earlier)."""
        order = list(self.looks)
        seen: dict[tuple[SplitName, SplitName], set[Place]] = {}
        for group in self.across():
            if group.exact != exact:
                continue
            parts = {part for part, _ in group.places}
            for place in group.places:
                for earlier in parts.intersection(order[: order.index(place[0])]):
                    seen.setdefault((place[0], earlier), set()).add(place)
        return {pair: len(places) for pair, places in seen.items()}

    def plain(self) -> int:
        """Return how many images are too small or too plain to be compared by their looks."""
        return sum(not look.bad and look.sketch is None for looks in self.looks.values() for look in looks)


def examine(found: Found, *, workers: int, progress: Progress = silent) -> Findings:
    """Look at every image of a data set: what it is, whether it decodes, which are equal and which look alike."""
    looks: dict[SplitName, list[Look]] = {}
    for part, images in found.parts.items():
        looks[part] = list(each(len(images), _looker(images), workers, progress, f"looking at {part}"))
    twins, not_compared = _twins(found, looks, progress)
    return Findings(found, looks, twins, not_compared)


def _looker(images: Images) -> Callable[[int], Look]:
    if isinstance(images, FileImages):
        return lambda index: _look_at_file(
            os.path.join(images.root, images.ids[index]), images.pixel_range, images.max_pixels
        )
    return lambda index: _look_at_pixels(_pixels(images, index))


def _look_at_file(path: str, pixel_range: PixelRange | None = None, max_pixels: int | None = None) -> Look:
    try:
        with open_regular(path, max_pixels) as file:
            digest = hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        return Look(b"", bad=f"cannot be read: {error.strerror}")
    try:
        pixels = decode_pixels(path, short_side=_LOOK_SIDE, pixel_range=pixel_range, max_pixels=max_pixels)
        kind, mode, size, turned, frames, is_deep = header(path, max_pixels)
    except DataError as error:
        return Look(digest, bad=str(error).removeprefix(path).strip())
    if not is_deep and sorted(size) == sorted(pixels.shape[:2]):
        digest = _digest(pixels)
    return Look(digest, kind, mode, size, turned, frames, is_deep, *_levels(pixels), sketch(pixels))


def _look_at_pixels(pixels: np.ndarray) -> Look:
    size = (pixels.shape[1], pixels.shape[0])
    return Look(_digest(pixels), "pixels", "RGB", size, False, 1, False, *_levels(pixels), sketch(pixels))


def _levels(pixels: np.ndarray) -> tuple[int, int, int]:
    """Return how many different values pixels have, the smallest and the largest."""
    present = np.flatnonzero(np.bincount(pixels.ravel(), minlength=256))
    return len(present), int(present[0]), int(present[-1])


def _digest(pixels: np.ndarray) -> bytes:
    known = hashlib.sha256(repr(pixels.shape).encode())
    known.update(np.ascontiguousarray(pixels).data)
    return known.digest()


def _twins(found: Found, looks: Mapping[SplitName, list[Look]], progress: Progress) -> tuple[list[Twins], int]:
    """Return groups of equal pictures and of others that look alike, and how many were not compared with all others."""
    places: dict[bytes, list[Place]] = {}
    for part, seen in looks.items():
        for index, look in enumerate(seen):
            if not look.bad:
                places.setdefault(look.digest, []).append((part, index))
    groups = [Twins(tuple(equal), exact=True) for equal in places.values() if len(equal) > 1]
    # One of each content, for what only looks alike.
    first = [equal[0] for equal in places.values()]
    compared = [(place, kept) for place in first if (kept := looks[place[0]][place[1]].sketch) is not None]

    def load(number: int) -> np.ndarray:
        part, index = compared[number][0]
        return _pixels(found.parts[part], index)

    alike, left = alike_groups([each for _, each in compared], load, progress)
    groups += [Twins(tuple(compared[number][0] for number in sorted(group)), exact=False) for group in alike]
    return groups, left


def _pixels(images: Images, index: int) -> np.ndarray:
    """Return the pixels of an image that is compared by its looks, (H, W, 3) uint8."""
    if isinstance(images, FileImages):
        return _look_pixels(images, index)
    return images.load(index).permute(1, 2, 0).contiguous().numpy()


def _look_pixels(images: FileImages, index: int) -> np.ndarray:
    path = os.path.join(images.root, images.ids[index])
    return decode_pixels(path, short_side=_LOOK_SIDE, pixel_range=images.pixel_range, max_pixels=images.max_pixels)


def _reason(error: DataError, images: FileImages, index: int) -> str:
    """Return why a file cannot be decoded, without its name."""
    path = os.path.join(images.root, images.ids[index])
    return str(error).replace(path, "").strip() or "cannot be decoded"

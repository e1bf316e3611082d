"""Finds image files that cannot be decoded to their last byte, and what else is odd about the images of a data set."""

import errno
import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Annotated, TypeAlias

import numpy as np
from pydantic import Field, TypeAdapter

from tl_cli.contract import PixelRange, SplitName
from tl_cli.data.decode import UNKNOWN_HEADER, Header, decode_picture, open_regular, read_header
from tl_cli.data.duplicates import SIDE, Sketch, alike_groups, sketch
from tl_cli.data.images import FileImages, Images, with_contents
from tl_cli.data.sources.found import Found
from tl_cli.data.stored_results import WORTH_STORING, stored_result
from tl_cli.data.threads import Threads
from tl_cli.errors import DataError
from tl_cli.io.download import Progress

# Images are decoded for at least this side: of a large JPEG all bytes are then decoded, at an eighth of the work.
_LOOK_SIDE = SIDE
_NAMED = 20
# An image whose largest and smallest value differ by less shows next to nothing. So does one with few different
# values, unless they are as far apart as those of a black and white drawing.
_NARROW, _FEW_LEVELS, _WIDE = 16, 8, 128
_FEW_BY_NATURE = ("1", "P", "PA")

# Errors that remain as long as the file is unchanged; others (network, permissions) may pass.
_LASTING = (None, errno.EINVAL, errno.EFBIG)


@dataclass(frozen=True, slots=True)
class Bad:
    """A file that cannot be decoded completely: its name in the data set, and why."""

    name: str
    reason: str


def unreadable(images: FileImages, threads: Threads, *, worth_storing: int = WORTH_STORING) -> list[Bad]:
    """Return the files that cannot be decoded to their last byte. Files that did not change are not decoded again."""

    def failure(index: int) -> tuple[str, bool] | None:
        try:
            images.open(index, _LOOK_SIDE)
        except DataError as error:
            return _reason(error, images.path(index)), getattr(error.__cause__, "errno", None) in _LASTING
        return None

    def check() -> tuple[list[tuple[int, str]], bool]:
        failures = enumerate(threads.map(failure, range(len(images)), "checking images"))
        bad = [(index, *found) for index, found in failures if found is not None]
        return [(index, reason) for index, reason, _ in bad], all(is_lasting for *_, is_lasting in bad)

    # By index, since the names of unchanged files may differ the next time.
    kind = TypeAdapter(list[tuple[Annotated[int, Field(ge=0, lt=len(images))], str]])
    bad = stored_result(images, "", kind, check, threads, worth_storing=worth_storing)
    return [Bad(images.ids[index], reason) for index, reason in bad]


def check_all(parts: Mapping[SplitName, FileImages], threads: Threads, *, may_skip: bool = True) -> None:
    """Check that all images can be decoded.

    Args:
        may_skip: the command has the option ``--on-bad-image``.

    Raises:
        DataError: some cannot be; the message names them.
    """
    bad = [found for images in parts.values() for found in unreadable(images, threads)]
    if not bad:
        return
    lines = [f"{len(bad):,} of {sum(map(len, parts.values())):,} images cannot be decoded:"]
    lines += [f"  {found.name}: {found.reason}" for found in bad[:_NAMED]]
    if len(bad) > _NAMED:
        lines.append(f"  and {len(bad) - _NAMED:,} more; tl data check lists them all")
    lines.append(f"fix or remove them{', or leave them out with --on-bad-image skip' if may_skip else ''}")
    raise DataError("\n".join(lines))


def without_unreadable(found: Found, threads: Threads, *, strict: bool = True) -> Found:
    """Return the images that can be decoded, and a note of those that are left out.

    Args:
        strict: every class of the training images must keep an image.

    Raises:
        DataError: nothing is left of a part, or of a class of the training images.
    """
    parts, notes = dict(found.parts), list(found.notes)
    with suppress(DataError):  # a missing file is left out below
        parts = with_contents(parts, threads)
    for part, images in parts.items():
        unread = unreadable(images, threads) if isinstance(images, FileImages) else []
        if not unread:
            continue
        bad = {each.name: each.reason for each in unread}
        kept = np.array([index for index, name in enumerate(images.ids) if name not in bad], dtype=np.int64)
        parts[part] = images.subset(kept)
        named = ", ".join(sorted(bad)[:5]) + (" ..." if len(bad) > 5 else "")
        if not len(kept):
            raise DataError(f"no {part} image can be decoded: {named} ({bad[min(bad)]})")
        notes.append(f"{len(bad):,} of {len(images):,} {part} images cannot be decoded and are left out: {named}")
        gone = np.setdiff1d(images.labels, parts[part].labels)
        if part == "train" and strict and len(gone):
            raise DataError(f"no image of {', '.join(found.classes[label] for label in gone)} can be decoded; {named}")
    return replace(found, parts=parts, notes=tuple(notes))


@dataclass(frozen=True, slots=True)
class Look:
    """What was found in an image.

    Attributes:
        digest: SHA-256 of its pixels and their shape; of the file if it was not decoded at full size and depth.
        header: what its header states; ``pixels`` is the kind of an image without a file.
        levels: how many different values its pixels have, of 256.
        darkest: the smallest of them.
        brightest: the largest of them.
        sketch: for finding images that look alike; None if it is too small or too plain.
        bad: why it cannot be decoded; empty if it can be. The other fields are then unknown.
    """

    digest: bytes
    header: Header = UNKNOWN_HEADER
    levels: int = 0
    darkest: int = 0
    brightest: int = 0
    sketch: Sketch | None = None
    bad: str = ""

    def is_flat(self) -> bool:
        """Return whether there is next to nothing to see: few values, or all of them close together.

        Black and white pictures and those with a palette have few values by nature. Deep pictures do not: a pixel
        range that does not suit them leaves few values, which may be far apart.
        """
        span = self.brightest - self.darkest
        has_few = self.levels < _FEW_LEVELS and self.header.mode not in _FEW_BY_NATURE
        return not self.bad and (span < _NARROW or (has_few and (self.header.is_deep or span < _WIDE)))


# Part and index of an image.
Place: TypeAlias = tuple[SplitName, int]


@dataclass(frozen=True, slots=True)
class Twins:
    """Images that are equal or look alike.

    Attributes:
        places: part and index of each.
        exact: they have equal bytes or pixels; else they look alike, and may still be different.
    """

    places: tuple[Place, ...]
    exact: bool


@dataclass(frozen=True, slots=True)
class Findings:
    """What was found in a data set.

    Attributes:
        looks: what was found in each image, by part.
        twins: groups of equal images and of images that look alike.
        not_compared: number of images that resemble too many others to be compared with all of them.
    """

    found: Found
    looks: Mapping[SplitName, list[Look]]
    twins: list[Twins]
    not_compared: int = 0

    def _images(self) -> Iterator[tuple[Place, Look]]:
        return (((part, index), look) for part, looks in self.looks.items() for index, look in enumerate(looks))

    def bad(self) -> list[tuple[SplitName, Bad]]:
        """Return the files that cannot be decoded."""
        return [(place[0], Bad(self.name(place), look.bad)) for place, look in self._images() if look.bad]

    def flat(self) -> list[tuple[Place, Look]]:
        """Return the images with next to nothing to see in them."""
        return [(place, look) for place, look in self._images() if look.is_flat()]

    def name(self, place: Place) -> str:
        """Return the name of an image."""
        part, index = place
        return str(self.found.parts[part].ids[index])

    def label(self, place: Place) -> str:
        """Return the class of an image."""
        part, index = place
        return str(self.found.classes[self.found.parts[part].labels[index]])

    def across(self) -> list[Twins]:
        """Return the groups with images of several parts."""
        return [group for group in self.twins if len({part for part, _ in group.places}) > 1]

    def conflicting(self) -> list[Twins]:
        """Return the groups whose images have different labels."""
        return [group for group in self.twins if len({self.label(place) for place in group.places}) > 1]

    def shared(self, *, exact: bool) -> dict[tuple[SplitName, SplitName], int]:
        """Return how many images of a part are in an earlier part too, or look like one of it, by (part, earlier)."""
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
        return sum(not look.bad and look.sketch is None for _, look in self._images())


def examine(found: Found, threads: Threads) -> Findings:
    """Examine every image of a data set: format, whether it can be decoded, and which are equal or look alike."""
    looks = {
        part: list(threads.map(_examiner(images), range(len(images)), f"looking at {part}"))
        for part, images in found.parts.items()
    }
    twins, not_compared = _twins(found, looks, threads.progress)
    return Findings(found, looks, twins, not_compared)


def _examiner(images: Images) -> Callable[[int], Look]:
    if isinstance(images, FileImages):
        return lambda index: examine_file(images.path(index), images.pixel_range, images.max_pixels)

    def examine_pixels(index: int) -> Look:
        pixels = images.open(index).pixels
        height, width = pixels.shape[:2]
        return Look(_digest(pixels), Header("pixels", "RGB", (width, height)), *_levels(pixels), sketch(pixels))

    return examine_pixels


def examine_file(path: str, pixel_range: PixelRange | None = None, max_pixels: int | None = None) -> Look:
    """Return what was found in an image file, whether or not it can be decoded."""
    try:
        with open_regular(path, max_pixels) as file:
            digest = hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        return Look(b"", bad=f"cannot be read: {error.strerror}")
    try:
        pixels = decode_picture(path, short_side=_LOOK_SIDE, pixel_range=pixel_range, max_pixels=max_pixels).pixels
        header = read_header(path, max_pixels)
    except DataError as error:
        return Look(digest, bad=_reason(error, path))
    if not header.is_deep and sorted(header.size) == sorted(pixels.shape[:2]):
        digest = _digest(pixels)
    return Look(digest, header, *_levels(pixels), sketch(pixels))


def _levels(pixels: np.ndarray) -> tuple[int, int, int]:
    """Return how many different values pixels have, the smallest and the largest."""
    present = np.flatnonzero(np.bincount(pixels.ravel(), minlength=256))
    return len(present), int(present[0]), int(present[-1])


def _digest(pixels: np.ndarray) -> bytes:
    seen = hashlib.sha256(repr(pixels.shape).encode())
    seen.update(np.ascontiguousarray(pixels).data)
    return seen.digest()


def _twins(found: Found, looks: Mapping[SplitName, list[Look]], progress: Progress) -> tuple[list[Twins], int]:
    """Return groups of equal images and of images that look alike, and how many were not compared with all others."""
    equal: dict[bytes, list[Place]] = {}
    for part, seen in looks.items():
        for index, look in enumerate(seen):
            if not look.bad:
                equal.setdefault(look.digest, []).append((part, index))
    groups = [Twins(tuple(places), exact=True) for places in equal.values() if len(places) > 1]
    # Of equal images, the first is compared by its looks.
    compared = [(part, index) for (part, index), *_ in equal.values() if looks[part][index].sketch is not None]
    sketches = [each for part, index in compared if (each := looks[part][index].sketch) is not None]

    def load(number: int) -> np.ndarray:
        part, index = compared[number]
        return found.parts[part].open(index, _LOOK_SIDE).pixels

    alike, not_compared = alike_groups(sketches, load, progress)
    groups += [Twins(tuple(compared[number] for number in sorted(group)), exact=False) for group in alike]
    return groups, not_compared


def _reason(error: DataError, path: str) -> str:
    """Return why a file cannot be decoded, without its name."""
    return str(error).replace(path, "").strip() or "cannot be decoded"

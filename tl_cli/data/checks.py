"""Whether the files of a data set are pictures to their last byte, and what else is odd about them."""

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from tl_cli.contract import PixelRange, SplitName
from tl_cli.data.found import Found
from tl_cli.data.images import FileImages, Images, fingerprint
from tl_cli.data.pictures import decode_pixels, header, open_regular
from tl_cli.errors import DataError, StorageError
from tl_cli.fetch import Progress, cache_root, silent, write_text

# With which a file is looked at: a large JPEG is then decoded to its last byte at an eighth of the work.
_LOOK_SIDE = 32
_NAMED = 20
# More files are remembered, so that the next run need not look again.
_WORTH_REMEMBERING = 500
_CHUNK = 64
# Fewer different values, or between the smallest and the largest, show next to nothing.
_FEW_LEVELS, _NARROW = 8, 16
_FEW_BY_NATURE = ("1", "P", "PA")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Bad:
    """A file that cannot be decoded to its end: its name in the data set, and why."""

    name: str
    reason: str


def unreadable(images: FileImages, *, workers: int, progress: Progress = silent) -> list[Bad]:
    """Return the files that do not decode to their last byte. What was looked at once is looked at when it changes."""
    path = remembered_in(images)
    if path is not None:
        with suppress(OSError, ValueError, TypeError):
            return [Bad(images.ids[index], str(reason)) for index, reason in json.loads(path.read_text())]
    passing = False

    def look(index: int) -> tuple[int, str] | None:
        nonlocal passing
        try:
            path = os.path.join(images.root, images.ids[index])
            decode_pixels(path, short_side=_LOOK_SIDE, pixel_range=images.pixel_range)
        except DataError as error:
            # Memory, a network, permissions: it may be another day's no more.
            cause = error.__cause__
            passing |= isinstance(cause, MemoryError) or getattr(cause, "errno", None) not in (None, errno.EINVAL)
            return index, _reason(error, images, index)
        return None

    found = [bad for bad in each(len(images), look, workers, progress, "checking images") if bad is not None]
    if path is not None and not passing:
        with suppress(StorageError):
            # By their places: the same files may have other names the next time.
            write_text(path, json.dumps(found))
    return [Bad(images.ids[index], reason) for index, reason in found]


def remembered_in(images: FileImages, what: str = "") -> Path | None:
    """Return where it is kept what was found in these very files; None where they are few, or one is not there."""
    if len(images) < _WORTH_REMEMBERING:
        return None
    try:
        key = hashlib.sha256(f"{fingerprint(images)}{what}".encode()).hexdigest()
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


def check_all(parts: Mapping[SplitName, FileImages], *, workers: int, progress: Progress = silent) -> None:
    """Refuse images of which some cannot be decoded, and name them.

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
        if not len(kept):
            raise DataError(f"no {part} image can be decoded: {named}")
        notes.append(f"{len(bad):,} of {len(images):,} {part} images cannot be decoded and are left out: {named}")
        gone = sorted(set(images.labels.tolist()) - set(parts[part].labels.tolist()))
        if part == "train" and gone:
            names = ", ".join(found.classes[label] for label in gone)
            raise DataError(f"no image of {names} can be decoded; {named}")
    return Found(found.classes, parts, tuple(notes), found.faults)


@dataclass(frozen=True, slots=True)
class Look:
    """What a file is.

    Attributes:
        digest: SHA-256 of its bytes, or of its pixels where it has no file.
        kind: ``JPEG``; of pixels without a file ``pixels``.
        mode: Pillow's: ``RGB``, ``L``, ``P``, ``CMYK``.
        size: width and height in pixels, as it is stored.
        turned: its EXIF data say that it is to be turned.
        frames: more than one: an animation, of which the first is used; 0: those after the first are torn.
        likeness: 64 bits that are alike for pictures that look alike (a perceptual hash of their lowest frequencies).
        thumbnail: (256,) uint8, 16 x 16, grey.
        levels: how many different values its pixels have, of 256.
        darkest: the smallest of them.
        brightest: the largest of them.
        bad: why it cannot be decoded; empty where it can be. The rest is then unknown.
    """

    digest: bytes
    kind: str = ""
    mode: str = ""
    size: tuple[int, int] = (0, 0)
    turned: bool = False
    frames: int = 1
    likeness: int = 0
    thumbnail: bytes = b""
    levels: int = 0
    darkest: int = 0
    brightest: int = 0
    bad: str = ""


@dataclass(frozen=True, slots=True)
class Twins:
    """Images that are the same, or look it: places (part, index) in the data."""

    places: tuple[tuple[SplitName, int], ...]
    exact: bool


@dataclass(frozen=True, slots=True)
class Findings:
    """What was found in a data set.

    Attributes:
        looks: of each image, by part.
        twins: groups of the same pictures and of pictures that look the same.
        not_compared: pictures that are like too many others to be compared with all of them.
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

        Black and white pictures and those with a palette have few levels by their nature.
        """
        return [
            ((part, index), look)
            for part, looks in self.looks.items()
            for index, look in enumerate(looks)
            if not look.bad
            and (
                look.brightest - look.darkest < _NARROW
                or (look.levels < _FEW_LEVELS and look.mode not in _FEW_BY_NATURE)
            )
        ]

    def name(self, place: tuple[SplitName, int]) -> str:
        """Return the name of an image."""
        part, index = place
        return str(self.found.parts[part].ids[index])

    def label(self, place: tuple[SplitName, int]) -> str:
        """Return the class of an image."""
        part, index = place
        return str(self.found.classes[self.found.parts[part].labels[index]])

    def across(self) -> list[Twins]:
        """Return the groups that lie in several parts: what is tested there was learned here."""
        return [group for group in self.twins if len({part for part, _ in group.places}) > 1]

    def conflicting(self) -> list[Twins]:
        """Return the groups whose images have different labels."""
        return [group for group in self.twins if len({self.label(place) for place in group.places}) > 1]


def examine(found: Found, *, workers: int, progress: Progress = silent) -> Findings:
    """Look at every image of a data set: what it is, whether it decodes, and which are the same."""
    looks: dict[SplitName, list[Look]] = {}
    for part, images in found.parts.items():
        looks[part] = list(each(len(images), _looker(images), workers, progress, f"looking at {part}"))
    places = [(part, index) for part, seen in looks.items() for index, look in enumerate(seen) if not look.bad]
    twins, not_compared = _twins(places, [looks[part][index] for part, index in places])
    return Findings(found, looks, twins, not_compared)


def _looker(images: Images) -> Callable[[int], Look]:
    if isinstance(images, FileImages):
        return lambda index: _look_at_file(os.path.join(images.root, images.ids[index]), images.pixel_range)
    return lambda index: _look_at_pixels(images.load(index).permute(1, 2, 0).contiguous().numpy())


def _look_at_file(path: str, pixel_range: PixelRange | None = None) -> Look:
    try:
        with open_regular(path) as file:
            data = file.read()
    except OSError as error:
        return Look(b"", bad=f"cannot be read: {error.strerror}")
    digest = hashlib.sha256(data).digest()
    try:
        pixels = decode_pixels(data, short_side=_LOOK_SIDE, pixel_range=pixel_range)
        kind, mode, size, turned, frames = header(data)
    except DataError as error:
        return Look(digest, bad=str(error).removeprefix("the image ").strip())
    return Look(digest, kind, mode, size, turned, frames, *_likeness(pixels), *_levels(pixels))


def _look_at_pixels(pixels: np.ndarray) -> Look:
    digest = hashlib.sha256(pixels.tobytes()).digest()
    return Look(
        digest, "pixels", "RGB", (pixels.shape[1], pixels.shape[0]), False, 1, *_likeness(pixels), *_levels(pixels)
    )


def _levels(pixels: np.ndarray) -> tuple[int, int, int]:
    """Return how many different values pixels have, the smallest and the largest."""
    present = np.flatnonzero(np.bincount(pixels.ravel(), minlength=256))
    return len(present), int(present[0]), int(present[-1])


def _likeness(pixels: np.ndarray) -> tuple[int, bytes]:
    """Return a perceptual hash of (H, W, 3) uint8 pixels, and their thumbnail."""
    import imagehash
    from PIL import Image

    grey = Image.fromarray(pixels).convert("L")
    small = grey.resize((_THUMB, _THUMB), Image.Resampling.BILINEAR)
    bits = imagehash.phash(grey).hash.ravel()
    return int(np.packbits(bits).view(">u8")[0]), small.tobytes()


_THUMB = 16
_MOST_BITS = 4  # in which hashes of twins may differ
# Kinds of pictures of one hash, of each of which one stands for all: those with next to nothing in them share hashes.
_KINDS = 8
_MOST_PAIRS = 2_000_000_000  # of hashes that are held against each other: some seconds
_MOST_NEAR = 5_000_000  # of these, that are near
_LEAST_CORRELATION = 0.99


def _twins(places: Sequence[tuple[SplitName, int]], looks: Sequence[Look]) -> tuple[list[Twins], int]:
    """Return groups of the same content, and of others that look the same; and how many were not compared."""
    by_digest: dict[bytes, list[int]] = {}
    for number, look in enumerate(looks):
        by_digest.setdefault(look.digest, []).append(number)
    groups = [
        Twins(tuple(places[n] for n in numbers), exact=True) for numbers in by_digest.values() if len(numbers) > 1
    ]
    # One of each, for what only looks the same.
    by_hash: dict[int, list[int]] = {}
    for numbers in by_digest.values():
        by_hash.setdefault(looks[numbers[0]].likeness, []).append(numbers[0])
    # Those of one hash, by those that stand for them; what is like none of many kinds is not compared.
    behind: dict[int, list[int]] = {}
    not_compared = 0
    for numbers in by_hash.values():
        kinds, left = _kinds(numbers, looks)
        behind |= kinds
        not_compared += left
    kinds_of = list(behind)
    near, left = _near(np.array([looks[number].likeness for number in kinds_of], dtype=np.uint64))
    thumbnails = np.frombuffer(b"".join(looks[number].thumbnail for number in kinds_of), np.uint8)
    neighbours: dict[int, list[int]] = {}
    for one, other in near[_are_alike(thumbnails.reshape(-1, _THUMB * _THUMB), near)].tolist():
        neighbours.setdefault(kinds_of[one], []).append(kinds_of[other])
        neighbours.setdefault(kinds_of[other], []).append(kinds_of[one])
    # All of a group are like its first: a chain of likenesses would join what is not alike.
    taken: set[int] = set()
    for first in sorted(behind):
        if first in taken:
            continue
        alike = [first, *(other for other in neighbours.get(first, ()) if other not in taken)]
        taken.update(alike)
        numbers = sorted(number for kind in alike for number in (kind, *behind[kind]))
        if len(numbers) > 1:
            groups.append(Twins(tuple(places[number] for number in numbers), exact=False))
    return groups, not_compared + left


def _kinds(numbers: Sequence[int], looks: Sequence[Look]) -> tuple[dict[int, list[int]], int]:
    """Return some pictures of one hash with those that look like them, and how many are like none of these."""
    kinds: dict[int, list[int]] = {}
    left = 0
    for number in numbers:
        like = next((kind for kind in kinds if _is_alike(looks[kind], looks[number])), None)
        if like is not None:
            kinds[like].append(number)
        elif len(kinds) < _KINDS:
            kinds[number] = []
        else:
            left += 1
    return kinds, left


def _near(hashes: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the pairs (M, 2) of (N,) uint64 hashes that differ in a few bits, and how many were not compared with all.

    Of hashes that differ in four bits at most, one of five pieces is equal. Where that is true of too many, the largest
    groups of an equal piece are left out.
    """
    groups: list[np.ndarray] = []
    for piece in range(_MOST_BITS + 1):
        start, stop = 64 * piece // (_MOST_BITS + 1), 64 * (piece + 1) // (_MOST_BITS + 1)
        values = (hashes >> np.uint64(start)) & np.uint64((1 << (stop - start)) - 1)
        order = np.argsort(values, kind="stable")
        groups += [g for g in np.split(order, np.flatnonzero(np.diff(values[order])) + 1) if len(g) > 1]
    groups.sort(key=len)
    found: list[np.ndarray] = []
    compared = near = done = 0
    for group in groups:
        compared += len(group) * (len(group) - 1) // 2
        if compared > _MOST_PAIRS or near > _MOST_NEAR:
            break
        own = hashes[group]
        for place in range(len(group) - 1):
            others = np.flatnonzero(np.bitwise_count(own[place] ^ own[place + 1 :]) <= _MOST_BITS)
            if len(others):
                pairs = np.stack([np.full(len(others), group[place]), group[place + 1 + others]], axis=1)
                found.append(np.sort(pairs, axis=1))
                near += len(others)
        done += 1
    left = len(np.unique(np.concatenate(groups[done:]))) if done < len(groups) else 0
    # A pair may have several equal pieces.
    return (np.unique(np.concatenate(found), axis=0) if found else np.zeros((0, 2), np.int64)), left


def _are_alike(thumbnails: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Return (M,) bool: which of the pairs (M, 2) of thumbnails (N, 256) are next to equal, as ``_is_alike`` says."""
    if not len(pairs):
        return np.zeros(0, dtype=bool)
    values = thumbnails.astype(np.float32)
    values -= values.mean(axis=1, keepdims=True)
    squares = (values**2).sum(axis=1)
    alike = np.zeros(len(pairs), dtype=bool)
    for start in range(0, len(pairs), 1 << 16):
        one, other = pairs[start : start + (1 << 16)].T
        size = np.sqrt(squares[one] * squares[other])
        products = np.einsum("ij,ij->i", values[one], values[other])
        alike[start : start + (1 << 16)] = (size > _PLAIN) & (products >= _LEAST_CORRELATION * size)
    return alike


def _is_alike(one: Look, other: Look) -> bool:
    """Whether two pictures look the same, whatever their brightness and contrast; no plain one looks like any."""
    both = np.stack([np.frombuffer(each.thumbnail, np.uint8) for each in (one, other)])
    return bool(_are_alike(both, np.array([[0, 1]]))[0])


_PLAIN = 256.0 * 4  # a thumbnail whose grey values spread by two steps at most


def _reason(error: DataError, images: FileImages, index: int) -> str:
    """Return why a file cannot be decoded, without its name."""
    path = os.path.join(images.root, images.ids[index])
    return str(error).replace(path, "").strip() or "cannot be decoded"

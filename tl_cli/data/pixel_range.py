"""Measures which values of deep pictures (more than 8 bits per channel) become black and white."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
from pydantic import TypeAdapter

from tl_cli.contract import PixelRange, SplitName
from tl_cli.data.decode import MAY_BE_DEEP, Storage, deep_values, read_storage
from tl_cli.data.images import FileImages, Images
from tl_cli.data.sources.found import Found
from tl_cli.data.stored_results import stored_result
from tl_cli.data.threads import Threads
from tl_cli.errors import DataError

# Number of images, evenly spaced in the training part, and number of values of each.
_PICTURES, _VALUES = 256, 16_384
# A range reaches from the smallest to the largest value. If one of them is an outlier, such as a hot pixel, the range
# ends at the quantile instead: an outlier is further beyond it than this share of the distance between the quantiles.
_QUANTILES, _BEYOND = (0.001, 0.999), 0.25
# Two kinds of values whose ranges differ by a larger factor are not on one scale.
_ALIKE = 4
# A given range does not suit the values if it clips a larger share of them.
_CLIPPED = 0.05
UNKNOWN = "unlike the model's training images: 0 is read as black and 65535 as white"


@dataclass(frozen=True, slots=True)
class Measured:
    """The range of the deep pictures of a training part.

    Attributes:
        images: number of deep pictures in the part.
        pixel_range: the values that become black and white.
        pictures: how many were measured.
        outside: share of their values that lie outside, and are clipped.
        scales: ranges of different kinds of values that one range does not suit; else empty.
        misfit: why a given range does not suit the values; else empty.
    """

    images: int
    pixel_range: PixelRange
    pictures: int
    outside: float
    scales: str = ""
    misfit: str = ""

    def describe(self) -> str:
        """Return the range and how it was measured, for people."""
        low, high = self.pixel_range
        clipped = f", {self.outside:.2%} of the values lie outside" if self.outside else ""
        return (
            f"{self.images:,} training images have more than 8 bits per channel: {low:g} becomes black and {high:g} "
            f"white (measured on {self.pictures:,} of them{clipped})"
        )


def with_measured_range(
    found: Found, parts: Mapping[SplitName, Images], threads: Threads, *, given: PixelRange | None = None
) -> tuple[Found, Measured | None]:
    """Return the images with the pixel range of the training images, and what was measured if any of those are deep.

    Notes about deep pictures, and about bands that are not used, are added. Only formats that may be deep are opened.

    Args:
        parts: the images as split for the training.
        given: a range to use instead of the measured one; its fit is measured.
    """
    deep, notes = _find_deep(parts, threads)
    train, measured = parts.get("train"), None
    if isinstance(train, FileImages) and deep["train"]:
        measured = _measured(train, deep["train"], given, threads)
    if measured is not None:
        notes += [measured.describe()] if given is None else []
        notes += [measured.misfit] if measured.misfit else []
        if measured.scales:
            notes.append(f"one pixel range does not suit all images: {measured.scales}; convert them to one scale")
    elif any(deep.values()):
        listed = ", ".join(f"{len(indices):,} {part}" for part, indices in deep.items() if indices)
        notes.append(f"{listed} images have more than 8 bits per channel, and no training image has")
    return _noted(with_range(found, None if measured is None else measured.pixel_range), notes), measured


def with_model_range(found: Found, pixel_range: PixelRange | None, threads: Threads) -> Found:
    """Return the images with the pixel range of a trained model, and with notes about deep pictures."""
    deep, notes = _find_deep(found.parts, threads)
    count = sum(map(len, deep.values()))
    if count and pixel_range is None:
        notes.append(f"{count:,} images have more than 8 bits per channel, {UNKNOWN}")
    return _noted(with_range(found, pixel_range), notes)


def with_range(found: Found, pixel_range: PixelRange | None) -> Found:
    """Return the images, of which deep ones are decoded with this range."""
    parts = {
        part: replace(images, pixel_range=pixel_range) if isinstance(images, FileImages) else images
        for part, images in found.parts.items()
    }
    return replace(found, parts=parts)


def _noted(found: Found, notes: list[str]) -> Found:
    return replace(found, notes=(*found.notes, *notes))


def range_of(values: np.ndarray) -> PixelRange:
    """Return the range of finite values: from the smallest to the largest, without outliers."""
    low, high = float(values.min()), float(values.max())
    # Values that occur: between two of them a quantile could be close to an outlier.
    inner = float(np.quantile(values, _QUANTILES[0], method="higher"))
    outer = float(np.quantile(values, _QUANTILES[1], method="lower"))
    if outer > inner:
        margin = _BEYOND * (outer - inner)
        low = low if low >= inner - margin else inner
        high = high if high <= outer + margin else outer
    return (low, high) if high > low else (low, low + 1)


def _scales(samples: list[np.ndarray]) -> str:
    """Return the ranges of different kinds of values if one range does not suit all; else nothing."""
    kinds: dict[str, list[np.ndarray]] = {}
    for values in samples:
        kind = f"{8 * values.dtype.itemsize}-bit {'floating-point numbers' if values.dtype.kind == 'f' else 'integers'}"
        kinds.setdefault(kind, []).append(values.astype(np.float64))
    ranges = {kind: range_of(np.concatenate(values)) for kind, values in sorted(kinds.items())}
    widths = [high - low for low, high in ranges.values()]
    if max(widths) <= _ALIKE * min(widths):
        return ""
    return ", ".join(f"{kind} from {low:g} to {high:g}" for kind, (low, high) in ranges.items())


def _find_deep(parts: Mapping[SplitName, Images], threads: Threads) -> tuple[dict[SplitName, list[int]], list[str]]:
    """Return the indices of deep images by part, and notes of bands that are not used."""
    deep: dict[SplitName, list[int]] = {part: [] for part in parts}
    unused: Counter[str] = Counter()
    for part, images in parts.items():
        for index, storage in _storage(images, threads):
            if storage.is_deep:
                deep[part].append(index)
            if storage.unused:
                unused[storage.unused] += 1
    return deep, [f"{count:,} image{'s have' if count > 1 else ' has'} {bands}" for bands, count in unused.items()]


def _storage(images: Images, threads: Threads) -> Iterator[tuple[int, Storage]]:
    """Yield index and storage of the files whose format may be deep."""
    if not isinstance(images, FileImages):
        return
    indices = [index for index, name in enumerate(images.ids) if os.path.splitext(name)[1].lower() in MAY_BE_DEEP]

    def read(index: int) -> Storage:
        # A file that cannot be read is reported when it is decoded.
        with suppress(OSError):
            return read_storage(images.path(index), images.max_pixels)
        return Storage()

    yield from zip(indices, threads.map(read, indices, "looking at pixel depths"), strict=True)


def _measured(images: FileImages, deep: list[int], given: PixelRange | None, threads: Threads) -> Measured | None:
    """Return the range of deep pictures, stored or measured; None if none of them can be read."""

    def measure() -> tuple[Measured | None, bool]:
        chosen = np.linspace(0, len(deep) - 1, min(len(deep), _PICTURES)).astype(int).tolist()
        sampled = threads.map(
            lambda number: _sample(images, deep[chosen[number]], number),
            range(len(chosen)),
            "measuring the pixel range",
        )
        samples = [values for values in sampled if len(values)]
        if not samples:
            return (None if given is None else Measured(len(deep), given, 0, 0.0)), False
        return _compare(samples, len(deep), given), True

    what, kind = f"pixel-range{given or ''}", TypeAdapter(Measured | None)
    return stored_result(images, what, kind, measure, threads)


def _sample(images: FileImages, index: int, seed: int) -> np.ndarray:
    """Return some of the values of a picture; none if it cannot be decoded."""
    try:
        values: np.ndarray = deep_values(images.path(index), images.max_pixels).ravel()
    except DataError:
        return np.empty(0)
    values = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    if len(values) > _VALUES:
        # The smallest and the largest are included, so that no value is clipped that is not an outlier.
        chosen = np.random.Generator(np.random.Philox(seed)).choice(values, _VALUES - 2)
        values = np.append(chosen, np.array([values.min(), values.max()], dtype=values.dtype))
    return values


def _compare(samples: list[np.ndarray], images: int, given: PixelRange | None) -> Measured:
    """Return the range of these values, or how a given one suits them."""
    values = np.concatenate([values.astype(np.float64) for values in samples])
    own = range_of(values)
    low, high = own if given is None else given
    outside = float(np.mean((values < low) | (values > high)))
    misfit = ""
    if outside > _CLIPPED or own[1] - own[0] < (high - low) / _ALIKE:
        misfit = (
            f"the pixel range {low:g} to {high:g} does not suit the training images, whose values lie from {own[0]:g} "
            f"to {own[1]:g}: {outside:.0%} of them are clipped; without --pixel-range it is measured"
        )
    return Measured(images, (low, high), len(samples), outside, _scales(samples), misfit)

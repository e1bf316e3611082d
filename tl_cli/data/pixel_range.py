"""Which numbers of deep pictures (more than 8 bits per channel) become black and white: measured on a data set."""

import json
import os
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace

import numpy as np
from pydantic import TypeAdapter

from tl_cli.contract import PixelRange, SplitName
from tl_cli.data.checks import each, remembered_in
from tl_cli.data.decode import MAY_BE_DEEP, Numbers, deep_values, numbers
from tl_cli.data.images import FileImages, Images
from tl_cli.errors import DataError, StorageError
from tl_cli.io.atomic import write_text
from tl_cli.io.download import Progress, silent

# Number of images, evenly spaced in the training part, and number of values of each.
_PICTURES, _VALUES = 256, 16_384
# A range reaches from the smallest to the largest value. Where one of them lies further beyond the quantiles of these
# shares than this part of the distance between them, as hot pixels do, the range ends at the quantile.
_QUANTILES, _BEYOND = (0.001, 0.999), 0.25
# Kinds of numbers whose ranges differ by a larger factor are not of one scale.
_ALIKE = 4
# A given range outside of which a larger share of the values lies does not suit them.
_CLIPPED = 0.05
UNKNOWN = "unlike the model's training images: 0 is read as black and 65535 as white"


@dataclass(frozen=True, slots=True)
class Measured:
    """The range of the deep pictures of a training part.

    Attributes:
        images: deep pictures in the part.
        pixel_range: the numbers that become black and white.
        pictures: how many were measured.
        outside: share of their values that lie outside, and are clipped.
        scales: ranges of different kinds of numbers that one range does not suit; else empty.
        misfit: how a given range does not suit the values; else empty.
    """

    images: int
    pixel_range: PixelRange
    pictures: int
    outside: float
    scales: str = ""
    misfit: str = ""

    def describe(self) -> str:
        """Return where the range is from."""
        low, high = self.pixel_range
        clipped = f", {self.outside:.2%} of the values lie outside" if self.outside else ""
        return (
            f"{self.images:,} training images have more than 8 bits per channel: {low:g} becomes black and {high:g} "
            f"white (measured on {self.pictures:,} of them{clipped})"
        )


@dataclass(frozen=True, slots=True)
class Depths:
    """What is said of a data set's pictures that are not plain 8-bit ones.

    Attributes:
        measured: None where no training image is deep, or none of them can be read.
        notes: notes for the user.
    """

    measured: Measured | None = None
    notes: tuple[str, ...] = ()


def survey(
    parts: Mapping[SplitName, Images], *, given: PixelRange | None = None, workers: int, progress: Progress = silent
) -> Depths:
    """Return what the files of a data set hold: bands that are not used, deep pictures, and their range in training.

    JPEGs and other files that are never deep are not opened. What was measured once is looked up where nothing changed.

    Args:
        given: a range to use instead of the measured one, whose fit is measured.
    """
    deep, notes = _deep(parts, workers, progress)
    measured = _measured(parts["train"], deep["train"], given, workers, progress) if deep.get("train") else None
    if measured is not None:
        if given is None:
            notes.append(measured.describe())
        if measured.misfit:
            notes.append(measured.misfit)
        if measured.scales:
            notes.append(f"one pixel range does not suit all images: {measured.scales}; convert them to one scale")
    elif any(deep.values()):
        listed = ", ".join(f"{len(places):,} {part}" for part, places in deep.items() if places)
        notes.append(f"{listed} images have more than 8 bits per channel, and no training image has")
    return Depths(measured, tuple(notes))


def notes_for(
    parts: Mapping[SplitName, Images], pixel_range: PixelRange | None, *, workers: int, progress: Progress = silent
) -> tuple[str, ...]:
    """Return notes for the user about images that a trained model with this range is evaluated on."""
    deep, notes = _deep(parts, workers, progress)
    count = sum(map(len, deep.values()))
    if count and pixel_range is None:
        notes.append(f"{count:,} images have more than 8 bits per channel, {UNKNOWN}")
    return tuple(notes)


def scaled(parts: Mapping[SplitName, Images], pixel_range: PixelRange | None) -> dict[SplitName, Images]:
    """Return the parts, whose deep pictures are decoded with this range."""
    return {
        part: replace(images, pixel_range=pixel_range) if isinstance(images, FileImages) else images
        for part, images in parts.items()
    }


def range_of(values: np.ndarray) -> PixelRange:
    """Return the range of finite numbers: from the smallest to the largest, without outliers."""
    low, high = float(values.min()), float(values.max())
    # Values that occur: between two of them a quantile would lie near an outlier.
    inner = float(np.quantile(values, _QUANTILES[0], method="higher"))
    outer = float(np.quantile(values, _QUANTILES[1], method="lower"))
    if outer > inner:
        margin = _BEYOND * (outer - inner)
        low = low if low >= inner - margin else inner
        high = high if high <= outer + margin else outer
    return (low, high) if high > low else (low, low + 1)


def _scales(samples: list[np.ndarray]) -> str:
    """Return the ranges of different kinds of numbers where one range does not suit all; else nothing."""
    kinds: dict[str, list[np.ndarray]] = {}
    for values in samples:
        kind = f"{8 * values.dtype.itemsize}-bit {'floating-point numbers' if values.dtype.kind == 'f' else 'integers'}"
        kinds.setdefault(kind, []).append(values.astype(np.float64))
    ranges = {kind: range_of(np.concatenate(found)) for kind, found in sorted(kinds.items())}
    spans = [high - low for low, high in ranges.values()]
    if max(spans) <= _ALIKE * min(spans):
        return ""
    return ", ".join(f"{kind} from {low:g} to {high:g}" for kind, (low, high) in ranges.items())


def _deep(
    parts: Mapping[SplitName, Images], workers: int, progress: Progress
) -> tuple[dict[SplitName, list[int]], list[str]]:
    """Return which images are deep, by part, and notes of bands that are not used."""
    held = {part: _numbers(images, workers, progress) for part, images in parts.items()}
    unused = Counter(each.unused for found in held.values() for each in found.values() if each.unused)
    return (
        {part: [index for index, each in found.items() if each.is_deep] for part, found in held.items()},
        [f"{count:,} image{'s have' if count > 1 else ' has'} {bands}" for bands, count in unused.items()],
    )


def _numbers(images: Images, workers: int, progress: Progress) -> dict[int, Numbers]:
    """Return what is special about files that may be deep or have more bands than are used, by index."""
    if not isinstance(images, FileImages):
        return {}
    places = [index for index, name in enumerate(images.ids) if os.path.splitext(name)[1].lower() in MAY_BE_DEEP]

    def look(number: int) -> Numbers:
        # What cannot be read is named when it is decoded.
        with suppress(OSError):
            return numbers(os.path.join(images.root, images.ids[places[number]]), images.max_pixels)
        return Numbers()

    found = zip(places, each(len(places), look, workers, progress, "looking at pixel depths"), strict=True)
    return {index: held for index, held in found if held != Numbers()}


def _measured(
    images: Images, deep: list[int], given: PixelRange | None, workers: int, progress: Progress
) -> Measured | None:
    assert isinstance(images, FileImages)
    path = remembered_in(images, f"pixel-range{given or ''}", workers=workers, progress=progress)
    if path is not None:
        with suppress(OSError, ValueError):  # pydantic's errors are ValueErrors
            kept: Measured = TypeAdapter(Measured).validate_json(path.read_bytes())
            return kept
    chosen = [deep[place] for place in np.linspace(0, len(deep) - 1, min(len(deep), _PICTURES)).astype(int)]

    def sample(number: int) -> np.ndarray:
        try:
            path = os.path.join(images.root, images.ids[chosen[number]])
            values: np.ndarray = deep_values(path, images.max_pixels).ravel()
        except DataError:
            return np.empty(0)
        values = values[np.isfinite(values)] if values.dtype.kind == "f" else values
        if len(values) > _VALUES:
            # The smallest and the largest are among them: so that nothing that is no outlier is clipped.
            some = np.random.Generator(np.random.Philox(number)).choice(values, _VALUES - 2)
            values = np.append(some, np.array([values.min(), values.max()], dtype=values.dtype))
        return values

    samples = list(each(len(chosen), sample, workers, progress, "measuring the pixel range"))
    samples = [values for values in samples if len(values)]
    if not samples:
        return None if given is None else Measured(len(deep), given, 0, 0.0)
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
    measured = Measured(len(deep), (low, high), len(samples), outside, _scales(samples), misfit)
    if path is not None:
        with suppress(StorageError):
            write_text(path, json.dumps(asdict(measured)))
    return measured

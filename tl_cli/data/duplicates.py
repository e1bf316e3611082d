"""Finds pictures that look alike: candidates by a perceptual hash, which are then compared in color."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import imagehash
import numpy as np
from PIL import Image, ImageStat
from scipy.ndimage import gaussian_filter, uniform_filter

from tl_cli.io.download import Progress, silent

# Thumbnails of this side are compared; a smaller picture is compared at its shorter side, down to _SMALLEST.
SIDE = 32
_SMALLEST = 16
# Standard deviation, in gray levels, below which a picture is too plain to be distinguished from others.
_PLAIN = 4.0
_SKETCH_SIDE = 8
# Limits of two pictures that look alike, chosen with tests/benchmarks/likeness.py:
_MOST_RESIDUAL = 0.09  # the difference after alignment, as a share of the pictures' own contrast
_MOST_LOCAL_RESIDUAL = 0.25  # that of the worst block, an eighth of the side: small figures on a plain background
_MOST_SHIFT = 0.05  # displacement by a crop, as a share of the side
_MOST_CONTRAST = 0.1  # relative change of contrast
_MOST_BRIGHTNESS = 20.0  # change of mean brightness, in grey levels
# Bits in which two hashes may differ; fewer if the set is so large that comparing them would take too long.
_BITS = (8, 6, 4)
_MOST_COMPARED = 2_000_000_000  # hashes: some seconds
_MOST_VERIFIED = 200_000  # pairs of thumbnails: about a minute
_REMEMBERED = 8192  # thumbnails of 3 KB
_BATCH = 256
# Limit of the difference at 8 x 8, before alignment: gray levels plus a share of the contrast.
_SKETCH_FLOOR, _SKETCH_SHARE = 4.0, 0.3
# Standard deviations in pixels.
_SMOOTH_LUMA, _SMOOTH_CHROMA = (0.7, 0.7), (2.0, 2.0)
_BLOCKS = 8  # along the side; each is compared
# Weights, per value compared, against displacement, scale, contrast and brightness.
_RIDGE = (0.5, 0.5, 0.5, 0.5, 1e-3, 1e-3)
# Rows: luma and the two chroma signals of JPEG (ITU-T T.871), from RGB.
_YCC = np.array([[0.299, 0.587, 0.114], [-0.1687, -0.3313, 0.5], [0.5, -0.4187, -0.0813]], dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Sketch:
    """Features of a picture with which similar ones are found.

    Attributes:
        hash: 64 bits; few of them differ between pictures that look alike.
        colours: (192,) uint8, the picture at 8 x 8 in RGB.
        side: the shorter side of the picture in pixels, at most ``SIDE``.
    """

    hash: int
    colours: bytes
    side: int


def sketch(pixels: np.ndarray) -> Sketch | None:
    """Return the sketch of (H, W, 3) uint8 pixels; None if they are too small or too plain to be compared by looks."""
    side = min(SIDE, *pixels.shape[:2])
    if side < _SMALLEST:
        return None
    image = Image.fromarray(pixels)
    small = _resized(image, side)
    if max(ImageStat.Stat(small).stddev) < _PLAIN:
        return None
    bits = imagehash.phash(image.convert("L")).hash.ravel()
    colours = small.resize((_SKETCH_SIDE, _SKETCH_SIDE), Image.Resampling.BOX)
    return Sketch(int(np.packbits(bits).view(">u8")[0]), colours.tobytes(), side)


def alike_groups(
    sketches: Sequence[Sketch],
    load: Callable[[int], np.ndarray],
    progress: Progress = silent,
    *,
    most_compared: int = _MOST_COMPARED,
    most_verified: int = _MOST_VERIFIED,
) -> tuple[list[list[int]], int]:
    """Return groups of pictures that look alike, and how many pictures could not be compared with all others.

    Every picture of a group looks like its first one, so that chains of small differences do not join groups. A picture
    may be in several groups.

    Args:
        sketches: one per picture.
        load: returns the pixels of a picture, (H, W, 3) uint8, decoded at ``SIDE`` or more.
        most_compared: maximum pairs of hashes.
        most_verified: maximum pairs of thumbnails.
    """
    if len(sketches) < 2:
        return [], 0
    hashes = np.array([each.hash for each in sketches], dtype=np.uint64)
    colours = np.frombuffer(b"".join(each.colours for each in sketches), np.uint8).reshape(len(sketches), -1, 3)
    sides = np.array([each.side for each in sketches])
    index, leaders = _plan(hashes, most_compared)

    @lru_cache(_REMEMBERED)
    def thumbnail(number: int, side: int) -> np.ndarray:
        return np.asarray(_resized(Image.fromarray(load(number)), side))

    groups: list[list[int]] = []
    has_led, is_taken = np.zeros(len(sketches), dtype=bool), np.zeros(len(sketches), dtype=bool)
    verified = 0
    for done, first in enumerate(leaders.tolist()):
        if done % 1000 == 0:
            progress("comparing images", done, len(leaders))
        if is_taken[first]:
            continue
        if verified >= most_verified:
            break
        others = index.near(first)
        # First pictures of earlier groups were compared with this one, and differ.
        others = others[~has_led[others]]
        others = others[_may_look_alike(colours[first], colours[others])][: most_verified - verified]
        verified += len(others)
        has_led[first] = verified < most_verified
        alike = _looking_like(first, others, sides, thumbnail)
        if alike:
            groups.append([first, *alike])
            is_taken[alike] = True
    return groups, int((~(has_led | is_taken)).sum())


@dataclass(frozen=True, slots=True)
class _Index:
    """Hashes by the values of their pieces: two that differ in few bits have at least one equal piece.

    Attributes:
        hashes: (N,) uint64.
        bits: in which two hashes may differ; there is one piece more than that.
        orders: for each piece, the hashes' indices sorted by its value.
        spans: (pieces, N, 2): for each piece and hash, the range in that order with equal pieces.
    """

    hashes: np.ndarray
    bits: int
    orders: list[np.ndarray]
    spans: np.ndarray

    @classmethod
    def of(cls, hashes: np.ndarray, bits: int) -> "_Index":
        """Return the index for finding hashes that differ in at most so many bits."""
        orders, spans = [], []
        for piece in range(bits + 1):
            start, stop = 64 * piece // (bits + 1), 64 * (piece + 1) // (bits + 1)
            values = (hashes >> np.uint64(start)) & np.uint64((1 << (stop - start)) - 1)
            orders.append(np.argsort(values, kind="stable"))
            _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
            stops = np.cumsum(counts)
            spans.append(np.stack([stops - counts, stops], axis=1)[inverse])
        return cls(hashes, bits, orders, np.stack(spans))

    def near(self, number: int) -> np.ndarray:
        """Return the other hashes that differ from this one in few bits."""
        spans = self.spans[:, number].tolist()
        found = np.concatenate([order[start:stop] for order, (start, stop) in zip(self.orders, spans, strict=True)])
        found = found[np.bitwise_count(self.hashes[found] ^ self.hashes[number]) <= self.bits]
        return np.unique(found[found != number])


def _plan(hashes: np.ndarray, most: int) -> tuple[_Index, np.ndarray]:
    """Return the index with the most bits within the limit of comparisons, and the hashes to look up, in order.

    If even the fewest bits take too many comparisons, the hashes with the most candidates are left out.
    """
    for bits in _BITS:
        index = _Index.of(hashes, bits)
        costs = (index.spans[..., 1] - index.spans[..., 0]).sum(axis=0)  # comparisons for each hash
        if costs.sum() <= most:
            break
    cheapest = np.argsort(costs, kind="stable")
    return index, np.sort(cheapest[np.cumsum(costs[cheapest]) <= most])


def _may_look_alike(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return (N,) bool: which 8 x 8 pictures (N, 64, 3) are so similar to one (64, 3) that thumbnails are compared."""
    difference = others.astype(np.float32) - one
    brightness = difference.mean(axis=(1, 2))
    difference -= brightness[:, None, None]
    contrast = (one - one.mean(axis=0, dtype=np.float32)).std()
    limit = _SKETCH_FLOOR + _SKETCH_SHARE * contrast
    near: np.ndarray = (np.abs(brightness) <= _MOST_BRIGHTNESS) & (np.sqrt((difference**2).mean(axis=(1, 2))) <= limit)
    return near


def _looking_like(
    first: int, others: np.ndarray, sides: np.ndarray, thumbnail: Callable[[int, int], np.ndarray]
) -> list[int]:
    """Return the others that look like the first, each compared at the smaller side of the two."""
    common = np.minimum(sides[others], sides[first])
    alike: list[int] = []
    for side in np.unique(common).tolist():
        one, same = _prepared(thumbnail(first, side)[None]), others[common == side]
        for start in range(0, len(same), _BATCH):
            batch = same[start : start + _BATCH]
            thumbnails = np.stack([thumbnail(number, side) for number in batch.tolist()])
            alike += batch[look_alike(one, _prepared(thumbnails))].tolist()
    return sorted(alike)


def look_alike(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return (N,) bool: which thumbnails (N, S, S, 3) look like one (1, S, S, 3); both as ``_prepared`` returns them.

    The difference of two pictures is fitted by a displacement and a scale in x and in y (one step of Lucas and Kanade
    1981: a small displacement changes a picture by its gradient times the displacement), by contrast and by brightness.
    All of these must be small, and so must the residual: in the whole picture, and in every block of it, because a
    plain background hides a local difference from the mean.
    """
    middle, difference = (others + one) / 2, others - one
    count, side = middle.shape[:2]
    along_y, along_x = np.gradient(middle, axis=(1, 2))
    centred = np.linspace(-1, 1, side, dtype=np.float32)
    x, y = centred[None, None, :, None], centred[None, :, None, None]
    brightness = np.zeros_like(middle)
    brightness[..., 0] = 1
    causes = np.stack([along_x, along_y, along_x * x, along_y * y, middle, brightness], axis=-1).reshape(count, -1, 6)
    effects = difference.reshape(count, -1, 1)
    values = effects.shape[1]
    # A tiny weight against causes that are undetermined in a plain picture.
    square = causes.transpose(0, 2, 1) @ causes + np.diag(np.array(_RIDGE, dtype=np.float32) * values)
    sizes = np.linalg.solve(square, causes.transpose(0, 2, 1) @ effects)
    unexplained = ((effects - causes @ sizes) ** 2).reshape(middle.shape).mean(axis=-1)
    residual = np.sqrt(unexplained.mean(axis=(1, 2)))
    block = side // _BLOCKS
    local_residual = np.sqrt(uniform_filter(unexplained, (1, block, block), mode="constant").max(axis=(1, 2)))
    contrast = np.sqrt(((middle - middle.mean(axis=(1, 2), keepdims=True)) ** 2).mean(axis=(1, 2, 3)))
    size = np.abs(sizes[..., 0])
    shift = np.maximum(size[:, 0] + size[:, 2], size[:, 1] + size[:, 3]) / side
    alike: np.ndarray = (
        (residual <= _MOST_RESIDUAL * contrast)
        & (local_residual <= _MOST_LOCAL_RESIDUAL * contrast)
        & (shift <= _MOST_SHIFT)
        & (size[:, 4] <= _MOST_CONTRAST)
        & (np.abs(difference[..., 0].mean(axis=(1, 2))) <= _MOST_BRIGHTNESS)
    )
    return alike


def _prepared(thumbnails: np.ndarray) -> np.ndarray:
    """Return (N, S, S, 3) uint8 RGB as float32 luma and chroma, smoothed: JPEG loses the detail of chroma most."""
    signals = thumbnails.astype(np.float32) @ _YCC.T
    signals = np.asarray(gaussian_filter(signals, (0, *_SMOOTH_LUMA, 0), mode="nearest"))
    signals[..., 1:] = gaussian_filter(signals[..., 1:], (0, *_SMOOTH_CHROMA, 0), mode="nearest")
    return signals


def _resized(image: Image.Image, side: int) -> Image.Image:
    return image if image.size == (side, side) else image.resize((side, side), Image.Resampling.BILINEAR)

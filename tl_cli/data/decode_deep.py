"""Pictures of more than 8 bits per channel: their values at full depth, and how these become grey levels. No torch.

Pillow opens colour pictures of 16 bits as 8-bit RGB and drops the low bytes. They are read by unpacking the picture a
second time in the opposite byte order.
"""

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin

# The values that become black and white. As `contract.PixelRange`, which would make the processes that decode load
# pydantic.
PixelRange = tuple[float, float]

# Modes with one channel of more than 8 bits.
MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
_OPPOSITE = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
_LEVELS = 255
# TIFF's tags and values.
_BITS, _PHOTOMETRIC, _SAMPLES, _PLANAR, _EXTRA_SAMPLES, _SAMPLE_FORMAT = 258, 262, 277, 284, 338, 339
_WHITE_IS_ZERO, _UNSIGNED = 0, 1
_KINDS = {1: "integers", 2: "signed integers", 3: "floating-point numbers"}
# Number and meaning of the channels by mode; other modes have one, grey.
_CHANNELS = {
    "RGB": (3, "RGB"), "YCbCr": (3, "RGB"), "LAB": (3, "LAB"), "CMYK": (4, "CMYK"), "RGBA": (4, "RGB and opacity"),
    "LA": (2, "grey and opacity"), "La": (2, "grey and opacity"), "PA": (2, "palette and opacity"), "P": (1, "palette"),
}  # fmt: skip


# Programs for satellite pictures declare the first band as grey and the others as extra: the first three become RGB.
for _prefix, _order in ((b"II", "L"), (b"MM", "B")):
    for _bits, _suffix, _most in ((8, "", 5), (16, f";16{_order}", 3)):
        for _others in range(2, _most + 1):
            _key = (_prefix, 1, (1,), 1, (_bits,) * (_others + 1), (0,) * _others)
            TiffImagePlugin.OPEN_INFO.setdefault(_key, ("RGB", f"RGB{'X' * (_others - 2)}{_suffix}"))


@dataclass(frozen=True, slots=True)
class Deep:
    """The values of a picture, upright.

    Attributes:
        values: (H, W, C), grey or RGB, as in the file.
        opacity: (H, W) float64 in 0..1; None if nothing is transparent.
        is_inverted: the smallest value is white.
    """

    values: np.ndarray
    opacity: np.ndarray | None = None
    is_inverted: bool = False


def is_deep(image: Any) -> bool:
    """Return whether a picture, open and not loaded yet, has more than 8 bits per channel."""
    if image.mode in MODES:
        return True
    if image.format == "PPM":
        return image.mode == "RGB" and _maxval(image) > _LEVELS
    if image.format == "TIFF":
        # Inks always range from none to full.
        return image.mode != "CMYK" and bool(max(_tags(image).get(_BITS, (1,))) > 8)
    return image.format == "PNG" and ";16" in _rawmode(image)


def read(reopened: Callable[[], Image.Image]) -> Deep:
    """Return the values of a deep picture.

    Args:
        reopened: opens the same picture again each time.

    Raises:
        ValueError: its values cannot be read at full depth.
        Exception: various, of Pillow, if the file is truncated or corrupt.
    """
    with reopened() as opened:
        image: Any = opened
        if image.format == "PPM" and image.mode != "F":
            return Deep(_read_ppm(image))
        tags, key, mode, rawmode = _tags(image), image.info.get("transparency"), image.mode, _rawmode(image)
        is_inverted = image.format == "TIFF" and tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
        if mode in MODES:
            values = _upright(image)
            if mode == "I" and tags.get(_SAMPLE_FORMAT, (_UNSIGNED,))[0] == _UNSIGNED:
                values = values.view(np.uint32)  # Pillow's are signed
            return _keyed(values[..., None], key, is_inverted)
        if tags.get(_PLANAR) == 2 and image.tile[0].codec_name == "libtiff":
            raise ValueError(
                "its channels of 16 bits are stored apart and compressed; save it with interleaved channels"
            )
    if rawmode == "LA;16B":
        # Four bytes per pixel: the high and low byte of grey and of opacity.
        halves = _unpacked(reopened, lambda rawmode: "RGBA")
        high, low = halves[..., 0::2], halves[..., 1::2]
    else:
        # As RGBA even if colours are multiplied by their opacity, so that Pillow does not divide 8-bit values.
        high = _unpacked(reopened, lambda rawmode: rawmode.replace("RGBa", "RGBA"))
        low = _unpacked(reopened, lambda rawmode: rawmode.replace("RGBa", "RGBA")[:-1] + _OPPOSITE[rawmode[-1]])
    channels = high.astype(np.uint16) << 8 | low
    if mode == "RGB":
        return _keyed(channels[..., :3], key, is_inverted)
    values, opacity = channels[..., :-1], channels[..., -1] / 65535
    if rawmode.startswith("RGBa"):
        values = values / np.maximum(opacity, 1 / 65535)[..., None]
    return Deep(values, opacity, is_inverted)


def to_levels(deep: Deep, pixel_range: PixelRange) -> np.ndarray:
    """Return (H, W, 3) uint8: the range spread over 0..255, rounded half up and clipped; on white. NaN is black."""
    values = deep.values
    levels = _table(pixel_range)[values] if values.dtype == np.uint16 else _spread(values, pixel_range)
    if deep.is_inverted:
        levels = _LEVELS - levels
    if deep.opacity is not None:
        levels = np.floor(_LEVELS + (levels - float(_LEVELS)) * deep.opacity[..., None] + 0.5).astype(np.uint8)
    return np.broadcast_to(levels, (*levels.shape[:2], 3)).copy()


def _spread(values: np.ndarray, pixel_range: PixelRange) -> np.ndarray:
    low, high = pixel_range
    numbers = np.nan_to_num(values.astype(np.float64), nan=low, posinf=high, neginf=low)
    return np.floor((numbers.clip(low, high) - low) * _LEVELS / (high - low) + 0.5).astype(np.uint8)


@lru_cache(maxsize=8)
def _table(pixel_range: PixelRange) -> np.ndarray:
    """Return the level of each 16-bit value: a large picture takes a third of the time, and less memory."""
    return _spread(np.arange(1 << 16), pixel_range)


def without_undeclared_opacity(image: Any) -> Image.Image:
    """Return an open picture, as RGB if its fourth channel is not declared as opacity, which Pillow assumes it is."""
    if image.format == "TIFF" and image.mode == "RGBA" and _EXTRA_SAMPLES not in image.tag_v2:
        image._mode = "RGB"
        # A channel in a plane is left out, an interleaved one is skipped.
        skipped = "" if image.tag_v2.get(_PLANAR) == 2 else "X"
        tiles = [tile for tile in image.tile if tile.args[0] != "A"]
        image.tile = [tile._replace(args=(tile.args[0].replace("A", skipped), *tile.args[1:])) for tile in tiles]
    opened: Image.Image = image
    return opened


def unused_bands(image: Image.Image) -> str:
    """Return how many bands an open TIFF has and which are used; empty if all are."""
    count = int(_tags(image).get(_SAMPLES, 1))
    used, what = _CHANNELS.get(image.mode, (1, "grey"))
    if count <= used:
        return ""
    return f"{count} bands; the first {f'{used} are' if used > 1 else 'is'} used as {what}"


def describe_tiff(tags: Any) -> str:
    """Return the bands and bits of a TIFF that Pillow does not open, and what to do."""
    count = tags.get(_SAMPLES, 1)
    bits, form = tags.get(_BITS, (1,))[0], tags.get(_SAMPLE_FORMAT, (_UNSIGNED,))[0]
    kind = f"{bits}-bit {_KINDS.get(form, 'numbers')}"
    apart = ", stored apart," if tags.get(_PLANAR) == 2 and count > 1 else ""
    if form != _UNSIGNED or bits not in (8, 16):
        advice = (
            "save it as RGB of 8 or 16 bits" if count > 1 else "save it with 8 or 16 bits or as 32-bit floating point"
        )
    elif count < 3:
        advice = "save one of them as grey, such as the first: gdal_translate -b 1 OLD NEW"
    else:
        advice = "save three of them as RGB: gdal_translate -b 1 -b 2 -b 3 -co PHOTOMETRIC=RGB OLD NEW"
    return f"{count} band{'s' * (count > 1)} of {kind}{apart} cannot be read; {advice}"


def _tags(image: Image.Image) -> Any:
    return getattr(image, "tag_v2", {})


def _keyed(values: np.ndarray, key: object, is_inverted: bool) -> Deep:
    """Return the values of a picture of which those that equal ``key``, if there is one, are transparent."""
    opacity = None if key is None else (values != np.array(key)).any(axis=2).astype(np.float64)
    return Deep(values, opacity, is_inverted)


def _rawmode(image: Any) -> str:
    """Return the layout of an open picture's bytes, in Pillow's notation."""
    args = image.tile[0].args
    return str(args if isinstance(args, str) else args[0])


def _unpacked(reopened: Callable[[], Image.Image], change: Callable[[str], str]) -> np.ndarray:
    """Return the bytes of a picture, (H, W, C) uint8, unpacked with another raw mode than Pillow's choice."""

    def changed(tile: Any) -> Any:
        rawmode, *others = [tile.args] if isinstance(tile.args, str) else tile.args
        if len(rawmode) == 1:
            # A channel in a plane; Pillow leaves out its width.
            rawmode += ";16B" if tags.prefix == b"MM" else ";16L"
        return tile._replace(args=(change(rawmode), *others))

    with reopened() as opened:
        image: Any = opened
        tags = _tags(image)
        image.tile = [changed(tile) for tile in image.tile]
        return _upright(image)


def _upright(image: Image.Image) -> np.ndarray:
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    return np.array(image)


def _maxval(image: Any) -> int:
    """Return the value that is white in a PGM or PPM, from its header."""
    args = image.tile[0].args
    return int(args[1]) if isinstance(args, tuple) else 65535 if args.startswith("I;16") else _LEVELS


def _read_ppm(image: Any) -> np.ndarray:
    # Pillow would rescale these by their largest value, grey to 16 bits and RGB to 8.
    tile, bands = image.tile[0], 1 if image.mode == "I" else 3
    count = image.width * image.height * bands
    image.fp.seek(tile.offset)
    if tile.codec_name == "ppm_plain":
        values = np.array(re.sub(rb"#[^\r\n]*", b"", image.fp.read()).split()[:count], dtype=np.int64)
    else:
        values = np.frombuffer(image.fp.read(2 * count), ">u2").astype(np.uint16)
    if len(values) < count:
        raise ValueError("the file is truncated")
    return values.reshape(image.height, image.width, bands)

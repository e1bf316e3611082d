"""From the files of pictures to pixels: the one place for it, and a program that decodes many of one size.

``python -m tl_cli.data.decode HEIGHT WIDTH [BLACK WHITE]`` reads names from its input, NUL after each, and writes
``OPENING`` and their pixels, (3, HEIGHT, WIDTH) uint8, one after another; it ends where one cannot be decoded or has
another size. Tiny pictures are decoded under the GIL most of the time, so threads do not help; and processes that do
not load torch start fast.
"""

import ctypes
import errno
import io
import logging
import os
import stat
import sys
import threading
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError, _imaging

from tl_cli.data import decode_deep
from tl_cli.data.decode_deep import PixelRange
from tl_cli.errors import DataError
from tl_cli.shortage import during, pass_on

# What Pillow may open. Others have decoders that are rarely tested, or are not pictures (PDF, EPS).
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "AVIF")
SUFFIXES = frozenset(
    (
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".gif",
        ".bmp",
        ".webp",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".pbm",
        ".avif",
    )
)
# Files of these may have more than 8 bits per channel, or bands that are not used.
MAY_BE_DEEP = frozenset((".png", ".tif", ".tiff", ".ppm", ".pgm"))
MAX_PIXELS = 89_478_485  # by default; Pillow's own limit, from which on it only warns
# Four channels of 32 bits: a larger file holds no picture within the limit, and would only fill the memory.
_BYTES_PER_PIXEL = 16
# Smaller pictures are always decoded whole, so it does not matter who decodes them when.
WHOLE_UP_TO = 512
# Before all pixels that are written, so that what else a Python prints when it starts is not taken for any.
OPENING = b"\0tl pixels\0"

# Pillow warns of odd EXIF, palettes and large pictures. The pixels are right or it raises, and size is checked here;
# a filter for each call would not be safe on several threads.
warnings.filterwarnings("ignore", module=r"PIL\.")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# Errors come as exceptions too. libtiff's own handler prints, and so does Python's logging without handlers.
logging.getLogger("PIL").addHandler(logging.NullHandler())
with suppress(OSError, AttributeError, TypeError):  # a Pillow that has no libtiff, or has it inside
    ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)


@dataclass(frozen=True, slots=True)
class Pixels:
    """A decoded picture; a large JPEG perhaps at a fraction of its size.

    Attributes:
        values: (H, W, 3) uint8.
        size: height and width of the whole picture in pixels.
        box: left, top, right and bottom of the picture within ``values``: at an eighth of the size, 1,001 columns are
            125.125 of 126.
    """

    values: np.ndarray
    size: tuple[int, int]
    box: tuple[float, float, float, float]


def decode_pixels(
    source: str | Path | bytes,
    *,
    short_side: int | None = None,
    pixel_range: PixelRange | None = None,
    max_pixels: int | None = None,
) -> np.ndarray:
    """Return the values of ``decode_picture``, (H, W, 3) uint8."""
    return decode_picture(source, short_side=short_side, pixel_range=pixel_range, max_pixels=max_pixels).values


def decode_picture(
    source: str | Path | bytes,
    *,
    short_side: int | None = None,
    pixel_range: PixelRange | None = None,
    max_pixels: int | None = None,
) -> Pixels:
    """Return a picture as it is meant to be seen: RGB, upright, on white where transparent.

    Args:
        source: a file, or the bytes of one.
        short_side: a large JPEG may be decoded at a fraction of its size, as long as its short side keeps at
            least twice this many pixels. None decodes it whole.
        pixel_range: the numbers that become black and white in pictures of more than 8 bits per channel; None is
            0 and the largest of 16 bits, and refuses floating-point numbers.
        max_pixels: how many may be decoded; None is ``MAX_PIXELS``.

    Raises:
        DataError: it is no image of a known format, is truncated, or has more pixels.
    """
    name = "the image" if isinstance(source, bytes) else str(source)
    limit = max_pixels or MAX_PIXELS
    try:
        with _open(source, limit) as image:
            stored, factor, orientation = image.size, 1, None
            is_scaled = pixel_range is not None and decode_deep.is_deep(image)
            if short_side is not None and not is_scaled:
                factor = _draft(image, short_side, limit)
            _check_pixels(name, image, stored, limit)
            if is_scaled and pixel_range is not None:
                values = decode_deep.to_levels(decode_deep.read(lambda: _open(source, limit)), pixel_range)
            else:
                orientation = image.getexif().get(_ORIENTATION) if factor > 1 else None
                ImageOps.exif_transpose(image, in_place=True)
                values = np.array(_to_rgb(image))
    except DataError:
        raise
    except Exception as error:
        raise _refusal(name, error, source) from error
    height, width = values.shape[:2]
    if factor == 1:
        return Pixels(values, (height, width), (0.0, 0.0, float(width), float(height)))
    columns, rows = stored[::-1] if orientation in _ON_ITS_SIDE else stored
    right, bottom = columns / factor, rows / factor
    # The last column or row of the file, which may be incomplete, has become the first where the picture was turned.
    left = width - right if orientation in (2, 3, 6, 7) else 0.0
    top = height - bottom if orientation in (3, 4, 7, 8) else 0.0
    return Pixels(values, (rows, columns), (left, top, left + right, top + bottom))


def _check_pixels(name: str, image: Image.Image, stored: tuple[int, int], limit: int) -> None:
    """Refuse a picture of which too many pixels would be decoded; of a JPEG at a fraction of its size few are."""
    if image.width * image.height > limit:
        width, height = stored
        raise DataError(
            f"{name} has {width} x {height} pixels; at most {limit:,} are decoded; "
            f"with --max-pixels {width * height} it is decoded too"
        )


def _open(source: str | Path | bytes, limit: int) -> Image.Image:
    return decode_deep.without_undeclared_opacity(_identified(source, limit))


def _identified(source: str | Path | bytes, limit: int) -> Image.Image:
    if not isinstance(source, bytes):
        _check_regular(source, limit)
    with _UNLIMITED:
        return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)


class _Unlimited:
    """Lifts Pillow's limit on pixels, which is one for the whole process, while any thread is inside.

    Pillow refuses what has twice as many as its limit, 200-megapixel JPEGs too, of which few are decoded.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._limit: int | None = None

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                Image.MAX_IMAGE_PIXELS = self._limit


_UNLIMITED = _Unlimited()


@dataclass(frozen=True, slots=True)
class Numbers:
    """How a file holds its picture, as far as it is not used as it is.

    Attributes:
        is_deep: it has more than 8 bits per channel.
        unused: which bands are used, where not all are; else empty.
    """

    is_deep: bool = False
    unused: str = ""


def numbers(path: str | Path, max_pixels: int | None = None) -> Numbers:
    """Return how a file stores its image. Usually only the first bytes are read; other files have no numbers.

    Raises:
        OSError: it cannot be read.
    """
    with open_regular(path, max_pixels) as file:
        start = file.read(32)
    if not start.startswith((b"II", b"MM", b"P", _PNG)) or (start.startswith(_PNG) and start[24:25] != b"\x10"):
        return Numbers()
    with suppress(Exception), _open(path, max_pixels or MAX_PIXELS) as image:
        return Numbers(decode_deep.is_deep(image), decode_deep.unused_bands(image))
    return Numbers()


_PNG = b"\x89PNG\r\n\x1a\n"


def deep_values(path: str | Path, max_pixels: int | None = None) -> np.ndarray:
    """Return the numbers (H, W, C) of a picture of more than 8 bits per channel.

    Raises:
        DataError: it cannot be decoded at full depth.
    """
    limit = max_pixels or MAX_PIXELS
    try:
        with _open(path, limit) as image:
            _check_pixels(str(path), image, image.size, limit)
        return decode_deep.read(lambda: _open(path, limit)).values
    except DataError:
        raise
    except Exception as error:
        raise _refusal(str(path), error, path) from error


def picture_size(source: str | Path | bytes, max_pixels: int | None = None) -> tuple[int, int]:
    """Return height and width of a picture as it is meant to be seen. Only its header is read.

    Args:
        source: a file, or the bytes of one.
        max_pixels: a file for many more is not read.

    Raises:
        DataError: it is no picture of a known format, or cannot be read.
    """
    try:
        with _identified(source, max_pixels or MAX_PIXELS) as image:
            width, height = image.size
            # Pillow would decode a PNG in search of EXIF data that do not stand before its pixels.
            has_exif = "exif" in image.info or image.format == "TIFF"
            is_on_its_side = has_exif and image.getexif().get(_ORIENTATION) in _ON_ITS_SIDE
            return (width, height) if is_on_its_side else (height, width)
    except Exception as error:
        raise _refusal("the image" if isinstance(source, bytes) else str(source), error, source) from error


def open_regular(path: str | Path, max_pixels: int | None = None) -> io.BufferedReader:
    """Open the file of a picture for reading: neither a pipe nor a device, nor larger than any picture.

    Raises:
        OSError: it is none, or cannot be read.
    """
    _check_regular(path, max_pixels or MAX_PIXELS)
    return open(path, "rb")  # noqa: PTH123 (the caller closes it)


def largest_file(max_pixels: int | None = None) -> int:
    """Return how many bytes the file of a picture may have."""
    return _BYTES_PER_PIXEL * (max_pixels or MAX_PIXELS)


def too_large(size: int, limit: int) -> str:
    """Return what to say of a file of ``size`` bytes that is not read."""
    return (
        f"the file has {size / 1e6:,.0f} MB; pictures of more than {limit / 1e6:,.0f} MB are not read; if it is one, "
        f"give --max-pixels {-(-size // _BYTES_PER_PIXEL)}"
    )


def _check_regular(path: str | Path, max_pixels: int) -> None:
    found = os.stat(path)
    # Even opening a pipe waits, for somebody who writes into it.
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "is no regular file")
    if found.st_size > (limit := largest_file(max_pixels)):
        raise OSError(errno.EFBIG, too_large(found.st_size, limit))


def _refusal(name: str, error: Exception, source: str | Path | bytes) -> DataError:
    """Return the error for an image that cannot be decoded; each decoder raises its own for truncated data.

    Raises:
        ShortageError: there is not enough memory, whatever the image.
    """
    with during(f"while decoding {name}", "--workers"):
        pass_on(error)
    if isinstance(error, UnidentifiedImageError):
        with suppress(Exception):
            return DataError(f"{name}: {decode_deep.describe_tiff(_tiff_tags(source))}")
        return DataError(f"{name} is not a picture of a known format ({', '.join(FORMATS)})")
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    if reason.startswith("decoder error"):
        reason = "it is truncated or corrupt"
    return DataError(f"{name} cannot be decoded: {reason}")


def _tiff_tags(source: str | Path | bytes) -> TiffImagePlugin.ImageFileDirectory_v2:
    """Return the tags of a TIFF's first picture. Raises whatever comes where it is none."""
    with io.BytesIO(source) if isinstance(source, bytes) else open_regular(source) as file:
        start = file.read(8)  # twice as long where offsets have 64 bits
        tags = TiffImagePlugin.ImageFileDirectory_v2(
            start if start[2:3] != b"+" and start[3:4] != b"+" else start + file.read(8)
        )
        file.seek(tags.next)
        tags.load(file)
        return tags


def header(
    source: str | Path | bytes, max_pixels: int | None = None
) -> tuple[str, str, tuple[int, int], bool, int, bool]:
    """Return format, mode, width and height, whether EXIF turns it, frames, and whether it is deep, of a good picture.

    Frames are 0 if those after the first, which is used, are damaged.

    Raises:
        DataError: it cannot be decoded.
    """
    try:
        with _open(source, max_pixels or MAX_PIXELS) as image:
            form, mode, size, turned, frames = str(image.format), image.mode, image.size, False, 0
            is_deep = decode_deep.is_deep(image)
            if is_deep and mode not in decode_deep.MODES:
                mode = f"{mode} of 16 bits"
            with suppress(Exception):
                turned = image.getexif().get(_ORIENTATION, 1) not in (0, 1)
            with suppress(Exception):
                frames = getattr(image, "n_frames", 1)
            return form, mode, size, turned, frames, is_deep
    except Exception as error:
        raise _refusal("the image" if isinstance(source, bytes) else str(source), error, source) from error


_ORIENTATION = 0x0112
_ON_ITS_SIDE = (5, 6, 7, 8)


def _draft(image: Image.Image, short_side: int, limit: int) -> int:
    """Have a large JPEG decoded at a fraction of its size, and return by which number its sides are divided."""
    width, height = image.size
    if min(width, height) <= WHOLE_UP_TO:
        return 1
    scale = 2 * short_side / min(width, height)
    # One that would be too large is decoded at a smaller fraction, as long as enough is left of it.
    fitting = next((each for each in (1, 2, 4, 8) if width * height <= limit * each**2), 1)
    if min(width, height) >= fitting * short_side / 2:
        scale = min(scale, 1 / fitting)
    if scale >= 1:
        return 1
    drafted = image.draft("RGB", (max(1, int(width * scale)), max(1, int(height * scale))))
    return 1 if drafted is None else round(width / drafted[1][2])


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in decode_deep.MODES and image.mode != "F":
        # Pillow's own conversion clips 16-bit values at 255.
        values = np.asarray(image).astype(np.int64)
        image = Image.fromarray((values.clip(0, 65535) // 257).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("floating-point pixels have no agreed range; save it as 8 or 16 bit")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    # Pillow would copy one that is RGB already.
    return image if image.mode == "RGB" else image.convert("RGB")


def write_pixels(names: BinaryIO, pixels: BinaryIO, height: int, width: int, *pixel_range: float) -> None:
    """Write what the pictures of these names hold, up to the first that cannot be decoded or has another size."""
    scaling = (pixel_range[0], pixel_range[1]) if pixel_range else None
    pixels.write(OPENING)
    for name in names.read().split(b"\0")[:-1]:
        try:
            found = decode_pixels(os.fsdecode(name), pixel_range=scaling)
        except DataError:
            return
        if found.shape != (height, width, 3):
            return
        pixels.write(found.transpose(2, 0, 1).tobytes())


if __name__ == "__main__":
    # Nobody else writes among the pixels: what is printed goes to stderr from here on.
    with os.fdopen(os.dup(1), "wb") as _output:
        os.dup2(2, 1)
        write_pixels(sys.stdin.buffer, _output, *map(int, sys.argv[1:3]), *map(float, sys.argv[3:]))

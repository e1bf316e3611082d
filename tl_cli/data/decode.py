"""From picture files to pixels. Run as a program, it decodes many pictures of one size.

``python -m tl_cli.data.decode HEIGHT WIDTH [BLACK WHITE]`` reads file names from stdin, each followed by NUL, and
writes ``OPENING`` and the pixels of each picture, (3, HEIGHT, WIDTH) uint8. It stops at the first picture that cannot
be decoded or has another size. Tiny pictures are decoded mostly under the GIL, so threads do not help; a process that
does not load torch starts fast.
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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError, _imaging

from tl_cli.data import decode_deep
from tl_cli.data.decode_deep import PixelRange
from tl_cli.errors import DataError
from tl_cli.shortage import during, pass_on

# What Pillow may open. Its other decoders are rarely tested, or are for documents (PDF, EPS).
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "AVIF")
# Files of these may have more than 8 bits per channel, or bands that are not used.
MAY_BE_DEEP = frozenset((".png", ".tif", ".tiff", ".ppm", ".pgm"))
SUFFIXES = MAY_BE_DEEP | {".jpg", ".jpeg", ".jpe", ".jfif", ".gif", ".bmp", ".webp", ".pbm", ".avif"}
MAX_PIXELS = 89_478_485  # by default; Pillow's own limit, above which it only warns
# Four channels of 32 bits: a larger file holds no picture within the limit, and would only fill the memory.
_BYTES_PER_PIXEL = 16
# Smaller pictures are always decoded whole, so that their pixels do not depend on the size asked for.
WHOLE_UP_TO = 512
# Written before the pixels, so that what a Python prints at its start is not taken for pixels.
OPENING = b"\0tl pixels\0"
_PNG = b"\x89PNG\r\n\x1a\n"
_ORIENTATION = 0x0112
_ON_ITS_SIDE = (5, 6, 7, 8)

# Pillow warns of odd EXIF, palettes and large pictures. The pixels are right or it raises, and size is checked here;
# a filter for each call would not be safe on several threads.
warnings.filterwarnings("ignore", module=r"PIL\.")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# Errors are raised as well. libtiff's own handler prints, and so does Python's logging without handlers.
logging.getLogger("PIL").addHandler(logging.NullHandler())
with suppress(OSError, AttributeError, TypeError):  # Pillow without libtiff, or with libtiff linked in
    ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded picture; a large JPEG perhaps at a fraction of its size.

    Attributes:
        pixels: (H, W, 3) uint8.
        size: height and width of the whole picture in pixels.
        box: left, top, right and bottom of the picture within ``pixels``: at an eighth of the size, 1,001 columns are
            125.125 of 126. None: decoded at full size.
    """

    pixels: np.ndarray
    size: tuple[int, int]
    box: tuple[float, float, float, float] | None = None

    @classmethod
    def of(cls, pixels: np.ndarray) -> "Picture":
        """Return a picture that was decoded at full size, (H, W, 3) uint8."""
        return cls(pixels, (pixels.shape[0], pixels.shape[1]))


def decode_picture(
    source: str | Path | bytes,
    *,
    short_side: int | None = None,
    pixel_range: PixelRange | None = None,
    max_pixels: int | None = None,
) -> Picture:
    """Return a picture in RGB, upright, on white where transparent.

    Args:
        source: a file, or the bytes of one.
        short_side: a large JPEG may be decoded at a fraction of its size, as long as its short side keeps at
            least twice this many pixels. None decodes it whole.
        pixel_range: the values that become black and white in pictures of more than 8 bits per channel; None is
            0 and 65535, and refuses floating-point values.
        max_pixels: maximum number of decoded pixels; None is ``MAX_PIXELS``.

    Raises:
        DataError: it is no image of a known format, is truncated, or has more pixels.
    """
    with _opened(source, max_pixels) as image:
        stored, factor, orientation = image.size, 1, None
        is_scaled = pixel_range is not None and decode_deep.is_deep(image)
        if short_side is not None and not is_scaled:
            factor = _draft(image, short_side, max_pixels or MAX_PIXELS)
        _check_pixels(source, image, stored, max_pixels)
        if is_scaled and pixel_range is not None:
            values = decode_deep.to_levels(decode_deep.read(lambda: _open(source, max_pixels)), pixel_range)
        else:
            orientation = image.getexif().get(_ORIENTATION) if factor > 1 else None
            ImageOps.exif_transpose(image, in_place=True)
            values = np.array(_to_rgb(image))
    if factor == 1:
        return Picture.of(values)
    height, width = values.shape[:2]
    columns, rows = stored[::-1] if orientation in _ON_ITS_SIDE else stored
    right, bottom = columns / factor, rows / factor
    # The last column or row of the file, which may be incomplete, is the first of a picture that was turned.
    left = width - right if orientation in (2, 3, 6, 7) else 0.0
    top = height - bottom if orientation in (3, 4, 7, 8) else 0.0
    return Picture(values, (rows, columns), (left, top, left + right, top + bottom))


def _draft(image: Image.Image, short_side: int, limit: int) -> int:
    """Set a large JPEG to be decoded at a fraction of its size; return by what its sides are divided."""
    width, height = image.size
    if min(width, height) <= WHOLE_UP_TO:
        return 1
    scale = 2 * short_side / min(width, height)
    # One above the limit of pixels is decoded at a smaller fraction, as long as that has enough pixels.
    fitting = next((factor for factor in (1, 2, 4, 8) if width * height <= limit * factor**2), 1)
    if min(width, height) >= fitting * short_side / 2:
        scale = min(scale, 1 / fitting)
    if scale >= 1:
        return 1
    drafted = image.draft("RGB", (max(1, int(width * scale)), max(1, int(height * scale))))
    return 1 if drafted is None else round(width / drafted[1][2])


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point pixels have no agreed range; save it as 8 or 16 bit")
    if image.mode in decode_deep.MODES:
        # Pillow's own conversion clips 16-bit values at 255.
        values = np.asarray(image).astype(np.int64)
        image = Image.fromarray((values.clip(0, 65535) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    # Pillow would copy one that is RGB already.
    return image if image.mode == "RGB" else image.convert("RGB")


def deep_values(path: str | Path, max_pixels: int | None = None) -> np.ndarray:
    """Return the values (H, W, C) of a picture of more than 8 bits per channel.

    Raises:
        DataError: it cannot be decoded at full depth.
    """
    with _opened(path, max_pixels) as image:
        _check_pixels(path, image, image.size, max_pixels)
        return decode_deep.read(lambda: _open(path, max_pixels)).values


@dataclass(frozen=True, slots=True)
class Storage:
    """How a file stores its picture, if not as plain 8-bit channels that are all used.

    Attributes:
        is_deep: more than 8 bits per channel.
        unused: which bands are used, if not all are; else empty.
    """

    is_deep: bool = False
    unused: str = ""


def read_storage(path: str | Path, max_pixels: int | None = None) -> Storage:
    """Return how a file stores its picture. Usually only the first bytes are read; a damaged file counts as plain.

    Raises:
        OSError: it cannot be read.
    """
    with open_regular(path, max_pixels) as file:
        start = file.read(32)
    if start[24:25] == b"\x10" if start.startswith(_PNG) else start.startswith((b"II", b"MM", b"P")):
        with suppress(Exception), _open(path, max_pixels) as image:
            return Storage(decode_deep.is_deep(image), decode_deep.unused_bands(image))
    return Storage()


@dataclass(frozen=True, slots=True)
class Header:
    """What the header of a picture states.

    Attributes:
        kind: such as ``JPEG``.
        mode: Pillow's, such as ``RGB``, ``L``, ``P``, ``CMYK``.
        size: width and height in pixels, as stored.
        turned: its EXIF data ask to turn or mirror it.
        frames: more than one: an animation, of which the first is used; 0: those after the first are damaged.
        is_deep: more than 8 bits per channel.
    """

    kind: str = ""
    mode: str = ""
    size: tuple[int, int] = (0, 0)
    turned: bool = False
    frames: int = 1
    is_deep: bool = False


UNKNOWN_HEADER = Header()


def read_header(source: str | Path | bytes, max_pixels: int | None = None) -> Header:
    """Return what the header of a picture states.

    Raises:
        DataError: it cannot be decoded.
    """
    with _opened(source, max_pixels) as image:
        is_deep, turned, frames = decode_deep.is_deep(image), False, 0
        mode = f"{image.mode} of 16 bits" if is_deep and image.mode not in decode_deep.MODES else image.mode
        kind, size = str(image.format), image.size
        with suppress(Exception):
            turned = image.getexif().get(_ORIENTATION, 1) not in (0, 1)
        with suppress(Exception):
            frames = getattr(image, "n_frames", 1)
        return Header(kind, mode, size, turned, frames, is_deep)


def picture_size(source: str | Path | bytes, max_pixels: int | None = None) -> tuple[int, int]:
    """Return height and width of a picture, upright. Only its header is read.

    Args:
        source: a file, or the bytes of one.
        max_pixels: larger files than such a picture needs are not read.

    Raises:
        DataError: it is no picture of a known format, or cannot be read.
    """
    with _opened(source, max_pixels) as image:
        width, height = image.size
        # Pillow would decode a PNG in search of EXIF data after its pixels.
        has_exif = "exif" in image.info or image.format == "TIFF"
        is_on_its_side = has_exif and image.getexif().get(_ORIENTATION) in _ON_ITS_SIDE
        return (width, height) if is_on_its_side else (height, width)


@contextmanager
def _opened(source: str | Path | bytes, max_pixels: int | None) -> Iterator[Image.Image]:
    """Open a picture.

    Raises:
        DataError: opening or using it fails; each decoder has its own errors for truncated data.
        ShortageError: there is not enough memory, whatever the picture.
    """
    name = "the image" if isinstance(source, bytes) else str(source)
    try:
        with _open(source, max_pixels) as image:
            yield image
    except DataError:
        raise
    except Exception as error:
        with during(f"while decoding {name}", "--workers"):
            pass_on(error)
        raise DataError(_message(name, error, source)) from error


def _open(source: str | Path | bytes, max_pixels: int | None) -> Image.Image:
    """Open a picture without Pillow's limit on pixels.

    From twice its limit on Pillow refuses JPEGs too, of which few pixels are decoded. The limit is the whole process's,
    so it is lifted only while such a picture is opened.
    """
    if not isinstance(source, bytes):
        _check_regular(source, max_pixels)
    try:
        image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        with _LIMIT_LOCK:
            limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)
            finally:
                Image.MAX_IMAGE_PIXELS = limit
    return decode_deep.without_undeclared_opacity(image)


_LIMIT_LOCK = threading.Lock()


def _check_pixels(
    source: str | Path | bytes, image: Image.Image, stored: tuple[int, int], max_pixels: int | None
) -> None:
    """Refuse a picture with too many pixels to decode; of a JPEG at a fraction of its size few are decoded."""
    limit = max_pixels or MAX_PIXELS
    if image.width * image.height > limit:
        name, (width, height) = "the image" if isinstance(source, bytes) else source, stored
        raise DataError(
            f"{name} has {width} x {height} pixels; at most {limit:,} are decoded; "
            f"with --max-pixels {width * height} it is decoded too"
        )


def open_regular(path: str | Path, max_pixels: int | None = None) -> io.BufferedReader:
    """Open the file of a picture for reading: no pipe or device, and no larger than a picture needs.

    Raises:
        OSError: it is none, or cannot be read.
    """
    _check_regular(path, max_pixels)
    return open(path, "rb")  # noqa: PTH123 (the caller closes it)


def _check_regular(path: str | Path, max_pixels: int | None) -> None:
    status = os.stat(path)
    # Even opening a pipe waits, until a program writes into it.
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "is no regular file")
    if status.st_size > (limit := largest_file(max_pixels)):
        raise OSError(errno.EFBIG, too_large(status.st_size, limit))


def largest_file(max_pixels: int | None = None) -> int:
    """Return the largest size of a picture file in bytes."""
    return _BYTES_PER_PIXEL * (max_pixels or MAX_PIXELS)


def too_large(size: int, limit: int) -> str:
    """Return why a file of ``size`` bytes is not read, and what to do."""
    return (
        f"the file has {size / 1e6:,.0f} MB; pictures of more than {limit / 1e6:,.0f} MB are not read; if it is one, "
        f"give --max-pixels {-(-size // _BYTES_PER_PIXEL)}"
    )


def _message(name: str, error: Exception, source: str | Path | bytes) -> str:
    """Return the message about a picture that cannot be decoded."""
    if isinstance(error, UnidentifiedImageError):
        with suppress(Exception):
            return f"{name}: {decode_deep.describe_tiff(_tiff_tags(source))}"
        return f"{name} is not a picture of a known format ({', '.join(FORMATS)})"
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return f"{name} cannot be decoded: {'it is truncated or corrupt' if reason.startswith('decoder error') else reason}"


def _tiff_tags(source: str | Path | bytes) -> TiffImagePlugin.ImageFileDirectory_v2:
    """Return the tags of a TIFF's first picture; raises various errors if it is no TIFF."""
    with io.BytesIO(source) if isinstance(source, bytes) else open_regular(source) as file:
        start = file.read(8)  # twice as long with offsets of 64 bits
        has_long_offsets = b"+" in (start[2:3], start[3:4])
        tags = TiffImagePlugin.ImageFileDirectory_v2(start + file.read(8) if has_long_offsets else start)
        file.seek(tags.next)
        tags.load(file)
        return tags


def write_pixels(names: BinaryIO, pixels: BinaryIO, height: int, width: int, *pixel_range: float) -> None:
    """Write the pixels of these pictures, up to the first that cannot be decoded or has another size."""
    scaling = (pixel_range[0], pixel_range[1]) if pixel_range else None
    pixels.write(OPENING)
    for name in names.read().split(b"\0")[:-1]:
        try:
            values = decode_picture(os.fsdecode(name), pixel_range=scaling).pixels
        except DataError:
            return
        if values.shape != (height, width, 3):
            return
        pixels.write(values.transpose(2, 0, 1).tobytes())


if __name__ == "__main__":
    # Only pixels go to stdout: what is printed goes to stderr from here on.
    with os.fdopen(os.dup(1), "wb") as _output:
        os.dup2(2, 1)
        write_pixels(sys.stdin.buffer, _output, *map(int, sys.argv[1:3]), *map(float, sys.argv[3:]))

"""Handmade images, good and broken."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def picture(kind: str, seed: int = 0, size: tuple[int, int] = (64, 48), **options: object) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    held = io.BytesIO()
    Image.fromarray(pixels).save(held, kind, **options)
    return held.getvalue()


def _png_with(width: int, height: int) -> bytes:
    """Return a PNG of a few bytes with any size in its header."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def handmade_images() -> dict[str, tuple[bytes, bool]]:
    """Return thirty handmade images, and whether each can be decoded."""
    grey16 = np.linspace(0, 65535, 64 * 48).reshape(48, 64).astype(np.uint16)

    def saved(image: Image.Image, kind: str, **options: object) -> bytes:
        held = io.BytesIO()
        image.save(held, kind, **options)
        return held.getvalue()

    palette = Image.new("P", (64, 48), 3)
    palette.info["transparency"] = 3
    colour = Image.fromarray(np.full((48, 64, 3), (200, 30, 30), np.uint8))
    rotated = {}
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = turn
        rotated[f"exif{turn}.jpg"] = (saved(colour, "JPEG", exif=exif), True)
    frames = [Image.new("RGB", (64, 48), (index * 60, 0, 0)) for index in range(4)]
    jpeg = picture("JPEG", 2, (600, 400))
    return {
        **rotated,
        "cmyk.jpg": (saved(colour.convert("CMYK"), "JPEG"), True),
        "grey.jpg": (saved(colour.convert("L"), "JPEG"), True),
        "sixteen.png": (saved(Image.fromarray(grey16), "PNG"), True),
        "sixteen.tif": (saved(Image.fromarray(grey16), "TIFF"), True),
        "float.tif": (saved(Image.fromarray(grey16.astype(np.float32)), "TIFF"), False),
        "palette.png": (saved(palette, "PNG", transparency=3), True),
        "alpha.png": (saved(colour.convert("RGBA"), "PNG"), True),
        "grey_alpha.png": (saved(colour.convert("LA"), "PNG"), True),
        "one_bit.png": (saved(colour.convert("1"), "PNG"), True),
        "animated.gif": (saved(frames[0], "GIF", save_all=True, append_images=frames[1:]), True),
        "animated.webp": (saved(frames[0], "WEBP", save_all=True, append_images=frames[1:]), True),
        "empty.jpg": (b"", False),
        "thin.png": (saved(Image.new("RGB", (1, 3000)), "PNG"), True),
        "flat.png": (saved(Image.new("RGB", (3000, 1)), "PNG"), True),
        "bomb.png": (_png_with(60_000, 60_000), False),
        "page.jpg": (b"<!DOCTYPE html><html><body>404</body></html>", False),
        "text.png": (b"not found\n", False),
        "half.jpg": (jpeg[: len(jpeg) // 2], False),
        "one_byte_short.jpg": (jpeg[:-200], False),
        "nul.png": (b"\0" * 5000, False),
        "png_named.jpg": (saved(colour, "PNG"), True),
        "pdf.jpg": (b"%PDF-1.4\n%%EOF", False),
    }

"""Image files of more than 8 bits and of many bands, written byte by byte, as Pillow writes only some of them."""

import struct
import zlib
from collections.abc import Sequence

import numpy as np

FLOAT, SIGNED = 3, 2


def png16(values: np.ndarray, *, transparent: Sequence[int] | None = None) -> bytes:
    """Return a 16-bit PNG of (H, W, 1 to 4) values: grey, grey and opacity, RGB, RGB and opacity."""
    height, width, channels = values.shape
    rows = values.astype(">u2")
    raw = b"".join(_filtered(rows, row) for row in range(height))
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))]
    if transparent is not None:
        chunks.append((b"tRNS", struct.pack(f">{len(transparent)}H", *transparent)))
    chunks += [(b"IDAT", zlib.compress(raw)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def _filtered(rows: np.ndarray, row: int) -> bytes:
    """Return a row with PNG's filter "Up" if there is a row above it; a decoder must undo it byte by byte."""
    here = np.frombuffer(rows[row].tobytes(), np.uint8)
    if row == 0:
        return b"\0" + here.tobytes()
    return b"\2" + (here - np.frombuffer(rows[row - 1].tobytes(), np.uint8)).tobytes()


def tiff(
    values: np.ndarray,
    *,
    photometric: int | None = None,
    extra: Sequence[int] = (),
    planar: int = 1,
    compressed: bool = False,
    order: str = "<",
    orientation: int = 1,
) -> bytes:
    """Return a TIFF of (H, W, C) values of any dtype.

    Args:
        photometric: 0 white is zero, 1 black is zero, 2 RGB, 5 CMYK; None is RGB from three channels on.
        extra: what the channels after the colours are: 0 unspecified, 1 and 2 opacity. Empty leaves the tag out.
        planar: 2 stores channel after channel.
    """
    height, width, count = values.shape
    data = values.astype(values.dtype.newbyteorder(order))
    strips = [data[..., band].tobytes() for band in range(count)] if planar == 2 else [data.tobytes()]
    strips = [zlib.compress(strip) for strip in strips] if compressed else strips
    form = {"u": 1, "i": SIGNED, "f": FLOAT}[values.dtype.kind]
    photometric = (2 if count >= 3 else 1) if photometric is None else photometric
    tags = {
        256: ("I", [width]), 257: ("I", [height]), 258: ("H", [8 * values.dtype.itemsize] * count),
        259: ("H", [8 if compressed else 1]), 262: ("H", [photometric]), 273: ("I", [0] * len(strips)),
        274: ("H", [orientation]), 277: ("H", [count]), 278: ("I", [height]),
        279: ("I", [len(strip) for strip in strips]), 284: ("H", [planar]), 338: ("H", list(extra)),
        339: ("H", [form] * count),
    }  # fmt: skip
    if not extra:
        del tags[338]
    head = _directory(tags, order)
    tags[273] = ("I", [len(head) + sum(map(len, strips[:number])) for number in range(len(strips))])
    return _directory(tags, order) + b"".join(strips)


def _directory(tags: dict[int, tuple[str, list[int]]], order: str) -> bytes:
    entries, beyond = b"", b""
    start = 8 + 2 + 12 * len(tags) + 4
    for tag, (kind, numbers) in sorted(tags.items()):
        raw = struct.pack(f"{order}{len(numbers)}{kind}", *numbers)
        entries += struct.pack(f"{order}HHI", tag, {"H": 3, "I": 4}[kind], len(numbers))
        entries += raw.ljust(4, b"\0") if len(raw) <= 4 else struct.pack(f"{order}I", start + len(beyond))
        beyond += raw if len(raw) > 4 else b""
    magic = b"II*\0" if order == "<" else b"MM\0*"
    return magic + struct.pack(f"{order}IH", 8, len(tags)) + entries + b"\0" * 4 + beyond

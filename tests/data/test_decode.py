import io
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tl_cli.data.decode import decode_picture
from tl_cli.errors import DataError


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixel(data: bytes, row: int = 0, column: int = 0) -> tuple[int, ...]:
    return tuple(decode_picture(data).pixels[row, column].tolist())


def test_grayscale_becomes_rgb() -> None:
    assert pixel(encoded(Image.new("L", (4, 4), 77))) == (77, 77, 77)
    assert pixel(encoded(Image.new("1", (4, 4), 1))) == (255, 255, 255)


@pytest.mark.parametrize("value", [0, 257 * 40, 40000, 65535])
def test_sixteen_bits_are_rescaled_not_clipped(value: int) -> None:
    grey = Image.fromarray(np.full((4, 4), value, dtype=np.uint16))
    assert pixel(encoded(grey)) == (value // 257,) * 3


def test_transparency_shows_white() -> None:
    half = Image.new("RGBA", (2, 1), (200, 0, 0, 255))
    half.putpixel((1, 0), (0, 255, 0, 0))
    assert pixel(encoded(half), 0, 0) == (200, 0, 0)
    assert pixel(encoded(half), 0, 1) == (255, 255, 255)


def test_a_palette_with_transparency_is_decoded_correctly() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    assert pixel(encoded(image), 0, 1) == (200, 100, 50)
    assert pixel(encoded(image, transparency=1), 0, 1) == (255, 255, 255)
    assert pixel(encoded(image, transparency=1), 0, 0) == (10, 20, 30)


def test_cmyk_is_not_inverted() -> None:
    red, green, blue = pixel(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95))
    assert red > 200
    assert max(green, blue) < 60


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_undone(orientation: int) -> None:
    upright = Image.new("RGB", (4, 6), "black")
    upright.putpixel((0, 0), (255, 255, 255))
    inverse = {
        1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270,
    }[orientation]  # fmt: skip
    stored = upright if inverse is None else upright.transpose(inverse)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = decode_picture(encoded(stored, "PNG", exif=exif)).pixels
    assert image.shape == (6, 4, 3)
    assert image[0, 0, 0] == 255
    assert image.sum() == 3 * 255


def test_a_large_jpeg_is_decoded_small_enough_and_large_enough() -> None:
    image = Image.effect_noise((1600, 1200), 60).convert("RGB")
    drafted = decode_picture(encoded(image, "JPEG"), short_side=100).pixels
    assert drafted.shape[0] < 1200
    assert min(drafted.shape[:2]) >= 200


@pytest.mark.parametrize("data", [b"", b"<html></html>", b"GIF89a"])
def test_other_files_are_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "odd name.jpg"
    path.write_bytes(data)
    with pytest.raises(DataError, match="odd name.jpg"):
        decode_picture(path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_truncated_image_is_refused_and_named(kind: str, tmp_path: Path) -> None:
    whole = encoded(Image.effect_noise((64, 64), 80).convert("RGB"), kind)
    path = tmp_path / "torn.img"
    path.write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(DataError, match=r"torn\.img"):
        decode_picture(path)


def test_a_decompression_bomb_is_refused() -> None:
    with pytest.raises(DataError, match="pixels"):
        decode_picture(encoded(Image.new("1", (20_000, 10_000))))


def test_a_higher_limit_decodes_a_large_image_whole(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.new("1", (9600, 9400), 1).save(path)
    with pytest.raises(DataError, match="--max-pixels 90240000 "):
        decode_picture(path)
    assert decode_picture(path, max_pixels=90_240_000).pixels.shape == (9400, 9600, 3)
    with pytest.raises(DataError, match="at most 90,239,999"):
        decode_picture(path, max_pixels=90_239_999)


@pytest.mark.parametrize("size", [(12000, 9000), (16320, 12240)])
def test_the_limit_on_pixels_is_of_the_decoded_pixels_of_a_large_jpeg(size: tuple[int, int], tmp_path: Path) -> None:
    """Phones take images of 108 and 200 megapixels; at an eighth of the sides these are 1.7 and 3.1."""
    path = tmp_path / "phone.jpg"
    Image.new("L", size, 90).save(path, quality=30)
    decoded = decode_picture(path, short_side=560)
    assert decoded.size == (size[1], size[0])
    assert decoded.pixels.shape == (-(-size[1] // 8), -(-size[0] // 8), 3)
    assert np.abs(decoded.pixels.astype(int) - 90).max() <= 3
    # For a large input a larger fraction is decoded, within the limit.
    assert decode_picture(path, short_side=4500).pixels.shape[0] == size[1] // 2
    needed = size[0] * size[1]
    with pytest.raises(DataError, match=rf"{size[0]} x {size[1]} pixels; at most 89,478,485 .*--max-pixels {needed} "):
        decode_picture(path)


def test_pillows_limit_remains_for_other_code_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit applies to the whole process: a notebook that loads a model keeps its protection."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    large, whole = encoded(Image.new("L", (100, 50))), io.BytesIO(encoded(Image.new("L", (100, 50))))
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda _: decode_picture(large).size, range(200))) == {(50, 100)}
    with pytest.raises(DataError):
        decode_picture(b"no picture")
    with pytest.raises(Image.DecompressionBombError):
        Image.open(whole)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    program = "from PIL import Image; import tl_cli.data.decode; print(Image.MAX_IMAGE_PIXELS)"
    shown = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "89478485"

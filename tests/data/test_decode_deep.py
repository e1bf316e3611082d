import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.deep_pictures import png16, tiff
from tl_cli.data.decode import decode_picture
from tl_cli.data.decode_pool import decode_aside
from tl_cli.errors import DataError

TWELVE_BITS = (0.0, 4095.0)
RAMP = np.arange(4096).reshape(64, 64, 1)
COLOURS = np.concatenate([RAMP, RAMP.transpose(1, 0, 2), RAMP[::-1]], axis=2)
OPAQUE = np.full_like(RAMP, 65535)


def expected_levels(values: np.ndarray, low: int = 0, high: int = 4095) -> np.ndarray:
    """Return the levels of integers, in integers: 255 (v - low) / (high - low), rounded half up."""
    clipped = values.astype(np.int64).clip(low, high) - low
    levels = (2 * 255 * clipped + (high - low)) // (2 * (high - low))
    return np.broadcast_to(levels.astype(np.uint8), (*values.shape[:2], 3))


def pnm(kind: str, values: np.ndarray, most: int) -> bytes:
    head = f"{kind}\n# made\n{values.shape[1]} {values.shape[0]}\n{most}\n".encode()
    plain = kind in ("P2", "P3")
    return head + (" ".join(map(str, values.ravel().tolist())).encode() if plain else values.astype(">u2").tobytes())


GREY = {
    "PNG": png16(RAMP),
    "PNG with opacity": png16(np.concatenate([RAMP, OPAQUE], axis=2)),
    "TIFF": tiff(RAMP.astype(np.uint16)),
    "big-endian TIFF": tiff(RAMP.astype(np.uint16), order=">"),
    "compressed big-endian TIFF": tiff(RAMP.astype(np.uint16), order=">", compressed=True),
    "int32 TIFF": tiff(RAMP.astype(np.int32)),
    "uint32 TIFF": tiff(RAMP.astype(np.uint32), compressed=True),
    "float TIFF": tiff(RAMP.astype(np.float32)),
    "PGM of 12 bits": pnm("P5", RAMP, 4095),
    "PGM of 16 bits": pnm("P5", RAMP, 65535),
    "plain PGM": pnm("P2", RAMP, 4095),
}
RGB = {
    "PNG": png16(COLOURS),
    "PNG with opacity": png16(np.concatenate([COLOURS, OPAQUE], axis=2)),
    "TIFF": tiff(COLOURS.astype(np.uint16)),
    "compressed TIFF": tiff(COLOURS.astype(np.uint16), compressed=True),
    "big-endian TIFF": tiff(COLOURS.astype(np.uint16), order=">"),
    "compressed big-endian TIFF": tiff(COLOURS.astype(np.uint16), order=">", compressed=True),
    "TIFF in planes": tiff(COLOURS.astype(np.uint16), planar=2),
    "big-endian TIFF in planes": tiff(COLOURS.astype(np.uint16), planar=2, order=">"),
    "TIFF with opacity": tiff(np.concatenate([COLOURS, OPAQUE], axis=2).astype(np.uint16), extra=(2,)),
    "TIFF multiplied by opacity": tiff(np.concatenate([COLOURS, OPAQUE], axis=2).astype(np.uint16), extra=(1,)),
    "TIFF and near infrared": tiff(np.concatenate([COLOURS, RAMP], axis=2).astype(np.uint16), extra=(0,)),
    "TIFF and an undeclared band": tiff(np.concatenate([COLOURS, RAMP], axis=2).astype(np.uint16)),
    "TIFF of bands": tiff(np.concatenate([COLOURS, RAMP], axis=2).astype(np.uint16), photometric=1, extra=(0, 0, 0)),
    "PPM of 12 bits": pnm("P6", COLOURS, 4095),
    "PPM of 16 bits": pnm("P6", COLOURS, 65535),
    "plain PPM": pnm("P3", COLOURS, 4095),
}


@pytest.mark.parametrize("kind", GREY)
def test_a_grey_ramp_of_twelve_bits_has_all_256_levels_evenly(kind: str) -> None:
    decoded = decode_picture(GREY[kind], pixel_range=TWELVE_BITS).pixels
    assert np.array_equal(decoded, expected_levels(RAMP))
    assert np.all(np.diff(decoded[..., 0].ravel().astype(int)) >= 0)
    counts = np.bincount(decoded[..., 0].ravel(), minlength=256)
    assert set(counts[1:-1]) <= {16, 17}
    # From 0 to 4095, the first and the last level are half as wide.
    assert set(counts[[0, -1]]) <= {8, 9}


@pytest.mark.parametrize("kind", RGB)
def test_colours_of_sixteen_bits_keep_their_low_bytes(kind: str) -> None:
    assert np.array_equal(decode_picture(RGB[kind], pixel_range=TWELVE_BITS).pixels, expected_levels(COLOURS))


def test_signed_and_negative_numbers_are_scaled_too() -> None:
    signed = (RAMP - 1000).astype(np.int16)
    expected = expected_levels(RAMP)
    assert np.array_equal(decode_picture(tiff(signed), pixel_range=(-1000, 3095)).pixels, expected)
    assert np.array_equal(decode_picture(tiff(signed.astype(np.float32)), pixel_range=(-1000, 3095)).pixels, expected)


def test_large_unsigned_numbers_do_not_become_negative() -> None:
    large = RAMP.astype(np.uint32) << 20
    decoded = decode_picture(tiff(large), pixel_range=(0, 4095 << 20)).pixels
    assert np.array_equal(decoded, expected_levels(RAMP))


def test_with_white_is_zero_the_smallest_value_is_white() -> None:
    for compressed in (False, True):
        data = tiff(RAMP.astype(np.uint16), photometric=0, compressed=compressed)
        assert np.array_equal(decode_picture(data, pixel_range=TWELVE_BITS).pixels, 255 - expected_levels(RAMP))


def test_values_outside_the_range_are_clipped_and_nan_is_black() -> None:
    row = np.array([[-np.inf, -5, 0, 10, 12, np.inf, np.nan]], dtype=np.float32)[..., None]
    decoded = decode_picture(tiff(row), pixel_range=(0, 10)).pixels
    assert decoded[0, :, 0].tolist() == [0, 0, 0, 255, 255, 255, 0]


def test_a_half_is_rounded_up() -> None:
    row = np.array([[0, 1, 3, 509, 510]], dtype=np.uint16)[..., None]
    assert decode_picture(tiff(row), pixel_range=(0, 510)).pixels[0, :, 0].tolist() == [0, 1, 2, 255, 255]


def test_transparency_of_16_bit_images_shows_white() -> None:
    opacity = np.array([[0, 65535, 32896]])[..., None]  # 32896 / 65535 = 128 / 255
    dark = np.zeros((1, 3, 1), dtype=np.int64)
    expected = [255, 0, 127]  # 255 - 128
    grey = decode_picture(png16(np.concatenate([dark, opacity], axis=2)), pixel_range=TWELVE_BITS).pixels
    assert grey[0, :, 0].tolist() == expected
    rgb = np.concatenate([dark, dark, dark, opacity], axis=2)
    for data in (png16(rgb), tiff(rgb.astype(np.uint16), extra=(2,)), tiff(rgb.astype(np.uint16), extra=(1,))):
        assert decode_picture(data, pixel_range=TWELVE_BITS).pixels[0, :, 2].tolist() == expected


def test_a_transparent_value_of_a_deep_png_shows_white() -> None:
    values = np.array([[7, 8]])[..., None]
    assert decode_picture(png16(values, transparent=[7]), pixel_range=(0, 8)).pixels[0, :, 0].tolist() == [255, 255]
    assert decode_picture(png16(values, transparent=[8]), pixel_range=(0, 8)).pixels[0, :, 0].tolist() == [223, 255]
    rgb = np.repeat(values, 3, axis=2)
    assert decode_picture(png16(rgb, transparent=[8, 8, 8]), pixel_range=(0, 8)).pixels[0, :, 0].tolist() == [223, 255]


def test_16_bit_images_are_turned_upright() -> None:
    values = np.arange(6).reshape(2, 3, 1)
    for data in (values.astype(np.uint16), np.repeat(values, 3, axis=2).astype(np.uint16)):
        decoded = decode_picture(tiff(data, orientation=6), pixel_range=(0, 255)).pixels
        # The stored first row is the right side: Pillow's and EXIF's ROTATE_270.
        assert decoded[..., 0].tolist() == np.rot90(values[..., 0], -1).tolist()


def test_without_a_range_16_bit_images_are_decoded_as_in_earlier_versions() -> None:
    assert np.array_equal(decode_picture(GREY["PNG"]).pixels[..., 0], RAMP[..., 0] // 257)
    assert np.array_equal(decode_picture(RGB["PNG"]).pixels, COLOURS >> 8)
    with pytest.raises(DataError, match="floating-point"):
        decode_picture(GREY["float TIFF"])


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK"])
def test_a_range_does_not_change_8_bit_images(mode: str) -> None:
    image = Image.effect_noise((16, 16), 90).convert(mode)
    for kind in ("TIFF", *(["PNG"] if mode != "CMYK" else [])):
        buffer = io.BytesIO()
        image.save(buffer, kind)
        data = buffer.getvalue()
        assert np.array_equal(decode_picture(data, pixel_range=(0, 7)).pixels, decode_picture(data).pixels)


def test_files_that_cannot_be_read_at_full_depth_are_named() -> None:
    planes = tiff(COLOURS.astype(np.uint16), planar=2, compressed=True)
    with pytest.raises(DataError, match="interleaved"):
        decode_picture(planes, pixel_range=TWELVE_BITS)
    with pytest.raises(DataError, match="64-bit floating-point"):
        decode_picture(tiff(RAMP.astype(np.float64)), pixel_range=TWELVE_BITS)
    with pytest.raises(DataError, match="3 bands of 32-bit floating-point"):
        decode_picture(tiff(COLOURS.astype(np.float32)), pixel_range=TWELVE_BITS)


@pytest.mark.parametrize("data", [*GREY.values(), *RGB.values()], ids=[*GREY, *(f"RGB {kind}" for kind in RGB)])
def test_a_truncated_16_bit_image_is_refused_in_one_line(data: bytes) -> None:
    for part in (0.3, 0.6, 0.9):
        with pytest.raises(DataError) as refused:
            decode_picture(data[: int(len(data) * part)], pixel_range=TWELVE_BITS)
        assert "\n" not in str(refused.value)


def test_decoding_processes_use_the_range(tmp_path: Path) -> None:
    names = []
    for number in range(6):
        (tmp_path / f"{number}.png").write_bytes(png16(RAMP[:8, :8] * number))
        names.append(str(tmp_path / f"{number}.png"))
    pixels = np.zeros((6, 3, 8, 8), dtype=np.uint8)
    left = decode_aside(lambda share: names[share.start : share.stop], pixels, 2, lambda done: None, (0.0, 2275.0))
    assert [len(share) for share in left] == [0, 0]
    for number in range(6):
        assert np.array_equal(pixels[number].transpose(1, 2, 0), expected_levels(RAMP[:8, :8] * number, 0, 2275))


GRADIENT = np.arange(256).astype(np.uint8).reshape(16, 16, 1)
NEAR_INFRARED = np.full_like(GRADIENT, 10)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("planar", [1, 2])
def test_a_fourth_band_is_transparency_only_if_the_file_declares_it(compressed: bool, planar: int) -> None:
    bands = np.concatenate([GRADIENT, GRADIENT[::-1], GRADIENT.transpose(1, 0, 2), NEAR_INFRARED], axis=2)
    undeclared = tiff(bands, compressed=compressed, planar=planar)
    assert np.array_equal(decode_picture(undeclared).pixels, bands[..., :3])
    if planar == 1 or compressed:
        assert np.array_equal(
            decode_picture(tiff(bands, extra=(0,), compressed=compressed, planar=planar)).pixels, bands[..., :3]
        )
    declared = decode_picture(tiff(bands, extra=(2,), compressed=compressed, planar=planar)).pixels
    # On white: 10 of 255 parts of the colour; Pillow rounds to the nearest.
    exact = 255 + (bands[..., :3].astype(int) - 255) * 10 / 255
    assert np.abs(declared - exact).max() <= 1


@pytest.mark.parametrize("count", [4, 5, 6])
@pytest.mark.parametrize("photometric", [1, 2])
def test_of_more_bands_the_first_three_are_rgb(count: int, photometric: int) -> None:
    bands = np.concatenate(
        [GRADIENT, GRADIENT[::-1], GRADIENT.transpose(1, 0, 2), *[NEAR_INFRARED] * (count - 3)], axis=2
    )
    data = tiff(bands, photometric=photometric, extra=(0,) * (count - (3 if photometric == 2 else 1)))
    assert np.array_equal(decode_picture(data).pixels, bands[..., :3])


def test_of_two_bands_the_first_is_grey_unless_the_second_is_opacity() -> None:
    bands = np.concatenate([GRADIENT, NEAR_INFRARED], axis=2)
    assert np.array_equal(decode_picture(tiff(bands, extra=(0,))).pixels[..., :1], GRADIENT)
    assert decode_picture(tiff(bands, extra=(2,))).pixels.min() >= 245 - 1


def test_inks_are_converted_as_inks() -> None:
    inks = np.zeros((1, 2, 4), dtype=np.uint16)
    inks[0, 1] = (0, 65535, 65535, 0)
    for data in (tiff(inks, photometric=5), tiff((inks >> 8).astype(np.uint8), photometric=5)):
        decoded = decode_picture(data, pixel_range=TWELVE_BITS).pixels
        assert decoded[0, 0].tolist() == [255, 255, 255]
        assert decoded[0, 1].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (tiff(np.repeat(GRADIENT, 8, axis=2), extra=(0,) * 5), "8 bands of 8-bit integers cannot be read; save three"),
        (tiff(np.repeat(RAMP, 8, axis=2).astype(np.uint16), photometric=1, extra=(0,) * 7), "8 bands of 16-bit"),
        (tiff(np.repeat(GRADIENT, 5, axis=2)), "5 bands"),
        (tiff(np.repeat(GRADIENT, 4, axis=2), extra=(0,), planar=2), "4 bands of 8-bit integers, stored apart,"),
    ],
)
def test_the_error_for_unreadable_bands_counts_them_and_gives_a_fix(data: bytes, what: str, tmp_path: Path) -> None:
    path = tmp_path / "satellite.tif"
    path.write_bytes(data)
    for source in (path, data):
        with pytest.raises(DataError, match=what) as refused:
            decode_picture(source)
        assert "gdal_translate" in str(refused.value)
    with pytest.raises(DataError, match=r"satellite\.tif"):
        decode_picture(path)


def test_neither_pillow_nor_libtiff_prints(tmp_path: Path) -> None:
    whole = tiff(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8), compressed=True)
    (tmp_path / "torn.tif").write_bytes(whole[:-200])
    (tmp_path / "bands.tif").write_bytes(tiff(np.repeat(GRADIENT, 8, axis=2), extra=(0,) * 5))
    code = (
        "import sys\nfrom tl_cli.data.decode import decode_picture\nfrom tl_cli.errors import DataError\n"
        "for name in sys.argv[1:]:\n  try: decode_picture(name)\n  except DataError: print('refused')"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    completed = subprocess.run(
        [sys.executable, "-c", code, *map(str, sorted(tmp_path.iterdir()))], capture_output=True, env=environment
    )
    assert completed.stdout.split() == [b"refused", b"refused"]
    assert completed.stderr == b""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from tl_cli.contract import Preprocessing
from tl_cli.data.decode import decode_picture
from tl_cli.data.preprocess import normalise, resize_crop
from tl_cli.errors import DataError


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(300, 400), (20, 30), (256, 256)])
def test_preprocessing_is_torchvisions(interpolation, size: tuple[int, int]) -> None:
    how = Preprocessing(resize=256, crop=224, interpolation=interpolation)
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, *size), dtype=np.uint8))
    cropped = v2.Compose(
        [v2.Resize(256, interpolation=v2.InterpolationMode(interpolation), antialias=True), v2.CenterCrop(224)]
    )(image)
    seen = resize_crop(image[None], how)
    # Where torch finds no AVX2, torchvision resizes bilinearly in float32: without the rounding between its two passes.
    assert (seen[0].int() - cropped.int()).abs().max() <= (interpolation == "bilinear")
    to_input = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(how.mean, how.std)])
    torch.testing.assert_close(normalise(seen, how)[0], to_input(seen[0]))


@pytest.mark.parametrize("size", [(12000, 9000), (16320, 12240)])
def test_what_counts_of_a_large_jpeg_is_what_is_decoded(size: tuple[int, int], tmp_path: Path) -> None:
    """Phones give 108 and 200 megapixels; at an eighth of the sides that is 1.7 and 3.1."""
    path = tmp_path / "phone.jpg"
    Image.new("L", size, 90).save(path, quality=30)
    found = decode_picture(path, short_side=560)
    assert found.size == (size[1], size[0])
    assert found.values.shape == (-(-size[1] // 8), -(-size[0] // 8), 3)
    assert np.abs(found.values.astype(int) - 90).max() <= 3
    # For a large input a larger fraction, as far as the limit allows.
    assert decode_picture(path, short_side=4500).values.shape[0] == size[1] // 2
    needed = size[0] * size[1]
    with pytest.raises(DataError, match=rf"{size[0]} x {size[1]} pixels; at most 89,478,485 .*--max-pixels {needed} "):
        decode_picture(path)

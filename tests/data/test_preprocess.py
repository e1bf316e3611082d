"""How an image becomes the input of a network, compared with timm's and torchvision's own transforms."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from timm.data import create_transform
from torchvision.transforms import v2

from tl_cli.contract import Interpolation, Preprocessing
from tl_cli.data.augment.geometry import crop_boxes, resized_crops
from tl_cli.data.augment.settings import Augmentation
from tl_cli.data.batches import Loader
from tl_cli.data.decode import Picture, decode_picture, picture_size
from tl_cli.data.images import FileImages, PackedImages, pack
from tl_cli.data.packed_names import Names
from tl_cli.data.preprocess import cut_box, mean_colour, normalise, read_input, resize_crop
from tl_cli.data.sources.folder import scan
from tl_cli.data.threads import Threads

MODES = ("center", "squash", "border")
# Width and height: square, odd, wide, tall, smaller than the input, and so long that they are not resized as a whole.
SHAPES = [(64, 64), (91, 67), (301, 123), (77, 255), (522, 210), (33, 20), (401, 37), (13, 317), (900, 1), (1, 900)]
MEAN = (0.2, 0.4, 0.6)


def textured(width: int, height: int, grain: int = 8, seed: int = 0) -> Image.Image:
    """Return an image with detail of ``grain`` pixels, different everywhere."""
    size = (max(2, height // grain), max(2, width // grain), 3)
    values = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)


def as_png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def as_jpeg(image: Image.Image, orientation: int = 1) -> bytes:
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    image.save(buffer, "JPEG", quality=92, exif=exif)
    return buffer.getvalue()


def preprocessing(
    mode: str, resize: int = 64, crop: int = 56, interpolation: Interpolation = "bilinear"
) -> Preprocessing:
    return Preprocessing(resize=resize, crop=crop, interpolation=interpolation, crop_mode=mode, mean=MEAN)


def timm_transform(image: Image.Image, how: Preprocessing) -> np.ndarray:
    """Return an image after timm's evaluation transform, before normalisation: (3, crop, crop)."""
    transform = create_transform(
        (3, how.crop, how.crop), is_training=False, normalize=False, interpolation=how.interpolation, mean=how.mean,
        crop_pct=how.crop / how.resize, crop_mode=how.crop_mode,
    )  # fmt: skip
    return transform(image).numpy().astype(int)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("resize", "crop"), [(64, 56), (56, 56)])
def test_every_crop_mode_equals_timms(mode: str, interpolation: Interpolation, resize: int, crop: int) -> None:
    how = preprocessing(mode, resize, crop, interpolation)
    for shape in SHAPES:
        if mode == "border" and min(shape) * resize / max(shape) < 1:
            continue  # timm resizes to zero pixels, and fails
        image = textured(*shape)
        difference = np.abs(read_input(as_png(image), how).numpy() - timm_transform(image, how))
        # torch and Pillow round their weights differently.
        assert difference.max() <= 2, shape
        assert difference.mean() < 0.25, shape


@pytest.mark.parametrize("mode", MODES)
def test_an_elongated_image_equals_the_crop_of_the_whole_resized_image(mode: str) -> None:
    how = preprocessing(mode)
    for width, height in ((2000, 9), (9, 2000), (611, 70)):
        image = textured(width, height)
        if mode == "center":
            whole = v2.Compose([v2.Resize(how.resize, antialias=True), v2.CenterCrop(how.crop)])(image)
        elif mode == "squash":
            whole = v2.Compose([v2.Resize((how.resize, how.resize), antialias=True), v2.CenterCrop(how.crop)])(image)
        else:
            sides = [max(1, round(side * how.resize / max(width, height))) for side in (width, height)]
            margin = (how.resize - how.crop) // 2
            small = image.resize(sides, Image.Resampling.BILINEAR)
            whole = Image.new("RGB", (how.crop, how.crop), mean_colour(how))
            whole.paste(small, tuple(-margin if s == how.resize else (how.crop - s) // 2 for s in sides))
        expected = np.asarray(whole).transpose(2, 0, 1).astype(int)
        batch = torch.from_numpy(np.array(image)).permute(2, 0, 1).expand(2, 3, height, width)
        for seen in (read_input(as_png(image), how), *resize_crop(batch, how)):
            assert np.abs(seen.numpy() - expected).max() <= 1, (width, height)


MEMORY = """
import io, resource, sys
import numpy as np
import torch
from PIL import Image
from tl_cli.contract import Preprocessing
from tl_cli.data.augment.geometry import crop_boxes
from tl_cli.data.augment.settings import Augmentation
from tl_cli.data.decode import decode_picture
from tl_cli.data.preprocess import cut_box, read_input

def used():
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak / 1e3

def look(width, height):
    data = io.BytesIO()
    Image.new("RGB", (width, height), (9, 99, 200)).save(data, "PNG")
    for mode in ("center", "squash", "border"):
        how = Preprocessing(resize=256, crop=224, crop_mode=mode)
        assert read_input(data.getvalue(), how).shape == (3, 224, 224)
        picture = decode_picture(data.getvalue())
        box = crop_boxes(Augmentation(min_area=0.35), 0, 1, np.array([0]), height, width, mode)[0]
        assert cut_box(picture, box, how).shape == (3, 224, 224)

torch.set_num_threads(1)
look(30, 20)
before = used()
for shape in ((20_000, 4), (4, 20_000), (200_000, 1), (1, 200_000)):
    look(*shape)
print(used() - before)
"""


@pytest.mark.slow
def test_resizing_a_line_of_pixels_needs_little_memory() -> None:
    """Resized whole, the first would be 1,280,000 x 256 pixels: a gigabyte."""
    completed = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert float(completed.stdout) < 200


def full_decode(data: bytes, how: Preprocessing) -> np.ndarray:
    """Return a JPEG that is decoded whole after torchvision's and timm's transforms."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    if how.crop_mode == "center":
        return (
            np.asarray(v2.Compose([v2.Resize(how.resize, antialias=True), v2.CenterCrop(how.crop)])(image))
            .astype(int)
            .transpose(2, 0, 1)
        )
    return timm_transform(image, how)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(1601, 1203), (1031, 2209), (3407, 613), (1607, 1209)])
def test_a_jpeg_decoded_at_a_fraction_equals_the_image_decoded_whole(mode: str, shape: tuple[int, int]) -> None:
    for grain in (5, 16):
        data = as_jpeg(textured(*shape, grain=grain))
        for resize, crop in ((40, 35), (56, 56), (73, 64), (110, 96)):
            how = preprocessing(mode, resize, crop)
            difference = np.abs(read_input(data, how).numpy() - full_decode(data, how))
            assert difference.mean() <= 0.5, (grain, resize)
            # An edge that is one column off would differ by dozens.
            assert difference.max() <= 8, (grain, resize)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_incomplete_column_of_a_turned_jpeg_is_on_the_right_side(orientation: int) -> None:
    data = as_jpeg(textured(1607, 1205, grain=12), orientation)
    decoded = decode_picture(data, short_side=60)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert decoded.size == (upright.height, upright.width)
    left, top, right, bottom = decoded.box
    factor = decoded.size[0] / (bottom - top)
    assert factor == decoded.size[1] / (right - left) > 1
    reduced = Image.fromarray(decoded.pixels).resize((50, 50), Image.Resampling.BILINEAR, box=decoded.box)
    expected = upright.resize((50, 50), Image.Resampling.BILINEAR)
    wrong = Image.fromarray(decoded.pixels).resize((50, 50), Image.Resampling.BILINEAR)
    off = [np.abs(np.asarray(each).astype(int) - np.asarray(expected)).mean() for each in (reduced, wrong)]
    assert off[0] < min(2.5, off[1])


def test_sizes_come_from_headers_and_are_upright(tmp_path: Path) -> None:
    for orientation in range(1, 9):
        path = tmp_path / f"{orientation}.jpg"
        path.write_bytes(as_jpeg(Image.new("RGB", (30, 20)), orientation))
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
        assert picture_size(path) == (upright.height, upright.width)
    # An image truncated after its header.
    whole = as_png(textured(40, 17))
    (tmp_path / "header.png").write_bytes(whole[: whole.index(b"IDAT") + 8])
    assert picture_size(tmp_path / "header.png") == (17, 40)


def padded_to_square(image: Image.Image, how: Preprocessing) -> Image.Image:
    """Return an image padded to a square with the mean colour."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), mean_colour(how))
    square.paste(image, tuple((side - each) // 2 for each in image.size))
    return square


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(261, 105), (90, 151), (640, 61)])
def test_random_crops_equal_torchvisions_of_the_square_used_in_evaluation(mode: str, shape: tuple[int, int]) -> None:
    how, (width, height) = preprocessing(mode, 48, 48), shape
    image = textured(*shape)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    settings, keys = Augmentation(min_area=0.35), np.arange(400)
    boxes = crop_boxes(settings, 3, 1, keys, height, width, mode)
    whole, offset = image, (0, 0)
    if mode == "border":
        whole = padded_to_square(image, how)
        offset = ((whole.height - height) // 2, (whole.width - width) // 2)
    packed = resized_crops(pixels.expand(8, 3, height, width), boxes[:8], 48, mean_colour(how))
    for box, ours in zip(boxes[:8], packed, strict=True):
        top, left, rows, columns = box.tolist()
        theirs = np.asarray(
            v2.functional.resized_crop(
                whole, top + offset[0], left + offset[1], rows, columns, [48, 48], antialias=True
            )
        ).transpose(2, 0, 1)
        assert np.abs(ours.numpy().astype(int) - theirs).max() <= 1
        # From a file the edge of the padding is at a whole pixel.
        assert np.abs(cut_box(Picture.of(np.array(image)), box, how).numpy().astype(int) - theirs).mean() < 3
    area = boxes[:, 2] * boxes[:, 3] / (whole.width * whole.height)
    if mode != "center":
        # The largest boxes cover nearly all of the image, unlike the center crop of a wide one.
        assert area.min() >= 0.33
        assert area.max() > 0.9


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(261, 105), (301, 33)])
def test_packed_images_and_files_give_equal_inputs(mode: str, shape: tuple[int, int], tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(3):
            textured(*shape, grain=15, seed=number).save(tmp_path / name / f"{number}.png")
    files = scan(tmp_path).parts["train"]
    packed = pack(files, Threads(1), budget_bytes=1 << 30)
    assert isinstance(packed, PackedImages)
    one, other = (Loader(images, preprocessing(mode, 48, 48), 4, torch.device("cpu"), 0) for images in (files, packed))
    for mirrored in (False, True):
        for mine, theirs in zip(one.clean(mirrored=mirrored), other.clean(mirrored=mirrored), strict=True):
            # Files are flipped after cropping: the middle of an odd number of pixels may differ by one.
            assert mirrored or torch.equal(mine.inputs, theirs.inputs)
            assert (mine.inputs - theirs.inputs).abs().mean() < 0.5
    settings = Augmentation(flip=False, min_area=0.35)
    for mine, theirs in zip(one.train(settings, 1, 1), other.train(settings, 1, 1), strict=True):
        assert (mine.inputs - theirs.inputs).abs().mean() < 0.1


def test_a_random_crop_of_a_jpeg_decoded_at_a_fraction_equals_that_of_the_whole(tmp_path: Path) -> None:
    data = as_jpeg(textured(1607, 1203, grain=24), orientation=6)
    (tmp_path / "x.jpg").write_bytes(data)
    images = FileImages(Names.of(["x.jpg"]), np.zeros(1, np.int64), tmp_path)
    settings, key = Augmentation(flip=False, min_area=0.35), np.array([0])
    for mode in MODES:
        how = preprocessing(mode, 64, 64)
        loader = Loader(images, how, 1, torch.device("cpu"), 0)
        ((_, (seen,)),) = list(loader.augmented(settings, 5, 2))
        whole = decode_picture(data)
        assert images.open(0, loader._decoded_side(settings)).box is not None
        expected = cut_box(whole, crop_boxes(settings, 5, 2, key, *whole.size, mode)[0], how)
        # The largest difference measured with twice the pixels is 2.9 (`preprocess._SPARE`).
        assert (seen.int() - expected.int()).abs().float().mean() < 3


def test_a_requested_crop_mode_keeps_the_weights_margin_or_the_whole_image() -> None:
    own = Preprocessing(resize=256, crop=224)
    assert own.at(112, whole=False, crop_mode="center") == own.at(112, whole=False)
    assert own.at(112, whole=False).resize == 128
    for mode in ("squash", "border"):
        assert own.at(112, whole=False, crop_mode=mode) == Preprocessing(resize=112, crop=112, crop_mode=mode)
    # Weights that squash with a margin keep it unless another mode is requested.
    squashing = Preprocessing(resize=256, crop=224, crop_mode="squash")
    assert squashing.at(224, whole=False) == squashing
    assert squashing.at(224, whole=False, crop_mode="squash").resize == 224
    assert squashing.at(224, whole=False, crop_mode="center") == own


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(300, 400), (20, 30), (256, 256)])
def test_preprocessing_equals_torchvisions(interpolation, size: tuple[int, int]) -> None:
    how = Preprocessing(resize=256, crop=224, interpolation=interpolation)
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, *size), dtype=np.uint8))
    cropped = v2.Compose(
        [v2.Resize(256, interpolation=v2.InterpolationMode(interpolation), antialias=True), v2.CenterCrop(224)]
    )(image)
    actual = resize_crop(image[None], how)
    # Without AVX2, torchvision resizes bilinearly in float32, without rounding between its two passes.
    assert (actual[0].int() - cropped.int()).abs().max() <= (interpolation == "bilinear")
    to_input = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(how.mean, how.std)])
    torch.testing.assert_close(normalise(actual, how)[0], to_input(actual[0]))

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.deep_pictures import png16, tiff
from tl_cli.contract import DataSpec, Preprocessing
from tl_cli.data import pixel_range
from tl_cli.data.dataset import LabelledData, open_data, open_for_evaluation
from tl_cli.data.images import FileImages, PackedImages, fingerprint
from tl_cli.data.sources.folder import scan
from tl_cli.errors import DataError


def fill(root: Path, *, most: int = 4095, count: int = 12, kind: str = "png") -> Path:
    """Write DIR/train and DIR/test with classes of grey noise from 0 to ``most``; both ends are in every image."""
    noise = np.random.default_rng(0)
    for part in ("train", "test"):
        for name in ("a", "b"):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                values = noise.integers(0, most + 1, (16, 16, 1))
                values[0, :2, 0] = 0, most
                data = png16(values) if kind == "png" else tiff(values.astype(np.float32))
                (root / part / name / f"{number:02}.{kind}").write_bytes(data)
    return root


def opened(root: Path, **settings: object) -> LabelledData:
    return open_data(DataSpec(source=str(root), layout="classes"), workers=2, **settings)


def test_a_range_without_outliers_is_the_smallest_and_the_largest_value() -> None:
    assert pixel_range.range_of(np.arange(4096.0)) == (0, 4095)
    assert pixel_range.range_of(np.array([-3.5, 0, 8])) == (-3.5, 8)
    # A bright spot close to the other values is not an outlier.
    assert pixel_range.range_of(np.concatenate([np.arange(1000.0), [1200]])) == (0, 1200)


def test_hot_and_dead_pixels_do_not_darken_the_rest() -> None:
    values = np.tile(np.arange(1000, 2001.0), 10)
    # Five of 10,020 values are less than a thousandth.
    assert pixel_range.range_of(np.concatenate([values, [65535] * 5, [0] * 5])) == (1000, 2000)


def test_constant_and_nearly_constant_values_have_a_range() -> None:
    assert pixel_range.range_of(np.full(100, 7.0)) == (7, 8)
    assert pixel_range.range_of(np.concatenate([np.zeros(100_000), [1]])) == (0, 1)


def test_the_range_is_measured_on_the_training_part_and_used_for_all(tmp_path: Path) -> None:
    fill(tmp_path / "d")
    bright = np.full((16, 16, 1), 60_000)
    (tmp_path / "d" / "test" / "a" / "00.png").write_bytes(png16(bright))
    data = opened(tmp_path / "d")
    assert data.measured is not None
    assert data.measured.pixel_range == (0, 4095)
    assert any("4095 white" in note for note in data.notes)
    test = data.parts["test"]
    assert isinstance(test, PackedImages)
    assert test.pixels[0].min() == 255
    assert test.pixels[1].max() == 255
    assert len(np.unique(data.parts["train"].pixels)) == 256


def test_floating_point_images_are_measured_too(tmp_path: Path) -> None:
    data = opened(fill(tmp_path / "d", most=3, kind="tif"))
    assert data.measured.pixel_range == (0, 3)
    assert np.unique(data.parts["train"].pixels).tolist() == [0, 85, 170, 255]
    skipped = open_data(DataSpec(source=str(tmp_path / "d"), layout="classes", on_bad_image="skip"), workers=1)
    assert skipped.spec.splits == data.spec.splits


def test_kinds_of_numbers_that_one_range_does_not_suit_are_named(tmp_path: Path) -> None:
    root = fill(tmp_path / "d")
    for number in range(12):
        part = np.random.default_rng(number).random((16, 16, 1), dtype=np.float32)
        part[0, :2, 0] = 0, 1
        (root / "train" / "a" / f"{number}.tif").write_bytes(tiff(part))
    notes = " ".join(opened(root).notes)
    assert "16-bit integers from 0 to 4095, 32-bit floating-point numbers from 0 to 1; convert them to one" in notes


def test_a_given_range_that_does_not_suit_the_images_is_named(tmp_path: Path) -> None:
    root = fill(tmp_path / "d")
    for given, clipped in (((0.0, 2047.5), "50%"), ((4096.0, 9000.0), "100%"), ((0.0, 65535.0), "0%")):
        (note,) = opened(root, pixel_range=given).notes
        assert "whose values lie from 0 to 4095" in note
        assert f"{clipped} of them are clipped" in note
    assert opened(root, pixel_range=(0.0, 4000.0)).notes == ()
    assert opened(root, pixel_range=(-2000.0, 8000.0)).notes == ()


def test_a_given_range_is_not_measured(tmp_path: Path) -> None:
    data = opened(fill(tmp_path / "d"), pixel_range=(0.0, 65535.0))
    assert data.measured.pixel_range == (0, 65535)
    assert data.parts["train"].pixels.max() == 16  # 4095 / 257 = 15.9


def test_8_bit_images_among_16_bit_ones_are_unchanged(tmp_path: Path) -> None:
    fill(tmp_path / "d")
    plain = Image.effect_noise((16, 16), 60)
    plain.save(tmp_path / "d" / "train" / "a" / "plain.png")
    data = open_for_evaluation(
        opened(tmp_path / "d").spec, str(tmp_path / "d"), data_dir=None, pixel_range=(0, 4095)
    ).data
    where = [*data.parts["train"].ids, *data.parts["val"].ids].index("train/a/plain.png")
    part = "train" if where < len(data.parts["train"]) else "val"
    index = list(data.parts[part].ids).index("train/a/plain.png")
    assert np.array_equal(data.parts[part].load(index)[0].numpy(), np.asarray(plain))


def test_a_set_of_eight_bits_has_no_range_and_no_note(colours: Path) -> None:
    data = opened(colours)
    assert data.measured is None
    assert data.notes == ()


def test_16_bit_images_outside_the_training_split_are_named(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for part in ("train", "test"):
            (tmp_path / "d" / part / name).mkdir(parents=True)
        for number in range(12):
            Image.effect_noise((16, 16), 60 + number).save(tmp_path / "d" / "train" / name / f"{number}.png")
        (tmp_path / "d" / "test" / name / "0.png").write_bytes(png16(np.full((16, 16, 1), 4095)))
    data = opened(tmp_path / "d")
    assert data.notes == ("2 test images have more than 8 bits per channel, and no training image has",)
    judged = open_for_evaluation(data.spec, str(tmp_path / "d"), data_dir=None)
    assert any("65535 as white" in note for note in judged.data.notes)


def test_a_measured_range_is_stored_until_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = fill(tmp_path / "d", count=280)
    measured = opened(root).measured
    assert measured is not None
    with monkeypatch.context() as patch:
        patch.delattr(pixel_range, "deep_values")
        assert opened(root).measured == measured
    for number in range(280):
        (root / "train" / "a" / f"{number:02}.png").write_bytes(png16(np.full((16, 16, 1), 5000 + number)))
    assert opened(root).measured.pixel_range == (0, 5279)


def test_stored_pixels_belong_to_their_range(tmp_path: Path) -> None:
    images = scan(fill(tmp_path / "d")).parts["train"]
    assert isinstance(images, FileImages)
    prints = {fingerprint(replace(images, pixel_range=each)) for each in (None, (0.0, 4095.0), (0.0, 4096.0))}
    assert len(prints) == 3
    some = replace(images, pixel_range=(0.0, 4095.0)).subset(np.array([1]))
    assert some.pixel_range == (0, 4095)


def test_unused_bands_are_noted_once(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "d" / name).mkdir(parents=True)
        for number in range(12):
            bands = np.random.default_rng(number).integers(0, 256, (16, 16, 4), dtype=np.uint8)
            (tmp_path / "d" / name / f"{number}.tif").write_bytes(tiff(bands, extra=(2,) if number == 0 else (0,)))
    data = opened(tmp_path / "d")
    assert data.notes == ("22 images have 4 bands; the first 3 are used as RGB",)


def test_a_pixel_range_is_restored_from_json_and_older_cards_have_none() -> None:
    how = Preprocessing(resize=8, crop=8, pixel_range=(0, 4095))
    assert Preprocessing.model_validate_json(how.model_dump_json()) == how
    assert how.at(16, whole=True).pixel_range == (0, 4095)
    older = {key: value for key, value in json.loads(how.model_dump_json()).items() if key != "pixel_range"}
    assert Preprocessing.model_validate(older).pixel_range is None


def test_float_images_are_refused_by_a_model_without_a_range(tmp_path: Path) -> None:
    root = fill(tmp_path / "d", most=3, kind="tif")
    spec = opened(root).spec
    images = open_for_evaluation(spec, str(root), data_dir=None).data.parts["train"]
    with pytest.raises(DataError, match="floating-point"):
        images.load(0)


def test_files_that_need_a_range_are_skipped(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    for part in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(12):
                levels = noise.integers(0, 256, (16, 16), dtype=np.uint8)
                Image.fromarray(levels).save(tmp_path / part / name / f"{number:02}.png")
    for name in ("a", "b"):
        (tmp_path / "test" / name / "float.tif").write_bytes(tiff(np.ones((16, 16, 1), np.float32)))
    spec = DataSpec(source=str(tmp_path), layout="classes", on_bad_image="skip")
    data = open_data(spec, workers=2)
    assert "test/a/float.tif" not in data.parts["test"].ids
    assert len(data.parts["test"]) == 24
    assert any(note.startswith("2 of 26 test images cannot be decoded and are left out") for note in data.notes)
    judged = open_for_evaluation(data.spec, str(tmp_path), data_dir=None)
    assert judged.data.spec.splits == data.spec.splits


def test_if_only_test_images_need_a_range_the_error_gives_that_reason(tmp_path: Path) -> None:
    fill(tmp_path / "d", kind="tif")
    for path in (tmp_path / "d" / "train").rglob("*.tif"):
        path.unlink()
        Image.effect_noise((16, 16), 60).save(path.with_suffix(".png"))
    with pytest.raises(DataError, match="no test image can be decoded.* floating-point pixels have no agreed range"):
        open_data(DataSpec(source=str(tmp_path / "d"), layout="classes", on_bad_image="skip"), workers=2)


@pytest.mark.parametrize("on_bad_image", ["error", "skip"])
def test_copies_of_floating_point_training_images_are_counted(on_bad_image: str, tmp_path: Path) -> None:
    root = fill(tmp_path / "d", kind="tif")
    data = open_data(DataSpec(source=str(root), layout="classes", on_bad_image=on_bad_image), workers=2)
    assert data.measured is not None
    copies = tmp_path / "copies"
    for name in ("a", "b"):
        (copies / name).mkdir(parents=True)
    for name in list(data.parts["train"].ids)[:5]:
        (copies / Path(name).relative_to("train")).write_bytes((root / name).read_bytes())
    (copies / "b" / "new.tif").write_bytes(tiff(np.full((16, 16, 1), 7, np.float32)))
    judged = open_for_evaluation(data.spec, str(copies), data_dir=None, pixel_range=data.measured.pixel_range)
    assert judged.trained_on == {"train": 5}

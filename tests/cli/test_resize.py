"""Images whose classes differ only near their ends, with ``--resize``, from training to every way of predicting."""

import json
import runpy
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace

import mlflow
import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from tests.support.commands import Result, train_in
from tests.support.deep_pictures import png16, tiff
from tl_cli.api.prediction import predict_images
from tl_cli.contract import Preprocessing
from tl_cli.data.preprocess import read_input
from tl_cli.data.sizes import Sizes
from tl_cli.evaluation.measure import Evaluator
from tl_cli.evaluation.predicting import Predictor
from tl_cli.inspection.label_check import label_preprocessing
from tl_cli.models import bundle
from tl_cli.tracking.store import Store, open_store

MODES = {"crop": "center", "squash": "squash", "pad": "border"}
WIDE = "the centre crop leaves out 60% of a typical picture (522 x 210 px); --resize pad or squash keeps all of it"


def write_wide(root: Path, part: str, count: int, seed: int) -> None:
    """Fill ROOT/PART/CLASS/ with images of 522 x 210 px that show a bright disc or square near one of their ends."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:60, :60] - 29.5
    for name, mark in (("disc", rows**2 + columns**2 < 900), ("square", np.ones((60, 60), bool))):
        folder = root / part / name
        folder.mkdir(parents=True)
        for number in range(count):
            ground = Image.fromarray(random.integers(60, 200, (7, 16, 3), dtype=np.uint8))
            pixels = np.array(ground.resize((522, 210), Image.Resampling.BICUBIC))
            top, inset = random.integers(0, 150), random.integers(2, 50)
            left = inset if random.random() < 0.5 else 462 - inset
            pixels[top : top + 60, left : left + 60][mark] = 240
            Image.fromarray(pixels).save(folder / f"{number:03d}.jpg", quality=92)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("wide")
    write_wide(root, "train", 60, 0)
    write_wide(root, "test", 20, 1)
    return root


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, ready_database: Path, wide: Path) -> Path:
    settings = ("efficientnet_lite0", "--data", wide, "--input-size", "96", "--epochs", "25", "--freeze-epochs", "25",
                "--no-probe", "--quiet")  # fmt: skip
    commands = [(*settings, "--resize", name, "--run-name", name) for name in MODES]
    return train_in(tmp_path_factory.mktemp("trained"), ready_database, *commands)


@pytest.fixture
def store(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.chdir(trained)
    mlflow.set_tracking_uri(f"sqlite:///{trained}/mlflow.db")
    return open_store(None)


@pytest.mark.slow
def test_objects_at_the_ends_are_learned_where_resizing_keeps_them(store: Store) -> None:
    accuracy = {name: store.find(name).data.metrics["test/accuracy"] for name in MODES}
    # 40 images: guessing has 28 or fewer right with a probability of 99.7%.
    assert accuracy["crop"] <= 0.7
    assert min(accuracy["squash"], accuracy["pad"]) >= 0.85


@pytest.mark.slow
@pytest.mark.parametrize("name", MODES)
def test_the_resize_mode_is_saved_with_the_model(name: str, store: Store, wide: Path, tmp_path: Path) -> None:
    run = store.find(name)
    folder = store.model_folder(run)
    predictor = Predictor.load(folder)
    how = bundle.read_card(folder).preprocessing
    assert (how.crop_mode, how.crop) == (MODES[name], 96)
    assert run.data.params["resize"] == name
    # A center crop keeps the margin of the weights; the other modes have no margin.
    assert (how.resize == how.crop) == (name != "crop")
    for part, sizes in (("disc", [(523, 211), (97, 301)]), ("square", [(640, 61), (35, 29), (1601, 1203)])):
        (tmp_path / "test" / part).mkdir(parents=True)
        for number, size in enumerate(sizes):
            noise = np.random.default_rng(number).integers(0, 256, (7, 9, 3), dtype=np.uint8)
            Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(
                tmp_path / "test" / part / f"{number}.jpg"
            )
    paths = sorted((tmp_path / "test").rglob("*.jpg"))
    served, errors = predictor.predict([path.read_bytes() for path in paths])
    assert not any(errors)
    predicted = torch.stack([each.probabilities for each in predict_images(predictor, map(str, paths))])
    evaluator = Evaluator(predictor.classifier, bundle.read_card(folder), source=str(tmp_path / "test"))
    judged = (evaluator.measure("all").labelled.logits / predictor.classifier.temperature).softmax(1)
    torch.testing.assert_close(predicted, served, atol=1e-4, rtol=0)
    torch.testing.assert_close(judged, served, atol=1e-4, rtol=0)


def run_example(
    how: Preprocessing, pictures: Iterable[Path], monkeypatch: pytest.MonkeyPatch, **metadata: str
) -> Iterator[np.ndarray]:
    """Yield the network input that the example computes for each of these images."""
    facts = {"classes": json.dumps(["a", "b"]), "preprocessing": how.model_dump_json(), **metadata}
    seen: list[np.ndarray] = []

    class Session:
        """Records its inputs."""

        def __init__(self, path: str) -> None:
            pass

        def get_modelmeta(self) -> SimpleNamespace:
            return SimpleNamespace(custom_metadata_map=facts)

        def run(self, names: None, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
            seen.append(inputs["images"])
            return [np.array([[0.0, 1.0]])]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    script = Path(__file__).parents[2] / "examples" / "predict_with_onnx.py"
    for picture in pictures:
        monkeypatch.setattr(sys, "argv", ["predict_with_onnx.py", "model.onnx", str(picture)])
        runpy.run_path(str(script), run_name="__main__")
        yield seen[-1]


@pytest.mark.parametrize("mode", MODES.values())
@pytest.mark.parametrize("resize", [64, 56])
def test_the_example_preprocesses_images_as_in_training(
    mode: str, resize: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = Preprocessing(resize=resize, crop=56, crop_mode=mode, interpolation="bicubic", mean=(0.2, 0.4, 0.6))
    for width, height in ((522, 210), (91, 67), (77, 255), (33, 20), (640, 61), (9, 2000), (2000, 1)):
        noise = np.random.default_rng(0).integers(0, 256, (max(2, height // 8), max(2, width // 8), 3), dtype=np.uint8)
        picture = tmp_path / "picture.png"
        Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).save(picture)
        (pixels,) = run_example(how, [picture], monkeypatch)
        difference = np.abs(pixels[0] - read_input(picture, how).numpy())
        assert difference.max() <= 2, (width, height)
        assert difference.mean() < 0.25, (width, height)


@pytest.mark.parametrize(
    "header", [b"P5 8 8 255\n", b"P6 8 8 255\n", b"P6 8 8 100\n", b"P6 8 8 256\n", b"P5 8 8 4095\n"]
)
@pytest.mark.parametrize("pixel_range", [None, (0, 4095)])
def test_the_example_reads_portable_pixmaps_as_predict_does(
    header: bytes, pixel_range: tuple[int, int] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = Preprocessing(resize=8, crop=8, pixel_range=pixel_range)
    picture = tmp_path / "picture.ppm"
    picture.write_bytes(header + bytes(range(100)) * 4)
    # Files of earlier versions have no temperature.
    (pixels,) = run_example(how, [picture], monkeypatch)
    assert np.abs(pixels[0] - read_input(picture, how).numpy()).max() <= 1


def write_odd_pictures(folder: Path) -> list[Path]:
    """Write images with opacity and of more than 8 bits per channel, in many formats."""
    noise = np.random.default_rng(0)
    rgba = Image.fromarray(noise.integers(0, 256, (20, 20, 4), dtype=np.uint8))
    palette, grey = rgba.convert("RGB").convert("P"), rgba.convert("L")
    grey16 = Image.fromarray(noise.integers(0, 65536, (20, 20), dtype=np.uint16))
    grey.save(folder / "grey.png", transparency=7)
    palette.save(folder / "palette.png", transparency=3)
    rgba.convert("LA").save(folder / "grey_alpha.png")
    for picture, name in ((rgba, "rgba.png"), (rgba, "rgba.webp"), (rgba, "rgba.tif"), (palette, "palette.gif"),
                          (rgba.convert("CMYK"), "cmyk.tif"), (grey16, "grey16.png"), (grey16, "grey16.tif")):  # fmt: skip
        picture.save(folder / name, **({"lossless": True} if name.endswith("webp") else {}))
    for channels in (1, 2, 3, 4):
        values = noise.integers(0, 65536, (20, 20, channels))
        (folder / f"{channels}_of_16.png").write_bytes(png16(values))
    (folder / "32_bits.tif").write_bytes(tiff(noise.integers(0, 70_000, (20, 20, 1)).astype(np.int32)))
    (folder / "undeclared.tif").write_bytes(tiff(noise.integers(0, 256, (20, 20, 4)).astype(np.uint8), photometric=2))
    return sorted(folder.iterdir())


@pytest.mark.parametrize("pixel_range", [None, (100, 4095)])
def test_the_example_reads_opacity_and_depth_as_predict_does(
    pixel_range: tuple[int, int] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = Preprocessing(resize=20, crop=20, crop_mode="squash", pixel_range=pixel_range)
    pictures = write_odd_pictures(tmp_path)
    assert len(pictures) == 16
    for picture, pixels in zip(pictures, run_example(how, pictures, monkeypatch), strict=True):
        assert np.array_equal(pixels[0], read_input(picture, how).numpy()), picture.name


def test_the_example_puts_a_half_transparent_red_on_white(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    how = Preprocessing(resize=8, crop=8)
    Image.new("RGBA", (8, 8), (255, 0, 0, 51)).save(tmp_path / "red.png")
    (pixels,) = run_example(how, [tmp_path / "red.png"], monkeypatch)
    # A fifth of the red, four fifths of the white.
    assert pixels[0, :, 0, 0].tolist() == [255, 204, 204]


def test_the_example_divides_by_the_temperature(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    how = Preprocessing(resize=8, crop=8)
    list(run_example(how, [tmp_path / "a.png"], monkeypatch))
    list(run_example(how, [tmp_path / "a.png"], monkeypatch, temperature="2.0"))
    # 1 / (1 + exp(-1)) and 1 / (1 + exp(-1/2)).
    assert capsys.readouterr().out.split("\n")[:2] == ["b (73.1%)", "b (62.2%)"]


@pytest.mark.slow
def test_wide_images_are_noted_before_a_training(tl, wide: Path) -> None:
    result = tl("train", "efficientnet_lite0", "--data", wide, "--input-size", "64", "--no-probe", "--dry-run")
    assert WIDE in " ".join(result.out.split())
    quiet = tl("train", "efficientnet_lite0", "--data", wide, "--input-size", "64", "--no-probe", "--dry-run",
               "--resize", "pad")  # fmt: skip
    assert "leaves out" not in quiet.out
    assert "64 px, padded" in quiet.out
    assert any(line.split()[:3] == ["resize", "pad", "flag"] for line in quiet.out.splitlines())


def test_the_label_check_resizes_images_to_the_size_and_shape_of_most_of_them() -> None:
    own = Preprocessing(resize=256, crop=224)

    def shown(*sizes: tuple[int, int]) -> tuple[str, int, int]:
        how = label_preprocessing(own, Sizes.of(sizes))
        return how.crop_mode, how.resize, how.crop

    assert shown((300, 400)) == ("center", 256, 224)
    assert shown((210, 522)) == ("border", 224, 224)
    assert shown((32, 32), (32, 32), (768, 1024)) == ("center", 160, 160)
    assert shown((768, 1024), (768, 1024), (32, 32)) == ("center", 256, 224)
    assert label_preprocessing(own.model_copy(update={"crop_mode": "squash"}), Sizes.of([(210, 522)])).resize == 256


@pytest.mark.slow
def test_data_check_notes_wide_images_and_compares_labels_on_whole_images(tl, wide: Path) -> None:
    result: Result = tl("data", "check", wide, "--json")
    report = json.loads(result.out)
    assert WIDE in report["notes"]
    # Only the marks distinguish the classes; with a center crop half of the labels would be reported.
    doubted = report["doubted_labels"]
    assert doubted["compared"] == 120
    assert len(doubted["images"]) < 30
    assert WIDE in " ".join(tl("data", "check", wide, "--no-labels").out.split())

"""``load(...).predict`` gives the probabilities of the saved network for files, arrays and Pillow images."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tl_cli import load
from tl_cli.contract import DataSpec, ModelCard, Preprocessing, WeightsTag
from tl_cli.errors import DataError, RunNotFoundError
from tl_cli.models import bundle
from tl_cli.models.zoo import registry

CLASSES = ("ant", "<b>bee", "cat")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model with random weights, for images of 32 x 32 pixels."""
    classifier = registry.create("timm/test_resnet", 3, weights="none", input_size=32)
    torch.manual_seed(0)
    for parameter in classifier.model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    card = ModelCard(
        architecture="timm/test_resnet", head=classifier.head, classes=CLASSES,
        preprocessing=Preprocessing(resize=32, crop=32), weights=WeightsTag(name="none"),
        data=DataSpec(source="/nowhere", layout="classes"), recipe="default", epoch=1,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("model")
    bundle.save(path, classifier.model, card)
    return path


def pixels(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def expected(folder: Path, images: np.ndarray) -> np.ndarray:
    """Return the softmax of the network for images that need no resizing, normalised by ImageNet's statistics."""
    network = registry.restore(folder)[0].model
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    inputs = torch.from_numpy((images / 255 - mean) / std).float().permute(0, 3, 1, 2)
    with torch.inference_mode():
        return network(inputs).softmax(1).numpy()


def test_one_image_in_any_form_gives_its_label_and_probabilities(folder: Path, tmp_path: Path) -> None:
    (image,) = pixels(1)
    (row,) = expected(folder, image[None])
    Image.fromarray(image).save(tmp_path / "image.png")
    model = load(folder)
    assert model.classes == CLASSES
    for given in (tmp_path / "image.png", str(tmp_path / "image.png"), Image.fromarray(image), image):
        predictions = model.predict(given)
        np.testing.assert_allclose(predictions.probabilities, row, atol=1e-5)
        assert (predictions.label, predictions.probability) == (
            CLASSES[row.argmax()],
            pytest.approx(row.max(), abs=1e-5),
        )
        assert [name for name, _ in predictions.top(3)] == [CLASSES[index] for index in np.argsort(-row)]


def test_several_images_come_back_in_order(folder: Path) -> None:
    images = pixels(5)
    rows = expected(folder, images)
    model = load(folder)
    for given in (list(images), images, [Image.fromarray(image) for image in images]):
        predictions = model.predict(given, batch_size=2)
        assert len(predictions) == 5
        np.testing.assert_allclose(predictions.probabilities, rows, atol=1e-5)
        assert predictions.labels == [CLASSES[index] for index in rows.argmax(1)]
        assert [each.path for each in predictions] == [f"image {number}" for number in range(1, 6)]
    assert len(model.predict([])) == 0


def test_images_in_memory_are_turned_upright_and_put_on_white_like_files(folder: Path) -> None:
    (image,) = pixels(1)
    model = load(folder)
    turned = Image.fromarray(image)
    exif = turned.getexif()
    exif[0x0112] = 3  # upside down
    upright = Image.fromarray(np.ascontiguousarray(image[::-1, ::-1]))
    for given, same in (
        (turned, upright),
        (np.full((32, 32), 7, np.uint8), np.full((32, 32, 3), 7, np.uint8)),
        (np.zeros((32, 32, 4), np.uint8), np.full((32, 32, 3), 255, np.uint8)),
        (Image.new("CMYK", (32, 32)), np.full((32, 32, 3), 255, np.uint8)),
    ):
        np.testing.assert_allclose(model.predict(given).probabilities, model.predict(same).probabilities, atol=1e-6)


@pytest.mark.slow
def test_input_that_is_not_an_image_is_refused(folder: Path, tmp_path: Path) -> None:
    model = load(folder)
    (tmp_path / "text.png").write_text("hello")
    for given, reason in (
        (np.zeros((8, 8, 3)), r"not float64 \(8, 8, 3\)"),
        (np.zeros((3, 8, 8), np.uint8), r"not uint8 \(3, 8, 8\)"),
        (Image.new("F", (8, 8)), "floating-point"),
        (tmp_path / "gone.png", "no such file"),
        (tmp_path, "is a folder"),
        ([pixels(1)[0], tmp_path / "text.png"], "1 of 2 images have no prediction: .*text.png"),
    ):
        with pytest.raises(DataError, match=reason):
            model.predict(given)
    with pytest.raises(RunNotFoundError):
        load("nothing-of-this-name", tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")


def test_results_are_shown_in_a_notebook_with_names_escaped(folder: Path) -> None:
    model = load(folder)
    for shown in (model, model.predict(pixels(1)[0]), model.predict(pixels(2))):
        text = shown._repr_html_()
        assert text.startswith("<")
        assert "<b>bee" not in text
    assert "&lt;b&gt;bee" in model.predict(pixels(1)[0])._repr_html_()
    many = model.predict([pixels(1)[0]] * 51)._repr_html_()
    assert "and 1 more" in many


@pytest.mark.slow
def test_a_prediction_from_a_folder_imports_only_what_it_needs(folder: Path, tmp_path: Path) -> None:
    Image.fromarray(pixels(1)[0]).save(tmp_path / "image.png")
    script = (
        "import sys\nfrom tl_cli import load\n"
        "load(sys.argv[1]).predict(sys.argv[2])\n"
        "heavy = {'mlflow', 'sklearn', 'pandas', 'matplotlib', 'plotext', 'scipy.stats', 'scipy.ndimage'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    arguments = [sys.executable, "-c", script, folder, tmp_path / "image.png"]
    assert subprocess.run(arguments, capture_output=True, text=True, check=True).stdout == "[]\n"

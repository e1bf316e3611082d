"""A model of 12-bit images: trained, and used through every way to a prediction."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from tests.support.commands import train_in
from tests.support.deep_pictures import png16, tiff
from tl_cli.api.prediction import predict_images
from tl_cli.evaluation.measure import Evaluator
from tl_cli.evaluation.predicting import Predictor
from tl_cli.models.zoo import registry
from tl_cli.tracking.store import Store, open_store

# They differ by less than one of 256 levels of the 16-bit range, so converting to 8 bits would lose the classes.
DARK, LIGHT = 10, 200


def stripes(label: int, number: int) -> np.ndarray:
    """Return an image (24, 24) of stripes, vertical for label 0 and horizontal for label 1, in dark 12-bit values."""
    noise = np.random.default_rng(100 * label + number).integers(-DARK, DARK + 1, (24, 24))
    rows, columns = np.mgrid[:24, :24]
    return np.where(((rows if label else columns) + number) // 4 % 2, LIGHT, DARK) + noise


@pytest.fixture(scope="module")
def twelve_bits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes in train/ and test/: 16-bit PNGs, grey and RGB, and TIFFs, of dark 12-bit values."""
    root = tmp_path_factory.mktemp("twelve")
    for part, count, first in (("train", 24, 0), ("test", 8, 50)):
        for label, name in enumerate(("lie", "stand")):
            (root / part / name).mkdir(parents=True)
            for number in range(first, first + count):
                values = stripes(label, number)[..., None]
                rgb = np.repeat(values, 3, axis=2)
                path = root / part / name / f"{number:02}"
                if number % 3 == 0:
                    path.with_suffix(".png").write_bytes(png16(values))
                elif number % 3 == 1:
                    path.with_suffix(".png").write_bytes(png16(rgb))
                else:
                    path.with_suffix(".tif").write_bytes(tiff(values.astype(np.int32)))
    return root


@pytest.fixture(scope="module")
def folder(twelve_bits: Path, tmp_path_factory: pytest.TempPathFactory, ready_database: Path) -> Path:
    return train_in(
        tmp_path_factory.mktemp("trained"),
        ready_database,
        [
            "efficientnet_lite0", "--data", twelve_bits, "--epochs", "6", "--freeze-epochs", "5", "--input-size", "32",
            "--batch-size", "16", "--device", "cpu", "--run-name", "deep", "--no-probe",
        ],
    )  # fmt: skip


@pytest.fixture
def store(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.chdir(folder)
    return open_store(f"sqlite:///{folder}/mlflow.db")


@pytest.mark.slow
def test_classes_that_differ_only_in_dark_levels_are_learned(store: Store) -> None:
    assert store.find("deep").data.metrics["test/accuracy"] >= 0.9


@pytest.mark.slow
def test_the_model_has_the_pixel_range_of_its_training_images(store: Store) -> None:
    _, card = registry.restore(store.model_folder(store.find("deep")))
    assert card.preprocessing.pixel_range == (0, LIGHT + DARK)
    assert card.config["pixel_range"] == [0, LIGHT + DARK]


def test_predict_pyfunc_and_images_scaled_by_hand_give_the_same_probabilities(
    store: Store, twelve_bits: Path, tmp_path: Path
) -> None:
    import mlflow

    run = store.find("deep")
    classifier, card = registry.restore(store.model_folder(run))
    predictor = Predictor(classifier, card.classes)
    measured = Evaluator(classifier, card).measure("test")
    paths = [twelve_bits / name for name in measured.images.ids]
    probabilities = {
        "predict": torch.stack([each.probabilities for each in predict_images(predictor, map(str, paths))])
    }
    (model_id,) = run.model_ids
    served = mlflow.pyfunc.load_model(f"models:/{model_id}")
    rows = served.predict(pd.DataFrame({"image": [path.read_bytes() for path in paths]}))
    probabilities["pyfunc"] = torch.tensor(rows[list(card.classes)].to_numpy(dtype=np.float32))
    # Scaled by hand, saved with 8 bits, and predicted by the same model.
    eight = []
    for index, name in enumerate(measured.images.ids):
        label, number = ("lie", "stand").index(name.split("/")[1]), int(Path(name).stem)
        levels = (2 * 255 * stripes(label, number) + LIGHT + DARK) // (2 * (LIGHT + DARK))
        Image.fromarray(levels.astype(np.uint8)).save(tmp_path / f"{index}.png")
        eight.append(str(tmp_path / f"{index}.png"))
    probabilities["by hand"] = torch.stack([each.probabilities for each in predict_images(predictor, eight)])
    expected = measured.labelled.logits.softmax(1)
    for name, actual in probabilities.items():
        assert float((actual - expected).abs().max()) < 1e-4, name


@pytest.mark.slow
def test_predict_eval_and_the_exported_model_agree(
    tl, folder: Path, twelve_bits: Path, tmp_path: Path, monkeypatch
) -> None:
    uri = f"sqlite:///{folder}/mlflow.db"
    monkeypatch.chdir(folder)
    pictures = sorted((twelve_bits / "test" / "lie").iterdir())
    result = tl("predict", "deep", *pictures, "--tracking-uri", uri, "--format", "jsonl")
    assert result.code == 0, result.err
    assert "8 bits" not in result.err
    classes = [json.loads(line)["predictions"][0]["class"] for line in result.out.splitlines()]
    assert classes.count("lie") >= 7
    assert "210 white" in tl("inspect", "deep", "--tracking-uri", uri).out
    evaluated = tl("eval", "deep", "--json", "--tracking-uri", uri)
    assert json.loads(evaluated.out)["accuracy"] >= 0.9
    exported = tl("export", "deep", "--output", tmp_path / "m.onnx", "--tracking-uri", uri)
    assert "checked on 16 of its images" in exported.out, exported.err
    script = Path(__file__).parents[2] / "examples" / "predict_with_onnx.py"
    for path in pictures:
        completed = subprocess.run([sys.executable, script, tmp_path / "m.onnx", path], capture_output=True, text=True)
        assert completed.stdout.partition(" (")[0] == classes[pictures.index(path)], completed.stderr
    alone = tmp_path / "alone.py"
    alone.write_bytes(script.read_bytes())
    completed = subprocess.run(
        [sys.executable, alone, tmp_path / "m.onnx", pictures[0]], capture_output=True, text=True
    )
    assert completed.returncode == 1
    assert "put tl's file tl_cli/data/decode_deep.py beside this script" in completed.stderr


@pytest.mark.slow
def test_the_range_is_shown_with_its_reason_and_can_be_set(
    tl, twelve_bits: Path, colours: Path, tmp_path: Path
) -> None:
    options = ("efficientnet_lite0", "--epochs", "1", "--freeze-epochs", "1", "--device", "cpu", "--dry-run")
    shown = tl("train", *options, "--data", twelve_bits)
    line = " ".join(shown.out.split())
    assert "pixel-range 0, 210 data" in line
    given = tl("train", *options, "--data", twelve_bits, "--pixel-range", "0", "4095")
    assert "pixel-range 0, 4095 flag" in " ".join(given.out.split())
    assert "a larger one for white" in tl("train", *options, "--data", twelve_bits, "--pixel-range", "5", "5").err
    (tmp_path / "c.toml").write_text("pixel_range = [0, 4095]\n")
    travelled = tl("train", *options, "--data", colours, "--config", tmp_path / "c.toml")
    assert travelled.code == 2
    assert "pixel_range in the config file has no effect" in " ".join(travelled.err.split())
    useless = tl("train", *options, "--data", colours, "--pixel-range", "0", "4095")
    assert useless.code == 2
    assert "--pixel-range has no effect" in useless.err


def test_data_check_reports_the_pixel_range_and_images_with_few_levels(tl, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "d" / name).mkdir(parents=True)
        for number in range(6):
            noise = np.random.default_rng(number).integers(0, 4096, (16, 16, 1))
            noise[0, :2, 0] = 0, 4095
            (tmp_path / "d" / name / f"{number}.png").write_bytes(png16(noise))
    masks = {"constant": np.full((16, 16), 99), "mask": np.arange(256).reshape(16, 16) % 5,
             "dark": np.arange(256).reshape(16, 16) % 12}  # fmt: skip
    for name, values in masks.items():
        Image.fromarray(values.astype(np.uint8)).save(tmp_path / "d" / "a" / f"{name}.png")
    Image.effect_noise((16, 16), 90).convert("1").save(tmp_path / "d" / "a" / "drawing.png")
    (tmp_path / "d" / "b" / "0.png").write_bytes(png16(np.repeat(noise, 3, axis=2)))
    report = json.loads(tl("data", "check", tmp_path / "d", "--no-labels", "--json").out)
    assert report["modes"] == {"I;16": 11, "RGB of 16 bits": 1, "L": 3, "1": 1}
    assert report["pixel_range"] == [0, 4095]
    assert {Path(each["file"]).stem: each["levels"] for each in report["few_levels"]} == {
        "constant": 1, "mask": 5, "dark": 12
    }  # fmt: skip
    shown = " ".join(tl("data", "check", tmp_path / "d", "--no-labels").out.split())
    assert "12 training images have more than 8 bits per channel: 0 becomes black and 4095 white" in shown
    assert "3 pictures with hardly any grey levels" in shown
    assert "constant.png: 1 level, 99 to 99" in shown


@pytest.mark.slow
def test_a_model_of_8_bit_images_warns_about_a_16_bit_image(tl, colours: Path, tmp_path: Path) -> None:
    trained = tl("train", "efficientnet_lite0", "--data", colours, "--epochs", "1", "--freeze-epochs", "1",
                 "--input-size", "32", "--device", "cpu", "--run-name", "eight")  # fmt: skip
    assert trained.code == 0, trained.err
    (tmp_path / "deep.png").write_bytes(png16(np.full((16, 16, 1), 4095)))
    result = tl("predict", "eight", tmp_path / "deep.png", colours / "test" / "red" / "000.png")
    assert result.code == 0
    assert "1 of 2 pictures have more than 8 bits per channel" in " ".join(result.err.split())

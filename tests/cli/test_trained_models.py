"""eval, predict, compare, export and serving of two recorded runs, which all tests share and none changes."""

import base64
import csv
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.pyfunc.scoring_server import invocations
from PIL import Image
from scipy.special import softmax
from sklearn.metrics import accuracy_score, log_loss

from tests.support.commands import Result, train_in
from tests.support.pictures import COLOURS, write_pictures
from tl_cli.api.prediction import predict_images
from tl_cli.choices import TtaName
from tl_cli.contract import Calibration, Preprocessing, WeightsTag
from tl_cli.data.images import describe
from tl_cli.data.preprocess import normalise, read_input
from tl_cli.errors import Interrupted
from tl_cli.evaluation.logits import load_logits
from tl_cli.evaluation.measure import Evaluator
from tl_cli.evaluation.predicting import Predictor
from tl_cli.models import bundle, export
from tl_cli.models.classifier import Classifier
from tl_cli.models.zoo import registry
from tl_cli.tracking.comparisons import Parent
from tl_cli.tracking.logged_model import Naming, log_model
from tl_cli.tracking.recorded import short_id
from tl_cli.tracking.store import Store, open_store

# Its head sees the last stages.
GOOD = ("shufflenet_v2_x0_5", "--steps", "40", "--freeze-epochs", "1", "--unfreeze-lr", "3e-3", "--head-features", "stages",
        "--run-name", "good")  # fmt: skip
POOR = ("squeezenet1_1", "--epochs", "1", "--freeze-epochs", "1", "--run-name", "poor")
SHARED = ("--weights", "none", "--input-size", "48", "--batch-size", "12", "--augment", "none", "--quiet")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, ready_database: Path, colours: Path) -> Path:
    """A folder in which two models were trained on the same images, the poor one last."""
    commands = [(*options, *SHARED, "--data", colours) for options in (GOOD, POOR)]
    return train_in(tmp_path_factory.mktemp("trained"), ready_database, *commands)


@pytest.fixture
def store(tl, trained: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The store of the two runs, whose folder is the current one."""
    monkeypatch.chdir(trained)
    mlflow.set_tracking_uri(f"sqlite:///{trained}/mlflow.db")
    return open_store(None)


def folder_of(store: Store, name: str) -> Path:
    return store.model_folder(store.find(name))


@pytest.mark.slow
def test_an_evaluation_equals_scikit_learns_and_is_recorded_with_the_run(tl, store: Store, tmp_path: Path) -> None:
    result: Result = tl("eval", "good", "--json", "--output", tmp_path / "report")
    assert (result.code, result.err) == (0, "")
    report = json.loads(result.out)
    kept = load_logits(tmp_path / "report" / "logits.npz")
    predicted = kept.labelled.logits.argmax(1)
    assert report["accuracy"] == pytest.approx(accuracy_score(kept.labelled.labels, predicted))
    assert report["accuracy_low"] < report["accuracy"] <= report["accuracy_high"]
    assert np.array(report["confusion"]).sum() == report["images"] == 18
    assert [row["class"] for row in report["by_class"]] == sorted(COLOURS)
    written = sorted(path.name for path in (tmp_path / "report").iterdir())
    assert written[:3] == ["classes.csv", "confusion.png", "logits.npz"]
    assert Image.open(tmp_path / "report" / "confusion.png").width > 400
    run = store.find("good")
    assert run.data.metrics["test/macro_f1"] == pytest.approx(report["macro_f1"])
    assert run.data.metrics["test/accuracy"] == pytest.approx(report["accuracy"])
    assert store.artifact(run, "eval/test/reliability.png") is not None


@pytest.mark.slow
def test_a_table_of_classes_is_csv(tl, store: Store) -> None:
    result = tl("eval", "good", "--csv", "--no-log")
    rows = list(csv.DictReader(io.StringIO(result.out)))
    assert [row["class"] for row in rows] == sorted(COLOURS)
    assert all(row["images"] == "6" for row in rows)
    assert tl("eval", "good", "--csv", "--json").code == 2


def test_best_is_the_best_on_the_same_data_and_latest_the_latest(store: Store) -> None:
    assert store.find("best").info.run_name == "good"
    assert store.find("latest").info.run_name == "poor"


@pytest.mark.slow
def test_other_images_are_matched_by_the_names_of_their_classes(tl, store: Store, tmp_path: Path) -> None:
    # "green" would be class 0 of this folder and is class 1 of the model.
    write_pictures(tmp_path / "new", {"green": COLOURS["green"], "red": COLOURS["red"]}, 4)
    result = tl("eval", "good", "--data", tmp_path / "new", "--json")
    assert result.code == 0
    assert "no images of blue" in result.err
    report = json.loads(result.out)
    assert (report["split"], report["images"], report["missing"]) == ("all", 8, ["blue"])
    assert [row["images"] for row in report["by_class"]] == [0, 4, 4]
    assert report["macro_recall"] == pytest.approx(np.mean([row["recall"] for row in report["by_class"][1:]]))
    name = f"eval/new-all-{report['digest'][:8]}/accuracy"
    run = store.find("good")
    assert run.data.metrics[name] == report["accuracy"]
    inputs = store.client.get_run(run.info.run_id).inputs.dataset_inputs
    assert {each.dataset.name: each.tags[0].value for each in inputs}["new-all"] == "evaluation"
    assert name not in store.find("poor").data.metrics
    # Other images in a folder of the same name have separate metrics and files.
    write_pictures(tmp_path / "other" / "new", COLOURS, 3)
    other = json.loads(tl("eval", "good", "--data", tmp_path / "other" / "new", "--json").out)
    metrics = store.find("good").data.metrics
    assert metrics[name] == report["accuracy"]
    assert metrics[f"eval/new-all-{other['digest'][:8]}/accuracy"] == other["accuracy"]
    for each in (report, other):
        kept = store.artifact(store.find("good"), f"eval/new-all-{each['digest'][:8]}/report.json")
        assert json.loads(kept.read_text())["images"] == each["images"]


def test_one_class_alone_can_be_evaluated(tl, store: Store, tmp_path: Path) -> None:
    write_pictures(tmp_path / "one", {"red": COLOURS["red"]}, 3)
    report = json.loads(tl("eval", "good", "--data", tmp_path / "one", "--json", "--no-log").out)
    assert report["images"] == 3


def test_the_images_of_a_run_are_recognized_in_any_folder(tl, store: Store, colours: Path, tmp_path: Path) -> None:
    (tmp_path / "moved").symlink_to(colours)
    copied = tmp_path / "copied"
    for path in colours.rglob("*.png"):
        target = copied / path.relative_to(colours)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    expected = json.loads(tl("eval", "good", "--json", "--no-log").out)["digest"]
    for folder in (tmp_path / "moved", copied):
        report = json.loads(tl("eval", "good", "--data", folder, "--json", "--no-log").out)
        assert (report["split"], report["digest"]) == ("test", expected)
        val = json.loads(tl("eval", "good", "--data", folder, "--split", "val", "--json", "--no-log").out)
        assert val["images"] == 6


def test_training_images_among_the_evaluated_ones_are_counted(tl, store: Store, colours: Path, tmp_path: Path) -> None:
    learned = sorted((colours / "train" / "red").iterdir())
    write_pictures(tmp_path / "new", {"red": (200, 60, 50)}, 5, size=40)
    for number, path in enumerate(learned):
        shutil.copy(path, tmp_path / "new" / "red" / f"copy{number}.png")
    result = tl("eval", "good", "--data", tmp_path / "new", "--json", "--no-log")
    # 2 of the 16 red training images were held out for validation.
    assert "the model was trained on 14 of these 21 images" in result.err
    fresh = tmp_path / "fresh"
    write_pictures(fresh, {"red": (200, 60, 50)}, 5, size=40)
    assert "trained on" not in tl("eval", "good", "--data", fresh, "--json", "--no-log").err


@pytest.mark.slow
def test_a_changed_source_with_a_random_split_is_refused(tl, workplace: Path) -> None:
    write_pictures(Path("pictures"), COLOURS, 20)
    quick = ("--weights", "none", "--input-size", "32", "--epochs", "1", "--freeze-epochs", "1")
    assert tl("train", "squeezenet1_1", *quick, "--data", "pictures", "--quiet").code == 0
    assert tl("eval", "latest", "--json").code == 0
    write_pictures(Path("pictures"), COLOURS, 23)
    for part in ("test", "val"):
        result = tl("eval", "latest", "--split", part)
        assert result.code == 2
        assert "and training images among them" in " ".join(result.err.split())


def test_images_of_equal_names_and_lengths_are_told_apart(tl, store: Store, colours: Path, tmp_path: Path) -> None:
    for path in colours.rglob("*.png"):
        target = tmp_path / "other" / path.relative_to(colours)
        target.parent.mkdir(parents=True, exist_ok=True)
        # With equal names and lengths.
        target.write_bytes(path.read_bytes()[:-1] + b"\x00")
    assert tl("eval", "good", "--data", colours, "--split", "val", "--no-log", "--json").code == 0
    # Validation images were held out of the run's own images; another source has none.
    result = tl("eval", "good", "--data", tmp_path / "other", "--split", "val", "--no-log")
    assert result.code == 2
    assert "there are: train, test" in result.err


@pytest.mark.slow
def test_test_images_replaced_by_others_of_equal_length_are_noticed(tl, workplace: Path) -> None:
    for part, count in (("train", 12), ("test", 4)):
        for number, (name, colour) in enumerate(COLOURS.items()):
            folder = Path("bitmaps") / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                Image.new("RGB", (32, 32), (*colour[:2], 10 * index + number)).save(folder / f"{index}.bmp")
    options = ("timm/test_resnet", "--weights", "none", "--input-size", "32", "--epochs", "1", "--freeze-epochs", "1")
    assert tl("train", *options, "--data", "bitmaps", "--quiet").code == 0
    os.utime("bitmaps/test/red/1.bmp", ns=(1, 1))
    assert "not those" not in tl("eval", "latest", "--json", "--no-log").err
    store = open_store(None)
    path, other = Path("bitmaps/test/red/0.bmp"), Path("bitmaps/test/blue/0.bmp")
    stat = path.stat()
    path.write_bytes(other.read_bytes())
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert "the test images are not those that the model was trained with" in tl("eval", "latest", "--no-log").err
    # A model of an earlier version only has digests of file lengths, which have not changed.
    folder = folder_of(store, "latest")
    card = bundle.verified_card(folder)
    data = Evaluator(*registry.restore(folder))._data
    older = {
        name: {"count": split.count, "digest": split.digest}
        for name, split in ((name, describe(images, data.classes, "lengths")) for name, images in data.files.items())
    }
    raw = card.model_dump(mode="json")
    raw["data"]["splits"] = older
    shutil.copytree(folder, "older")
    bundle.write_card(Path("older"), type(card).model_validate(raw))
    result = tl("eval", "older", "--no-log")
    assert result.code == 0
    assert "not those" not in result.err


def test_weights_that_are_nan_are_an_error(tl, broken: Path) -> None:
    result = tl("eval", broken, "--json")
    assert result.code == 2
    assert "the model returned NaN or infinity for 18 images" in result.err


@pytest.fixture
def broken(store: Store, tmp_path: Path) -> Path:
    """The good model with weights that are NaN."""
    classifier, card = registry.restore(folder_of(store, "good"))
    torch.nn.init.constant_(next(classifier.model.parameters()), float("nan"))
    bundle.save(tmp_path / "broken", classifier.model, card)
    return tmp_path / "broken"


def test_a_prediction_that_is_not_finite_is_an_error(tl, broken: Path, colours: Path) -> None:
    pictures = [colours / "test" / "red" / f"00{n}.png" for n in range(2)]
    for form, out in (("jsonl", ""), ("csv", "path,class,probability\n"), ("table", "")):
        result = tl("predict", broken, *pictures, "--format", form, "--top", "1")
        assert (result.code, result.out) == (1, out)
        assert "2 of 2 pictures have no prediction" in result.err
        for picture in pictures:
            assert f"{picture}: the model returned NaN or infinity" in result.err


class LogOfBrightness(torch.nn.Module):
    """Logits that are finite for bright images, infinite at a brightness of 0.2 (normalised to 0), and NaN below it."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        brightness = images.mean((1, 2, 3)).log()
        return torch.stack([brightness, -brightness, torch.zeros_like(brightness)], 1)


def test_only_images_without_a_finite_prediction_are_errors(tmp_path: Path) -> None:
    how = Preprocessing(resize=8, crop=8, mean=(0.2, 0.2, 0.2), std=(1, 1, 1))
    classifier = Classifier("odd", LogOfBrightness(), ("head",), how, WeightsTag(name="none"))
    predictor = Predictor(classifier, ("light", "dark", "other"))
    colours = {"bright": 255, "zero": 51, "dark": 0, "grey": 128}
    for name, value in colours.items():
        Image.new("RGB", (8, 8), (value, value, value)).save(tmp_path / f"{name}.png")
    paths = [tmp_path / f"{name}.png" for name in colours]
    predictions = list(predict_images(predictor, map(str, paths)))
    assert [each.probabilities is not None for each in predictions] == [True, False, False, True]
    rows, errors = Predictor(classifier, ("a", "b", "c")).predict([path.read_bytes() for path in paths])
    for index in (0, 3):
        logit = np.log(list(colours.values())[index] / 255 - 0.2)
        expected = softmax([logit, -logit, 0])
        assert predictions[index].probabilities.tolist() == pytest.approx(expected.tolist(), abs=1e-5)
        assert rows[index].tolist() == pytest.approx(expected.tolist(), abs=1e-5)
        assert errors[index] == predictions[index].error == ""
    for index in (1, 2):
        assert rows[index].isnan().all()
        assert errors[index] == f"row {index + 1} of 4: {predictions[index].error}"
        assert predictions[index].error.startswith("the model returned NaN or infinity")


@pytest.mark.parametrize(
    "view",
    [("--drift", "--against", "none"), ("--residual",), ("--features",), ("--freeze-plan",), (), ("--worst", "2")],
)
def test_views_of_a_broken_model_are_json_or_an_error(tl, broken: Path, view: tuple[str, ...]) -> None:
    result = tl("inspect", broken, *view, "--json")
    if result.code == 0:
        json.loads(result.out, parse_constant=pytest.fail)
    else:
        assert result.out == ""
        assert result.err.startswith("error: ")
        assert "Traceback" not in result.err


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: write_pictures(root, {"red": (9, 9, 9), "violet": (9, 9, 9)}, 2), "does not have: violet"),
        (lambda root: root.mkdir(), "holds nothing"),
        (lambda root: write_pictures(root.parent, {root.name: (9, 9, 9)}, 2), "2 images without a class folder"),
        (lambda root: None, "no folder at"),
    ],
)
def test_images_that_cannot_be_evaluated_are_refused_with_a_message(
    tl, store: Store, tmp_path: Path, make, message: str
) -> None:
    make(tmp_path / "new")
    result = tl("eval", "good", "--data", tmp_path / "new")
    assert result.code == 2
    assert message in result.err


def test_a_missing_split_is_named(tl, store: Store, tmp_path: Path) -> None:
    write_pictures(tmp_path / "new", COLOURS, 2)
    result = tl("eval", "good", "--data", tmp_path / "new", "--split", "test")
    assert result.code == 2
    assert "has no test images; there are: all" in result.err
    assert "contains the training images" in tl("eval", "good", "--split", "all").err
    train = tl("eval", "good", "--split", "train", "--json", "--no-log")
    assert "the results measure memorization" in train.err


def test_an_unknown_run_suggests_the_nearest_name(tl, store: Store) -> None:
    result = tl("eval", "goood")
    assert result.code == 2
    assert "Did you mean good" in result.err
    assert "no run is called" in tl("predict", "zzz", "x.png").err


@pytest.fixture
def with_temperature(store: Store, tmp_path: Path, tta: TtaName) -> Path:
    """The good model with a temperature of 2.5 and test-time augmentation, as training would have saved it."""
    classifier, card = registry.restore(folder_of(store, "good"))
    warm = Calibration(temperature=2.5, images=40, loss=0.9, held_out_loss=0.8, note="")
    changed = card.model_copy(update={"calibration": warm, "tta": tta, "format": 2})
    bundle.save(tmp_path / "heated", classifier.model, changed)
    return tmp_path / "heated"


def logits_of_mirrored(store: Store, pictures: list[Path]) -> np.ndarray:
    """Return what the network of the good model gives for mirrored pictures."""
    classifier, _ = registry.restore(folder_of(store, "good"))
    how = classifier.preprocessing
    inputs = torch.stack([read_input(path.read_bytes(), how, None) for path in pictures])
    with torch.inference_mode():
        mirrored: np.ndarray = classifier.model(normalise(inputs.flip(-1), how)).double().numpy()
    return mirrored


@pytest.mark.slow
@pytest.mark.parametrize("tta", ["none", "flip"])
def test_every_program_gives_the_same_probabilities(
    tl, store: Store, with_temperature: Path, colours: Path, tmp_path: Path, tta: TtaName
) -> None:
    kept = load_logits(store.artifact(store.find("good"), "eval/test_logits.npz"))
    logits = kept.labelled.logits.double().numpy()
    if tta == "flip":
        logits = (logits + logits_of_mirrored(store, [colours / name for name in kept.ids])) / 2
    raw, expected = softmax(logits, 1), softmax(logits / 2.5, 1)
    top, classes = expected.argmax(1), kept.classes
    pictures = [colours / name for name in kept.ids]

    def predicted(*options: str) -> list[float]:
        lines = tl("predict", with_temperature, *pictures, "--top", "1", *options).out.splitlines()
        return [json.loads(line)["predictions"][0]["probability"] for line in lines]

    assert predicted() == pytest.approx(expected.max(1), abs=1e-5)
    assert predicted("--raw") == pytest.approx(raw.max(1), abs=1e-5)

    report = json.loads(tl("eval", with_temperature, "--json").out)
    assert report["calibration"]["fitted"]["temperature"] == 2.5
    truth = kept.labelled.labels.numpy()
    assert report["loss"] == pytest.approx(log_loss(truth, expected, labels=range(3)), abs=1e-5)
    for bins, probabilities in ((report["calibration"], expected), (report["calibration"]["uncalibrated"], raw)):
        mean_confidence = sum(each["confidence"] * each["images"] for each in bins["bins"]) / 18
        assert mean_confidence == pytest.approx(probabilities.max(1).mean(), abs=1e-5)
    wrong = [index for index in range(18) if top[index] != truth[index]]
    assert {each["id"]: each["probability"] for each in report["worst_mistakes"]} == {
        kept.ids[index]: pytest.approx(expected[index].max(), abs=1e-5) for index in wrong
    }
    # An evaluation does not change the model.
    assert predicted() == pytest.approx(expected.max(1), abs=1e-5)
    assert sorted(path.name for path in with_temperature.iterdir()) == ["model.json", "model.safetensors"]

    with mlflow.start_run(experiment_id=store.experiment("elsewhere")):
        served = mlflow.pyfunc.load_model(f"models:/{log_model(with_temperature, Naming('heated', {}))}")
    rows = served.predict(pd.DataFrame({"image": [path.read_bytes() for path in pictures]}))
    assert rows[list(classes)].to_numpy() == pytest.approx(expected, abs=1e-5)

    assert tl("export", with_temperature, "--output", tmp_path / "m.onnx").code == 0
    script = Path(__file__).parents[2] / "examples" / "predict_with_onnx.py"
    shown = subprocess.run(
        [sys.executable, script, tmp_path / "m.onnx", pictures[0]], capture_output=True, text=True, check=True
    ).stdout
    assert shown == f"{classes[top[0]]} ({expected[0].max():.1%})\n"
    assert tl("export", with_temperature, "--format", "pt2", "--output", tmp_path / "m.pt2").code == 0
    extra = {"temperature": ""}
    torch.export.load(tmp_path / "m.pt2", extra_files=extra)
    assert json.loads(extra["temperature"]) == 2.5
    assert tl("export", with_temperature, "--format", "folder", "--output", tmp_path / "copy").code == 0
    assert bundle.read_card(tmp_path / "copy").calibration.temperature == 2.5

    pytest.importorskip("captum")
    cam = json.loads(tl("inspect", with_temperature, "--cam", pictures[0], "--json").out)
    assert cam["images"][0]["probability"] == pytest.approx(expected[0].max(), abs=1e-5)
    worst = json.loads(tl("inspect", with_temperature, "--worst", "3", "--split", "test", "--json").out)
    for each in worst["images"]:
        assert each["probability"] == pytest.approx(expected[kept.ids.index(each["image"])].max(), abs=1e-5)


@pytest.mark.slow
def test_training_saves_a_temperature_that_evaluations_do_not_change(tl, workplace: Path) -> None:
    images, generator = Path("images"), np.random.default_rng(0)
    for label, colour in enumerate(COLOURS.values()):
        for part, count in (("train", 40), ("val", 60), ("test", 6)):
            folder = images / part / str(label)
            folder.mkdir(parents=True)
            for number in range(count):
                # Few mistakes by a barely trained head: it is underconfident.
                is_odd = part == "val" and number % 10 == 0
                drawn = list(COLOURS.values())[generator.integers(3)] if is_odd else colour
                pixels = np.clip(generator.normal(drawn, 40, (32, 32, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    trained = tl("train", "timm/test_resnet", "--weights", "none", "--data", images, "--epochs", "2", "--freeze-epochs", "2",
                 "--input-size", "32", "--batch-size", "8", "--lr", "1e-3", "--quiet")  # fmt: skip
    assert trained.code == 0, trained.err
    store = open_store(None)
    folder = folder_of(store, "latest")
    classifier, card = registry.restore(folder)
    assert card.calibration.images == 180
    labelled = Evaluator(classifier, card).measure("val").labelled
    candidates = np.geomspace(0.01, 100, 8001)
    losses = [log_loss(labelled.labels, softmax(labelled.logits.double().numpy() / t, 1)) for t in candidates]
    assert card.calibration.temperature == pytest.approx(candidates[np.argmin(losses)], rel=0.01)
    assert card.calibration.temperature != 1
    (state,) = Path("mlruns").glob("*/*/state/best")
    assert bundle.read_card(state).calibration == card.calibration
    picture = next((images / "test" / "0").iterdir())
    before = tl("predict", "latest", picture).out
    report = json.loads(tl("eval", "latest", "--json").out)
    assert report["calibration"]["fitted"] == card.calibration.model_dump()
    # The loss recorded at the end of the training is computed with the same temperature.
    assert store.find("latest").data.metrics["test/loss"] == pytest.approx(report["loss"], abs=1e-4)
    assert tl("predict", "latest", picture).out == before


def test_the_temperature_file_of_an_earlier_version_is_ignored_with_a_note(
    tl, store: Store, colours: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "old"
    bundle.copy(folder_of(store, "good"), folder)
    # The format of earlier versions: no calibration in the card, and a file beside it after tl eval.
    facts = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(
        json.dumps({k: v for k, v in facts.items() if k not in ("calibration", "sha256", "weights_sha256")})
    )
    picture = colours / "test" / "red" / "000.png"
    before = tl("predict", folder, picture).out
    assert before == tl("predict", folder, picture, "--raw").out
    (folder / "calibration.json").write_text(
        json.dumps({"temperature": 1.7, "weights_sha256": facts["weights_sha256"]})
    )
    assert tl("predict", folder, picture).out == before
    result = tl("eval", folder, "--json", "--no-log")
    assert "calibration.json of an earlier version is ignored" in result.err
    fitted = json.loads(result.out)["calibration"]["fitted"]
    assert (fitted["temperature"], fitted["note"]) == (1.0, "none was fitted when the model was saved")


def test_no_log_writes_nothing_and_a_failed_output_is_reported_after_the_results(
    tl, store: Store, tmp_path: Path
) -> None:
    bundle.copy(folder_of(store, "good"), tmp_path / "model")
    assert tl("eval", tmp_path / "model", "--no-log", "--json").code == 0
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["model.json", "model.safetensors"]
    # Not even root can write below the null device.
    written = tl("eval", tmp_path / "model", "--no-log", "--csv", "--output", "/dev/null/x")
    assert written.code == 1
    assert written.out.startswith("class,")
    assert "cannot write" in written.err


@pytest.mark.slow
def test_eval_predict_pyfunc_and_onnx_give_the_same_probabilities(store: Store, colours: Path, tmp_path: Path) -> None:
    run = store.find("good")
    folder = store.model_folder(run)
    classifier, card = registry.restore(folder)
    kept = load_logits(store.artifact(run, "eval/test_logits.npz"))
    expected = kept.labelled.logits.log_softmax(1)
    paths = [colours / name for name in kept.ids]

    measured = Evaluator(classifier, card).measure("test")
    assert tuple(measured.images.ids) == kept.ids
    log_probabilities = {"eval": measured.labelled.logits.log_softmax(1)}
    predictions = list(predict_images(Predictor(classifier, card.classes), map(str, paths), batch_size=5))
    assert [each.path for each in predictions] == [str(path) for path in paths]
    log_probabilities["predict"] = torch.stack([each.probabilities for each in predictions]).log()
    (model_id,) = run.model_ids
    served = mlflow.pyfunc.load_model(f"models:/{model_id}")
    rows = served.predict(pd.DataFrame({"image": [path.read_bytes() for path in paths]}))
    log_probabilities["pyfunc"] = torch.from_numpy(np.log(rows[list(card.classes)].to_numpy(dtype=np.float32)))
    classifier, card = registry.restore(folder)
    export.write_onnx(classifier, card, tmp_path / "m.onnx")
    from tl_cli.data.decode import decode_picture
    from tl_cli.data.preprocess import as_tensor, resize_crop

    inputs = torch.stack([resize_crop(as_tensor(decode_picture(path).pixels), card.preprocessing) for path in paths])
    onnx_logits = export.run_onnx(tmp_path / "m.onnx", inputs.numpy().astype(np.float32))
    log_probabilities["onnx"] = torch.from_numpy(onnx_logits).log_softmax(1)
    for name, logits in log_probabilities.items():
        assert float((logits - expected).abs().max()) < 1e-4, name


def test_predictions_continue_after_unreadable_files(tl, store: Store, colours: Path, tmp_path: Path) -> None:
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    pictures = sorted((colours / "test" / "green").iterdir())
    result = tl("predict", "good", pictures[0], tmp_path / "torn.png", tmp_path / "gone.png", pictures[1])
    assert result.code == 1
    predictions = [json.loads(line) for line in result.out.splitlines()]
    assert [each["path"] for each in predictions] == [str(pictures[0]), str(pictures[1])]
    assert "2 of 4 pictures have no prediction" in result.err
    assert "torn.png" in result.err
    assert "gone.png: there is no such file" in result.err
    odd = tl("predict", "good", pictures[0], "x" * 300, "\0.png", "--format", "jsonl")
    assert (odd.code, len(odd.out.splitlines())) == (1, 1)
    assert tl("predict", "x" * 300, pictures[0]).code == 2


@pytest.fixture
def threads(request: pytest.FixtureRequest):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2], indirect=True)
@pytest.mark.parametrize("batch", [1, 2, 3, 50])
def test_predictions_are_in_order_wherever_files_fail(
    store: Store, colours: Path, tmp_path: Path, threads, batch: int
) -> None:
    predictor = Predictor.load(folder_of(store, "good"))
    good = [str(path) for path in sorted((colours / "test").rglob("*.png"))]
    bad = [str(tmp_path / f"{n}.png") for n in range(7)]
    paths = [*bad[:4], good[0], bad[4], good[1], good[2], *bad[5:], good[3], bad[6]]
    predictions = list(predict_images(predictor, iter(paths), batch_size=batch))
    assert [each.path for each in predictions] == paths
    assert [each.probabilities is None for each in predictions] == [path in bad for path in paths]
    alone = [next(predict_images(predictor, [path])).probabilities for path in good[:4]]
    together = [each.probabilities for each in predictions if each.probabilities is not None]
    assert torch.allclose(torch.stack(alone), torch.stack(together), atol=1e-6)


def endless_paths(path: str, read: list[str]) -> Iterator[str]:
    """Yield one path without end, and note each time that it is read."""
    while True:
        read.append(path)
        yield path


def test_images_are_not_read_far_ahead(store: Store, colours: Path) -> None:
    predictor = Predictor.load(folder_of(store, "good"))
    read: list[str] = []
    predictions = predict_images(
        predictor, endless_paths(str(colours / "test" / "red" / "000.png"), read), batch_size=4
    )
    for _ in range(20):
        next(predictions)
    assert len(read) < 20 + 4 * 8
    predictions.close()


def test_failures_are_yielded_without_delay(store: Store) -> None:
    predictor = Predictor.load(folder_of(store, "good"))
    read: list[str] = []
    predictions = predict_images(predictor, endless_paths("/nowhere.png", read), batch_size=4)
    assert [next(predictions).probabilities for _ in range(20)] == [None] * 20
    assert len(read) < 20 + 4 * 8
    predictions.close()


def test_predictions_as_a_table_and_as_csv(tl, store: Store, colours: Path) -> None:
    table = tl("predict", "good", colours / "test", "--format", "table", "--top", "2")
    assert (table.code, table.err) == (0, "")
    assert len(table.out.splitlines()) == 18
    assert "%" in table.out
    assert "\x1b" not in table.out
    rows = list(csv.DictReader(io.StringIO(tl("predict", "good", colours / "test", "--format", "csv").out)))
    assert len(rows) == 18
    assert float(rows[0]["probability_1"]) >= float(rows[0]["probability_2"])
    assert list(rows[0]) == ["path", *(f"{what}_{n}" for n in (1, 2, 3) for what in ("class", "probability"))]
    assert "*.gif: there is no such file" in tl("predict", "good", colours / "test" / "*.gif").err


def test_file_names_that_are_not_text_keep_their_bytes(tl, store: Store, colours: Path, tmp_path: Path) -> None:
    odd = os.path.join(os.fsencode(tmp_path), b"\xff\xfe \x1b[31m.png")
    with open(odd, "wb") as file:
        file.write((colours / "test" / "red" / "000.png").read_bytes())
    line = tl("predict", "good", os.fsdecode(odd)).out
    assert os.fsencode(json.loads(line)["path"]) == odd
    for form in ("table", "csv"):
        shown = tl("predict", "good", os.fsdecode(odd), "--format", form).out
        assert r"\udcff\udcfe \x1b[31m.png" in shown
        assert "\x1b" not in shown


def test_images_of_a_model_of_an_earlier_version_are_not_listed_as_different(tl, store: Store, tmp_path: Path) -> None:
    folder = folder_of(store, "poor")
    shutil.copytree(folder, tmp_path / "old")
    path = tmp_path / "old" / bundle.CARD_FILE
    facts = json.loads(path.read_text())
    card = bundle.read_card(folder)
    evaluator = Evaluator(*registry.restore(folder))
    for part in ("train", "val", "test"):
        # The description of the same files by an earlier version.
        facts["data"]["splits"][part] = describe(evaluator.measure(part).images, card.classes, "lengths").model_dump(
            exclude={"scheme"}
        )
    del facts["sha256"], facts["weights_sha256"]
    path.write_text(json.dumps(facts))
    result = tl("compare", "good", tmp_path / "old", "--format", "json", "--no-speed")
    assert result.code == 0, result.err
    assert "compared by number only, not by contents" in " ".join(result.err.split())
    assert not {"train images", "val images"} & set(json.loads(result.out)["differences"])


@pytest.mark.slow
def test_two_runs_are_compared_image_by_image(tl, store: Store, tmp_path: Path) -> None:
    result = tl("compare", "good", "poor", "--format", "json", "--output", tmp_path / "out")
    assert result.code == 0, result.err
    report = json.loads(result.out)
    assert [row["model"] for row in report["models"]] == ["good", "poor"]
    rights = []
    for name in ("good", "poor"):
        kept = load_logits(store.artifact(store.find(name), "eval/test_logits.npz"))
        rights.append((kept.labelled.logits.argmax(1) == kept.labelled.labels).numpy())
    (pair,) = report["pairs"]
    assert pair["only_better_right"] == int((rights[0] & ~rights[1]).sum())
    assert pair["difference"] == pytest.approx(rights[0].mean() - rights[1].mean())
    row = report["models"][0]
    assert row["parameters"] == 344_867
    assert row["size_bytes"] == (folder_of(store, "good") / "model.safetensors").stat().st_size
    assert row["inference_images_per_second"] > 0
    metrics = store.find("good").data.metrics
    assert row["gap"] == pytest.approx(metrics["clean_train/accuracy"] - metrics["test/accuracy"])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "accuracy_against_cost.png", "comparison.csv", "comparison.json", "comparison.md", "curves.png",
    ]  # fmt: skip
    shown = tl("compare", "good", "poor", "--no-speed")
    for heading in (
        "accuracy",
        "cost",
        "significant differences",
        "when to choose which",
        "validation accuracy by epoch",
    ):
        assert heading in shown.out
    assert tl("compare", "good", "poor", "--no-speed", "--format", "markdown").out.startswith("| model | accuracy |")


def test_different_settings_are_named_in_every_format(tl, store: Store) -> None:
    output_by_format = {form: tl("compare", "good", "poor", "--no-speed", "--format", form).out
             for form in ("table", "markdown", "csv", "json")}  # fmt: skip
    # As given in GOOD and POOR; the learning rate after unfreezing has no effect in the poor one.
    epochs = json.loads(output_by_format["json"])["differences"]["epochs"]
    assert (epochs["good"] > epochs["poor"], epochs["poor"]) == (True, "1")
    assert json.loads(output_by_format["json"])["differences"]["steps"] == {"good": "40", "poor": "-"}
    assert "weights" not in json.loads(output_by_format["json"])["differences"]
    assert "seed" not in json.loads(output_by_format["json"])["differences"]
    assert json.loads(output_by_format["json"])["caution"].endswith("does not tell which architecture is better")
    rows = {
        row["model"]: row["different_settings"].split(";")
        for row in csv.DictReader(io.StringIO(output_by_format["csv"]))
    }
    assert "steps=40" in rows["good"]
    assert "epochs=1" in rows["poor"]
    for text in (output_by_format["table"], output_by_format["markdown"]):
        output = " ".join(text.split())
        assert "steps: good 40; poor -" in output
        assert "does not tell which architecture is better" in output


def test_a_folder_is_compared_with_a_run_on_other_images(tl, store: Store, tmp_path: Path) -> None:
    write_pictures(tmp_path / "new", COLOURS, 5)
    result = tl(
        "compare", "good", folder_of(store, "poor"), "--data", tmp_path / "new", "--format", "csv", "--no-speed"
    )
    assert result.code == 0, result.err
    rows = list(csv.DictReader(io.StringIO(result.out)))
    assert len(rows) == 2
    assert {row["train_seconds"] == "" for row in rows} == {True, False}


@pytest.mark.slow
def test_models_are_trained_on_the_same_split_and_compared_without_those_that_fail(
    tl, workplace: Path, colours: Path
) -> None:
    options = ("--weights", "none", "--input-size", "32", "--epochs", "1", "--freeze-epochs", "1")
    models = ("shufflenet_v2_x0_5", "squeezenet1_1")
    # Inception does not accept images this small.
    result: Result = tl("compare", "--models", *models, "inception_v3", *options, "--data", colours, "--format", "json")
    assert result.code == 1
    assert "not in the comparison: inception_v3" in result.err
    report = json.loads(result.out)
    assert sorted(row["model"] for row in report["models"]) == sorted(models)
    assert all(row["trainings"] == 1 and row["train_seconds"] > 0 for row in report["models"])
    store = open_store(None)
    *trainings, parent = store.runs()
    assert {run.data.tags["mlflow.parentRunId"] for run in trainings} == {parent.info.run_id}
    assert len({run.images["training"].digest for run in trainings}) == 1
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["mlflow.note.content"].startswith("| model |")
    assert store.artifact(parent, "comparison/accuracy_against_cost.png") is not None
    assert store.find("latest").info.run_id == trainings[0].info.run_id
    assert f"tl compare {parent.info.run_id[:8]} shows it" in tl("eval", parent.info.run_id).err
    again = json.loads(tl("compare", parent.info.run_id, "--format", "json", "--no-speed").out)
    assert again["pairs"] == report["pairs"]


@pytest.mark.slow
def test_data_without_test_images_are_refused_after_the_first_training(tl, workplace: Path) -> None:
    for part in ("train", "val"):
        write_pictures(Path("data") / part, COLOURS, 6)
    result = tl("compare", "--models", "shufflenet_v2_x0_5", "squeezenet1_1", "--weights", "none", "--input-size", "32",
                "--epochs", "1", "--freeze-epochs", "1", "--data", "data", "--format", "csv")  # fmt: skip
    assert result.code == 2
    assert "give --split val" in result.err
    assert [run.info.status for run in open_store(None).runs()] == ["FINISHED", "FAILED"]


@pytest.mark.parametrize(("error", "status"), [(None, "FINISHED"), (OSError(), "FAILED"), (Interrupted(2), "KILLED")])
def test_the_status_of_a_comparison_follows_from_the_error_in_its_block(
    workplace: Path, error: BaseException | None, status: str
) -> None:
    store = open_store(None)
    parent = Parent(store, store.experiment("tl"), "a against b", "tl compare")
    with pytest.raises(type(error)) if error else nullcontext(), parent:
        if error:
            raise error
    (run,) = store.runs()
    assert (run.info.status, run.info.run_id) == (status, parent.run_id)


def test_invalid_comparisons_are_refused(tl, store: Store) -> None:
    assert "two or more" in tl("compare", "good").err
    assert "two or more" in tl("compare", "--models", "resnet18").err
    assert "twice" in tl("compare", "good", "good").err
    assert "the same model" in tl("compare", "good", short_id(store.find("good"))).err
    assert "with --models" in tl("compare", "good", "poor", "--epochs", "3").err
    assert "with --models" in tl("compare", "good", "poor", "--seeds", "3").err
    assert "resnt18" in tl("compare", "--models", "resnt18", "resnet18").err
    assert "no such option: --epoch" in tl("compare", "--models", "resnet18", "resnet34", "--epoch", "3").err
    assert "give --seeds" in tl("compare", "--models", "resnet18", "resnet34", "--seed", "3").err
    assert "momentum" in tl("compare", "--models", "resnet18", "resnet34", "--momentum", "-1").err
    assert "names come first" in tl("compare", "--models", "--epochs", "3", "resnet18", "resnet34").err
    assert "nofile.toml" in tl("compare", "--models", "resnet18", "resnet34", "--config", "nofile.toml").err
    assert "goes with --models" in tl("compare", "good", "poor", "--experiment", "x").err


@pytest.mark.slow
def test_an_export_is_checked_and_not_overwritten(tl, store: Store, colours: Path, tmp_path: Path) -> None:
    result = tl("export", "good", "--output", tmp_path / "m.onnx")
    assert result.code == 0, result.err
    assert "checked on 16 of its images" in result.out
    picture = colours / "test" / "green" / "002.png"
    script = Path(__file__).parents[2] / "examples" / "predict_with_onnx.py"
    completed = subprocess.run([sys.executable, script, tmp_path / "m.onnx", picture], capture_output=True, check=True)
    expected = json.loads(tl("predict", "good", picture, "--top", "1").out)["predictions"][0]
    assert completed.stdout.decode().strip() == f"{expected['class']} ({expected['probability']:.1%})"
    assert "exists already" in tl("export", "good", "--output", tmp_path / "m.onnx").err
    assert tl("export", "good", "--output", tmp_path / "m.onnx", "--force").code == 0
    assert "is a folder" in tl("export", "good", "--output", tmp_path, "--force").err
    assert tl("export", "good", "--format", "folder", "--output", tmp_path / "m").code == 0
    assert tl("eval", tmp_path / "m", "--json").code == 0


@pytest.mark.slow
def test_a_logged_model_is_served(store: Store, colours: Path) -> None:
    (model_id,) = store.find("good").model_ids
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", f"models:/{model_id}", "-p", str(port)]
    # mlflow finds uvicorn on the path and starts child processes, which a signal to mlflow alone would leave behind.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    server = subprocess.Popen([*command, "--env-manager", "local"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                              start_new_session=True,
                              env={**os.environ, "PATH": path, "TL_REQUEST_PIXELS": "100000"})  # fmt: skip
    url, pictures = f"http://127.0.0.1:{port}", [colours / "test" / name / "001.png" for name in ("red", "blue")]

    def predict(body: dict[str, object] | str) -> list[dict[str, object]]:
        is_csv = isinstance(body, str)
        data = (body if is_csv else json.dumps(body)).encode()
        kind = {"Content-Type": "text/csv" if is_csv else "application/json"}
        with urllib.request.urlopen(urllib.request.Request(f"{url}/invocations", data, kind), timeout=600) as response:
            return json.loads(response.read(), parse_constant=pytest.fail)["predictions"]

    try:
        deadline = time.monotonic() + 1200
        while True:
            try:
                with urllib.request.urlopen(f"{url}/ping", timeout=600):
                    break
            except (urllib.error.URLError, ConnectionError):
                assert server.poll() is None, "the server has ended"
                assert time.monotonic() < deadline, "the server did not start"
                time.sleep(0.3)
        script = Path(__file__).parents[2] / "examples" / "ask_server.py"
        shown = subprocess.run([sys.executable, script, url, *pictures], capture_output=True, text=True, check=True)
        texts = [base64.b64encode(path.read_bytes()).decode() for path in pictures]
        url_and_wrapped = [f"data:image/png;base64,{texts[0]}", base64.encodebytes(pictures[1].read_bytes()).decode()]
        assert "\n" in url_and_wrapped[1].strip()
        rows = predict({"dataframe_split": {"columns": ["image"], "data": [[text] for text in texts]}})
        for body in (
            {"dataframe_records": [{"image": text} for text in texts]},
            {"instances": [{"image": text} for text in texts]},
            {"instances": texts},
            {"inputs": {"image": texts}},
            {"inputs": texts},
            {"inputs": [{"image": text} for text in texts]},
        ):
            assert predict(body) == rows, body.keys()
        for table in (pd.DataFrame({"image": texts}), pd.DataFrame({"name": ["a", "b"], "image": url_and_wrapped})):
            assert predict(table.to_csv(index=False)) == rows
        assert predict({"inputs": texts[:1]}) == [pytest.approx(rows[0])]
        assert predict({"dataframe_records": [{"image": text} for text in url_and_wrapped]}) == rows
        for body in (
            {"inputs": [texts[0], "%%%", texts[1]]},
            {"instances": [{"image": t} for t in (texts[0], "", texts[1])]},
        ):
            first, bad, last = predict(body)
            assert [first, last] == [pytest.approx({**row, "error": None}) for row in rows]
            assert {key for key, value in bad.items() if value is not None} == {"error"}
        for bad, reason in ((None, "found null"), ("\u00fc", "the character '\u00fc'"), ("", "found an empty text")):
            images = [texts[0], texts[1], bad]
            for body in (
                {"dataframe_split": {"columns": ["image"], "data": [[image] for image in images]}},
                {"dataframe_records": [{"image": image} for image in images]},
                {"instances": [{"image": image} for image in images]},
                {"instances": images},
                {"inputs": {"image": images}},
                {"inputs": images},
                {"inputs": [{"image": image} for image in images]},
            ):
                error = predict(body)[2]["error"]
                assert error.startswith("row 3 of 3: expected an image file as base64"), (body.keys(), error)
                assert reason in error, (body.keys(), error)
        assert (
            "found null" in predict(pd.DataFrame({"name": ["a", "b"], "image": [None, texts[0]]}).to_csv())[0]["error"]
        )
        large = [base64.b64encode(_png(250, 200)).decode(), base64.b64encode(_png(200, 250)).decode()]
        assert [row["error"] for row in predict({"inputs": [*large, "%%%"]})[:2]] == [None, None]
        for body in ({"inputs": [*large, base64.b64encode(_png(1, 1)).decode()]}, {"instances": [*large, texts[0]]}):
            with pytest.raises(urllib.error.HTTPError) as refused:
                predict(body)
            assert refused.value.code == 400
            pixels = 100_001 if "inputs" in body else 101_024
            assert json.loads(refused.value.read())["message"] == (
                f"the 3 images of this request have {pixels:,} pixels, the limit is 100,000. "
                "Send fewer or smaller images per request, or start the server with a higher TL_REQUEST_PIXELS."
            )
        assert predict({"dataframe_split": {"columns": ["image"], "data": []}}) == []
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    classifier, card = registry.restore(folder_of(store, "good"))
    for row, expected, line in zip(
        rows,
        predict_images(Predictor(classifier, card.classes), map(str, pictures)),
        shown.stdout.splitlines(),
        strict=True,
    ):
        assert row["label"] == card.classes[int(expected.probabilities.argmax())]
        assert [row[name] for name in card.classes] == pytest.approx(expected.probabilities.tolist(), abs=1e-5)
        assert line.startswith(f"{expected.path}: {row['label']} (")


def _png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(file, "PNG")
    return file.getvalue()


def test_a_server_returns_the_cause_of_a_failure_and_a_program_has_no_pixel_limit(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    (model_id,) = store.find("good").model_ids
    monkeypatch.setenv("TL_REQUEST_PIXELS", "8x8")
    with pytest.raises(mlflow.MlflowException, match="TL_REQUEST_PIXELS='8x8' is not a number of pixels"):
        mlflow.pyfunc.load_model(f"models:/{model_id}")
    monkeypatch.setenv("TL_REQUEST_PIXELS", "99")
    served = mlflow.pyfunc.load_model(f"models:/{model_id}")
    assert len(served.predict(pd.DataFrame({"image": [_png(10, 10)] * 2}))) == 2

    class Broken(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images @ images.new_zeros(7, 7)

    inside = served.unwrap_python_model()
    broken = replace(inside.predictor.classifier, model=Broken())
    monkeypatch.setattr(inside, "predictor", replace(inside.predictor, classifier=broken))
    images = [base64.b64encode(_png(9, 9)).decode()]
    with pytest.raises(mlflow.MlflowException) as failure:
        invocations(json.dumps({"inputs": images}), "application/json", served, served.metadata.get_input_schema())
    response = json.loads(failure.value.serialize_as_json())
    assert failure.value.get_http_status_code() == 500
    assert response["message"].startswith("the model failed: RuntimeError: ")
    assert "48" in response["message"]
    assert images[0] not in json.dumps(response)


BAD_PICTURES = {
    b"rubbish": "not a picture of a known format",
    "%%%": "not base64",
    "aGVsbG8gd29ybGQ=": "not a picture of a known format",
    "aGVsbG8g_": "not base64",
    "data:image/png;base64,%FF": "not base64",
    "data:image/png": "a comma before its contents",
    "data:image/png,abc": "not a picture of a known format",
    None: "found null",
    7: "found int '7'",
}


@pytest.mark.parametrize("names", [("label", "probability", "error"), ("class:label", "label", "image")])
def test_classes_and_errors_have_separate_columns(
    store: Store, colours: Path, tmp_path: Path, names: tuple[str, ...]
) -> None:
    from mlflow.pyfunc.scoring_server import predictions_to_json

    classifier, card = registry.restore(folder_of(store, "good"))
    bundle.save(tmp_path / "model", classifier.model, card.model_copy(update={"classes": names}))
    with mlflow.start_run(experiment_id=store.experiment("elsewhere")):
        served = mlflow.pyfunc.load_model(f"models:/{log_model(tmp_path / 'model', Naming('odd', {}))}")
    paths = [colours / "test" / name / "001.png" for name in ("red", "blue")]
    expected = torch.stack(
        [each.probabilities for each in predict_images(Predictor(classifier, card.classes), map(str, paths))]
    )
    images = [path.read_bytes() for path in paths]
    columns = {"label": "class:label", "probability": "class:probability", "error": "class:error",
               "class:label": "class:class:label", "image": "image"}  # fmt: skip

    table = served.predict(pd.DataFrame({"image": images}, index=[7, 9]))
    assert list(table.columns) == ["label", "probability", *(columns[name] for name in names)]
    assert table.index.tolist() == [7, 9]
    assert table["label"].tolist() == [names[index] for index in expected.argmax(1)]
    assert table.iloc[:, 1:].to_numpy(dtype=float) == pytest.approx(
        np.column_stack([expected.max(1).values, expected]), abs=1e-5
    )

    mixed = served.predict(pd.DataFrame({"image": [images[0], *BAD_PICTURES, images[1]]}))
    text = io.StringIO()
    predictions_to_json(mixed, text)
    first, *bad, last = json.loads(text.getvalue(), parse_constant=pytest.fail)["predictions"]
    for row, index in ((first, 0), (last, 1)):
        assert row["error"] is None
        assert [row[columns[name]] for name in names] == pytest.approx(expected[index].tolist(), abs=1e-5)
    for row, reason in zip(bad, BAD_PICTURES.values(), strict=True):
        assert reason in row.pop("error")
        assert set(row.values()) == {None}

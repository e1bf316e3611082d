"""``soup`` keeps the runs whose mean is best on validation, and records the mean as an ordinary model."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import jsonschema
import mlflow
import numpy as np
import pytest
import safetensors.numpy
import torch
from PIL import Image

from tests.api.conftest import Silent, small_settings
from tl_cli import (
    CompareRequest,
    EvaluateRequest,
    Settings,
    SoupRequest,
    TrainRequest,
    TrainResult,
    compare,
    evaluate,
    load,
    soup,
    train,
)
from tl_cli.api.comparison_run import CompareObserver
from tl_cli.api.recorded_model import find_recorded
from tl_cli.api.soup_run import _check_alike, _Source
from tl_cli.errors import DataError, UsageError
from tl_cli.models import bundle
from tl_cli.models.bundle import read_card
from tl_cli.models.zoo import registry

PARTS = ("train", "val", "test")
SCHEMA = json.loads((files("tl_cli") / "api" / "schemas" / "soup.json").read_text())


@dataclass(frozen=True)
class Trainings:
    """Three runs from the weights of a first one, in the order of their names."""

    folder: Path
    runs: dict[str, TrainResult]

    def mean_accuracy(self, names: list[str], part: str) -> float:
        """Return the accuracy of the mean weights of runs, computed with numpy and torch alone."""
        folders = [self.folder / self.runs[name].model for name in names]
        tensors = [safetensors.numpy.load_file(folder / "model.safetensors") for folder in folders]
        classifier, card = registry.restore(folders[0])
        mean = {}
        for key, value in tensors[0].items():
            average = np.mean([each[key].astype(np.float64) for each in tensors], axis=0)
            mean[key] = torch.from_numpy(np.asarray(average).astype(value.dtype))
        classifier.model.load_state_dict(mean)
        files = sorted((self.folder / "pictures" / part).rglob("*.png"))
        pixels = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in files]) / 255
        inputs = torch.from_numpy((pixels - card.preprocessing.mean) / card.preprocessing.std).float()
        with torch.inference_mode():
            found = classifier.model(inputs.permute(0, 3, 1, 2)).argmax(1).numpy()
        return float(
            np.mean([card.classes[index] == path.parent.name for index, path in zip(found, files, strict=True)])
        )


def write_shades(folder: Path, count: int, seed: int) -> None:
    """Write images of three classes whose shades overlap, so that no network classifies all of them correctly."""
    random = np.random.default_rng(seed)
    for name, shade in (("dark", 90), ("medium", 128), ("light", 166)):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = shade + random.normal(0, 22) + random.normal(0, 30, (32, 32, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name / f"{index:03d}.png")


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory, ready_database: Path) -> Trainings:
    """Two runs on opposite sides of a good model, and one far away; each trained at a rate that changes nothing."""
    folder = tmp_path_factory.mktemp("soup")
    (folder / "mlflow.db").write_bytes(ready_database.read_bytes())
    for seed, (part, count) in enumerate((("train", 20), ("val", 60), ("test", 60))):
        write_shades(folder / "pictures" / part, count, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        settings = small_settings(folder / "pictures").model_dump(exclude_unset=True)
        good = train(TrainRequest(Settings(**{**settings, "epochs": 12}), run_name="good"), Silent())
        random = np.random.default_rng(0)
        tensors = safetensors.numpy.load_file(good.model / "model.safetensors")
        noise = {
            key: random.normal(0, 0.08 * value.std(), value.shape).astype(np.float32)
            for key, value in tensors.items()
            if key.endswith(".weight") and value.ndim > 1
        }
        runs = {}
        for name, factor in (("above", 1.0), ("below", -1.0), ("far", 8.0)):
            classifier, card = registry.restore(good.model)
            state = {
                key: torch.from_numpy(np.asarray(value + factor * noise.get(key, 0), value.dtype))
                for key, value in tensors.items()
            }
            classifier.model.load_state_dict(state)
            bundle.save(folder / name, classifier.model, card)
            changed = {"weights": str(folder / name), "epochs": 1, "freeze_epochs": 0, "lr": 1e-12}
            runs[name] = train(TrainRequest(Settings(**{**settings, **changed}), run_name=name), Silent())
        mlflow.set_tracking_uri(None)
    return Trainings(folder, runs)


@pytest.fixture
def place(trainings: Trainings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Trainings]:
    """The folder of the runs as the current one."""
    monkeypatch.chdir(trainings.folder)
    mlflow.set_tracking_uri(f"sqlite:///{trainings.folder}/mlflow.db")
    yield trainings
    mlflow.set_tracking_uri(None)


def test_runs_are_tried_best_first_and_kept_while_the_mean_is_as_good(place: Trainings) -> None:
    names = [*place.runs]
    result = soup(SoupRequest(names, workers=0, command="tl soup"), Silent())
    alone = {name: place.mean_accuracy([name], "val") for name in names}
    order = sorted(names, key=lambda name: -alone[name])
    assert [each.val_accuracy for each in result.ingredients] == sorted(alone.values(), reverse=True)
    kept, best = order[:1], alone[order[0]]
    expected = [(order[0], best, True)]
    for name in order[1:]:
        accuracy = place.mean_accuracy([*kept, name], "val")
        expected.append((name, accuracy, accuracy >= best))
        if accuracy >= best:
            kept, best = [*kept, name], accuracy
    assert [(each.name, each.mean_val_accuracy, each.is_kept) for each in result.ingredients] == expected
    assert 1 < len(kept) < len(names)
    # Tested once, against the best run alone.
    assert result.test is not None
    assert result.gain is not None
    assert result.test.accuracy.value == place.mean_accuracy(kept, "test")
    gain = place.mean_accuracy(kept, "test") - place.mean_accuracy(kept[:1], "test")
    assert result.gain.difference.value == pytest.approx(gain)
    data = result.to_dict()
    assert (data["val_images"], data["val_accuracy"]) == (180, best)


def test_the_mean_is_an_ordinary_model_that_names_its_runs(place: Trainings) -> None:
    names = ["above", "below"]
    result = soup(SoupRequest(names, run_name="both", workers=0, command="tl soup above below"), Silent())
    if len(result.kept) < 2:
        pytest.fail("these runs were chosen so that their mean is kept")
    assert result.model is not None
    assert result.run_id is not None
    tensors = [safetensors.numpy.load_file(place.runs[name].model / "model.safetensors") for name in names]
    mean = safetensors.numpy.load_file(result.model / "model.safetensors")
    for key, value in mean.items():
        if value.dtype == np.float32:
            np.testing.assert_allclose(value, (tensors[0][key] + tensors[1][key]) / 2, rtol=1e-5, atol=1e-7)
    run = mlflow.MlflowClient().get_run(result.run_id)
    ids = {place.runs[name].run_id for name in names}
    assert set(json.loads(run.data.tags["tl.soup"])) == ids
    assert all(run_id in run.data.tags["mlflow.note.content"] for run_id in ids)
    assert run.info.status == "FINISHED"
    assert (run.info.run_name, run.data.params["recipe"]) == ("both", "soup")
    assert "weights" not in run.data.params  # they differ
    assert run.data.metrics["best/val_accuracy"] == place.mean_accuracy(names, "val")
    assert run.data.metrics["test/accuracy"] == place.mean_accuracy(names, "test")
    assert {each.dataset.name for each in run.inputs.dataset_inputs} == {f"pictures-{part}" for part in PARTS}
    assert read_card(result.model).calibration.images == 180
    # The commands that use a run use this one.
    own = evaluate(EvaluateRequest("both", workers=0), Silent())
    assert own.accuracy == run.data.metrics["test/accuracy"]
    pictures = sorted((place.folder / "pictures" / "test").rglob("*.png"))
    predicted = load("both").predict(pictures).labels
    assert np.mean([path.parent.name for path in pictures] == np.array(predicted)) == own.accuracy
    compared = compare(CompareRequest(("both", "above"), measure_speed=False), CompareObserver())
    assert {model.name for model in compared.comparison.contenders} == {"both", "above"}


def test_where_no_mean_is_as_good_nothing_is_recorded(place: Trainings) -> None:
    before = len(mlflow.MlflowClient().search_runs(["1"]))
    result = soup(SoupRequest(["above", "far"], workers=0), Silent())
    assert [each.is_kept for each in result.ingredients] == [True, False]
    assert (result.run_id, result.model, result.test) == (None, None, None)
    assert len(mlflow.MlflowClient().search_runs(["1"])) == before


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"classes": ("dark", "light", "other")}, "classes"),
        ({"architecture": "timm/test_vit"}, "architecture"),
        ({"data": {"val_fraction": 0.2}}, "images"),
    ],
)
def test_runs_that_cannot_be_averaged_are_refused_with_the_reason(place: Trainings, changed, reason: str) -> None:
    card = read_card(place.runs["above"].model)
    if "data" in changed:
        splits = {**card.data.splits, "val": card.data.splits["test"]}
        changed = {"data": card.data.model_copy(update={"splits": splits})}
    first, other = (find_recorded(name, None, print) for name in ("above", "below"))
    with pytest.raises(UsageError, match=f"above .* and below .* differ in {reason}, so"):
        _check_alike([_Source(first, card), _Source(other, card.model_copy(update=changed))])


@pytest.mark.parametrize("names", [["above"], ["above", "above"], ["above", "below", "above"]])
def test_two_different_runs_are_needed(place: Trainings, names: list[str]) -> None:
    with pytest.raises(UsageError, match="two or more different runs"):
        soup(SoupRequest(names))


def test_the_command_shows_what_is_kept_and_prints_json(tl: Callable, place: Trainings) -> None:
    result = tl("soup", "above", "below", "far", "--workers", "0", "--json")
    assert result.code == 0, result.err
    data = json.loads(result.out)
    jsonschema.validate(data, SCHEMA)
    assert data["test_accuracy"] == place.mean_accuracy(["above", "below"], "test")
    assert [run["is_kept"] for run in data["runs"]] == [True, True, False]
    shown = " ".join(tl("soup", "above", "below", "--workers", "0").out.split())
    validated = place.mean_accuracy(["above", "below"], "val")
    assert f"mean of 2 runs: {validated:.2%} validated" in shown
    assert f"test accuracy {data['test_accuracy']:.2%} (95% interval" in shown
    nothing = tl("soup", "far", "above", "--workers", "0")
    assert (nothing.code, "No mean is as good on validation as above alone" in nothing.out) == (0, True)
    jsonschema.validate(json.loads(tl("soup", "far", "above", "--json").out), SCHEMA)


def test_without_its_test_images_the_mean_is_recorded_untested(place: Trainings) -> None:
    (place.folder / "pictures" / "test").rename(place.folder / "away")
    observer = Silent()
    try:
        result = soup(SoupRequest(["above", "below"], workers=0), observer)
    finally:
        (place.folder / "away").rename(place.folder / "pictures" / "test")
    assert (result.test, result.gain) == (None, None)
    assert any("the mean is not tested: " in message for message in observer.warnings)
    assert "test/accuracy" not in mlflow.MlflowClient().get_run(result.run_id).data.metrics


def test_changed_validation_images_decide_nothing(place: Trainings) -> None:
    picture = next((place.folder / "pictures" / "val" / "dark").iterdir())
    before = picture.read_bytes()
    Image.new("RGB", (32, 32)).save(picture)
    try:
        with pytest.raises(DataError, match="val images of these runs have changed"):
            soup(SoupRequest(["above", "below"], workers=0))
    finally:
        picture.write_bytes(before)


def test_a_mean_cannot_be_resumed_and_odd_names_are_shown_as_they_are(tl: Callable, place: Trainings) -> None:
    result = soup(SoupRequest(["above", "below"], run_name="odd [/b] | [red]name", workers=0), Silent())
    run = mlflow.MlflowClient().get_run(result.run_id)
    assert run.info.run_name == "odd [/b] | [red]name"
    mlflow.MlflowClient().set_terminated(result.run_id, "KILLED")
    assert "is the mean of other runs" in tl("train", "--resume", result.run_id).err
    mlflow.MlflowClient().set_terminated(result.run_id, "FINISHED")
    # The mean is the best, and is averaged with itself and one of its runs.
    again = tl("soup", result.run_id, "above", "--workers", "0")
    assert again.code == 0, again.err
    assert "odd [/b] | [red]name" in again.out

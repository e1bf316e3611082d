"""All views of ``inspect`` on one recorded run, which no test changes."""

import json
from pathlib import Path

import mlflow
import pytest
import torch
from jsonschema import Draft202012Validator
from PIL import Image

import tl_cli
from tests.support.commands import Result, train_in
from tl_cli.models import bundle
from tl_cli.models.zoo import registry
from tl_cli.tracking.store import Store, open_store

TRAIN = ("efficientnet_lite0", "--input-size", "48", "--batch-size", "12", "--augment", "none", "--steps", "24",
         "--freeze-epochs", "1", "--freeze-until", "blocks.2", "--seed", "3", "--quiet", "--run-name", "seen")  # fmt: skip

SCHEMA = Draft202012Validator(
    json.loads(Path(str(tl_cli.__file__)).with_name("api").joinpath("schemas/inspect.json").read_text())
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, ready_database: Path, colours: Path) -> Path:
    """A folder in which one model was trained."""
    return train_in(tmp_path_factory.mktemp("inspected"), ready_database, (*TRAIN, "--data", colours))


@pytest.fixture
def store(tl, trained: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The store of the run, whose folder is the current one."""
    monkeypatch.chdir(trained)
    mlflow.set_tracking_uri(f"sqlite:///{trained}/mlflow.db")
    return open_store(None)


def inspect(tl, *arguments: str | Path) -> dict:
    result: Result = tl("inspect", *arguments, "--json")
    assert (result.code, result.err) == (0, "")
    report = json.loads(result.out)
    SCHEMA.validate(report)
    return report


@pytest.mark.slow
def test_the_tree_of_a_run_and_of_an_architecture(tl, store: Store) -> None:
    own = inspect(tl, "seen")
    assert (own["classes"], own["input_size"], own["head"]) == (3, 48, ["classifier"])
    network = registry.create("efficientnet_lite0", 3, weights="none").model
    assert own["tree"]["parameters"] == sum(p.numel() for p in network.parameters())
    assert own["tree"]["children"][0]["name"] == "conv_stem"
    assert "classifier (Linear)" in own["why_head"][0]
    assert own["preprocessing"]["crop"] == 48
    assert inspect(tl, "timm/crossvit_9_240")["input_size"] == 240
    # torchvision's IMAGENET1K_V1 weights of ResNet-50 resize to 256 pixels, V2 to 232.
    resized = [
        inspect(tl, "resnet50", *flags)["preprocessing"]["resize"] for flags in ((), ("--weights", "IMAGENET1K_V1"))
    ]
    assert resized == [232, 256]
    other = tl("inspect", "mobilenet_v3_small", "--num-classes", "7", "--depth", "1").out
    assert "7 classes, input 224 x 224" in other
    assert "MACs" in other
    assert "features Sequential" in other
    assert "InvertedResidual" not in other


@pytest.mark.slow
def test_the_freeze_plan_takes_the_flags_of_training(tl, store: Store) -> None:
    flags = (
        "--freeze-epochs",
        "2",
        "--epochs",
        "8",
        "--unfreeze-stages",
        "2",
        "--layer-decay",
        "0.5",
        "--data",
        "digits",
    )
    plan = inspect(tl, "efficientnet_b0", "--freeze-plan", *flags)
    assert [(each["name"], each["first"], each["last"]) for each in plan["phases"]] == [
        ("head", 1, 2), ("fine-tune", 3, 5), ("fine-tune", 6, 8),
    ]  # fmt: skip
    assert sum(part["parameters"] for part in plan["parts"]) == 4_020_358
    (head,) = (part for part in plan["parts"] if part["is_head"])
    assert head["trainable"] == [12_810] * 3
    assert len({group["rates"][-1] for group in plan["parameter_groups"]}) > 5
    assert (plan["freezing_by_name"]["frozen"], plan["freezing_by_name"]["trainable"]) == (3_383_818, 636_540)
    shown = tl("inspect", "efficientnet_b0", "--freeze-plan", *flags).out
    assert "would freeze 3,383,818 of 4,020,358 parameters" in shown
    assert "the new head (classifier.1) would stay frozen at random weights" in shown
    assert "features.1.0.block.1.fc1 and 31 others" in shown
    # For a run: with its own settings and with others.
    own = inspect(tl, "seen", "--freeze-plan")
    assert own["frozen_layers"] > 0
    assert [each["first"] for each in own["phases"]] == [1, 2]
    assert len(inspect(tl, "seen", "--freeze-plan", "--freeze-epochs", "0")["phases"]) == 1


@pytest.mark.slow
def test_residuals_of_a_run_on_its_own_images(tl, store: Store, tmp_path: Path, colours: Path) -> None:
    report = inspect(tl, "seen", "--residual", "--against", "pretrained", "--image", "0", "--output", tmp_path / "out")
    assert len(report["residuals"]) == 9
    assert report["source"] == f"{colours}, val"
    assert 0 <= report["accuracy"] <= 1
    for row in report["residuals"]:
        assert [each["scale"] for each in row["effects"]] == [0.0, 0.5]
        assert row["ratio"] > 0
        assert set(row["before"]) >= {"ratio", "cosine", "share"}
    # Layers that were frozen throughout have not changed.
    first = report["residuals"][0]
    assert first["block"] == "blocks.1.1"
    assert first["before"]["ratio"] == pytest.approx(first["ratio"], rel=1e-5)
    assert report["residuals"][-1]["before"]["ratio"] != pytest.approx(report["residuals"][-1]["ratio"], rel=1e-5)
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == ["residual_parts.png", "residuals.json", "residuals.png"]
    for name in ("residual_parts.png", "residuals.png"):
        assert min(Image.open(tmp_path / "out" / name).size) > 300
    assert json.loads((tmp_path / "out" / "residuals.json").read_text()) == report
    shown = tl(
        "inspect",
        "seen",
        "--residual",
        "--no-ablate",
        "--image",
        colours / "test" / "red" / "000.png",
        "--block",
        "blocks.3.1",
    )
    assert shown.code == 0
    assert "x + F(x)" in shown.out
    assert "blocks.3.1: F is" in shown.out
    assert "no F" not in shown.out


def test_residuals_of_architectures_with_and_without_residual_blocks(tl, store: Store) -> None:
    result = tl("inspect", "efficientnet_lite0", "--residual", "--images", "4", "--input-size", "96")
    assert result.code == 0
    assert "4 images: square cuts of three photographs" in result.out
    assert "predictions that stay the same" in result.out
    random = tl("inspect", "resnet18", "--residual", "--weights", "none", "--images", "2", "--input-size", "64")
    assert "resnet18, random weights" in random.out
    assert "The head is new and untrained" in random.out
    assert "no F" not in random.out
    none = tl("inspect", "squeezenet1_1", "--residual", "--weights", "none")
    assert none.code == 0
    assert "no residual connections" in none.out
    assert inspect(tl, "squeezenet1_1", "--residual", "--weights", "none")["residuals"] == []


@pytest.mark.slow
def test_drift_separates_frozen_layers_from_trained_ones(tl, store: Store, tmp_path: Path) -> None:
    report = inspect(tl, "seen", "--drift", "--split", "train", "--output", tmp_path)
    by_name = {layer["name"]: layer for layer in report["layers"]}
    for name in ("conv_stem", "blocks.0.0", "blocks.1.0", "blocks.1.1"):
        assert by_name[name]["moved"] == 0
        assert by_name[name]["similarity"] == pytest.approx(1)
    assert by_name["blocks.5.3"]["moved"] > 0
    assert by_name["blocks.5.3"]["similarity"] < 1
    assert by_name["classifier"]["is_head"]
    assert min(Image.open(tmp_path / "drift.png").size) > 300
    still = inspect(tl, "seen", "--drift", "--against", "seen")
    assert {layer["moved"] for layer in still["layers"]} == {0}
    assert "has not moved at all" in tl("inspect", "seen", "--drift", "--against", "seen").out


def test_features_are_compared_with_the_head(tl, store: Store, tmp_path: Path) -> None:
    report = inspect(tl, "seen", "--features", "--split", "test", "--output", tmp_path)
    assert (report["images"], len(report["map"])) == (18, 18)
    assert {each["class"] for each in report["map"]} == {"blue", "green", "red"}
    assert report["knn_accuracy"] > 0.6
    assert report["neighbours"] >= 1
    assert min(Image.open(tmp_path / "features.png").size) > 300
    shown = tl("inspect", "seen", "--features", "--split", "test").out
    assert "a blue  b green  c red" in shown


def test_heatmaps_of_given_images_and_of_mistakes(tl, store: Store, tmp_path: Path, colours: Path) -> None:
    picture = colours / "test" / "red" / "000.png"
    report = inspect(tl, "seen", "--cam", picture, "--cam", colours / "test" / "blue" / "001.png", "--output", tmp_path)
    assert report["images"][0]["image"] == str(picture)
    assert all(0 <= each["probability"] <= 1 for each in report["images"])
    assert report["layer"] == "bn2"
    assert Image.open(tmp_path / "cam.png").size[0] > 300
    worst = inspect(tl, "seen", "--worst", "3", "--split", "train")
    assert len(worst["images"]) <= 3
    assert all(each["predicted"] != each["true"] for each in worst["images"])
    if not worst["images"]:
        assert "no mistakes" in tl("inspect", "seen", "--worst", "3", "--split", "train").out


@pytest.mark.slow
def test_results_are_logged_with_the_run(tl, store: Store) -> None:
    run = store.find("seen")
    for view, option in (("tree", ()), ("drift", ("--drift",)), ("freeze_plan", ("--freeze-plan",))):
        assert tl("inspect", "seen", *option, "--log").code == 0
        kept = [each.path for each in store.client.list_artifacts(run.info.run_id, f"inspect/{view}")]
        assert f"inspect/{view}/{view}.json" in kept
    assert "inspect/drift/drift.png" in [
        each.path for each in store.client.list_artifacts(run.info.run_id, "inspect/drift")
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resnet18", "--residual", "--drift"), "different views"),
        (
            ("resnet18", "--freeze-epochs", "5"),
            "no such option: --freeze-epochs; options of tl train go with --freeze-plan",
        ),
        (("resnet18", "extra"), "no such argument: extra"),
        (("resnet18", "--image", "0"), "--image has no effect here; it goes with --residual"),
        (("resnet18", "--drift"), "--drift goes with a run"),
        (("resnet18", "--log"), "only a recorded run can keep results"),
        (("efficientnet_lite0", "--features"), "--features needs labelled training images"),
        (("efficientnet_lite0", "--worst", "3"), "only a run can be wrong"),
        (("efficientnet_lite0", "--residual", "--against", "pretrained"), "goes with a run"),
        (("seen", "--residual", "--weights", "none"), "--weights is for an architecture"),
        (("seen", "--residual", "--image", "99", "--no-ablate"), "images, counted from 0"),
        (("seen", "--residual", "--image", "0", "--block", "blocks.3.3"), "no residual block is called 'blocks.3.3'"),
        (("seen", "--cam", "nothing.jpg"), "nothing.jpg: there is no such file"),
        (("seen", "--drift", "--against", "nobody"), "nobody"),
        (("resnet18", "--freeze-plan", "--freeze-epochs", "9", "--epochs", "3"), "cannot be fewer than"),
        (("resnet18", "--freeze-plan", "--frozen", "9"), "No such option"),
        (("efficentnet_b0", "--residual"), "Did you mean efficientnet_b0"),
    ],
)
def test_a_refused_view_is_explained(tl, store: Store, arguments: tuple[str, ...], message: str) -> None:
    result = tl("inspect", *arguments)
    assert result.code == 2
    assert message in " ".join((result.out + result.err).replace("│", " ").split())


@pytest.mark.parametrize("view", [("--residual",), ("--drift",), ("--features",), ("--worst", "2"), ("--cam",)])
def test_a_model_with_broken_weights_is_refused(
    tl, store: Store, tmp_path: Path, colours: Path, view: tuple[str, ...]
) -> None:
    folder = tmp_path / "broken"
    classifier, card = registry.restore(store.model_folder(store.find("seen")))
    with torch.no_grad():
        classifier.model.get_submodule("blocks.3.1.bn2").weight[0] = float("nan")
    bundle.save(folder, classifier.model, card)
    options = (*view, colours / "test" / "red" / "000.png") if view == ("--cam",) else view
    result = tl("inspect", folder, *options)
    assert result.code == 2
    assert "the model returned NaN or infinity for" in result.err


def test_heatmaps_of_image_files_need_no_data(tl, store: Store, trained: Path, colours: Path, tmp_path: Path) -> None:
    folder = tmp_path / "alone"
    classifier, card = registry.restore(store.model_folder(store.find("seen")))
    gone = card.data.model_copy(update={"source": str(tmp_path / "gone")})
    bundle.save(folder, classifier.model, card.model_copy(update={"data": gone}))
    report = inspect(tl, folder, "--cam", colours / "test" / "red" / "000.png")
    assert report["images"][0]["predicted"] in ("blue", "green", "red")
    result = tl("inspect", folder, "--residual")
    assert result.code == 2
    assert "gone" in result.err
    assert tl("inspect", folder).code == 0

"""Arguments of other tools are accepted, or refused with the equivalent command."""

import json
import shlex
from pathlib import Path

import pytest

from tests.support.commands import train
from tests.support.pictures import COLOURS, write_pictures
from tl_cli.errors import StorageError
from tl_cli.tracking.store import open_store


@pytest.mark.parametrize(
    ("typed", "suggestion"),
    [
        ("train -m resnet18 -e 5 -b 32", "train resnet18 --epochs 5 --batch-size 32"),
        ("train resnet18 --pretrained", "train resnet18"),
        ("train resnet18 --pretrained True --wd=0.1", "train resnet18 --weight-decay 0.1"),
        ("train resnet18 --no-pretrained", "train resnet18 --weights none"),
        ("train model=resnet18 data=digits epochs=5 imgsz=64 pretrained=False", "train resnet18 --data digits --epochs 5 --input-size 64 --weights none"),
        ("task=classify mode=train model=resnet18 data=digits", "train resnet18 --data digits"),
        ("classify train model=resnet18 batch=16", "train resnet18 --batch-size 16"),
        ("train resnet18 --lr-backbone 1e-4 --opt sgd --sched cosine", "train resnet18 --unfreeze-lr 1e-4 --optimizer sgd --schedule cosine"),
        ("train resnet18 --freeze_epochs 3 --learning_rate 0.01", "train resnet18 --freeze-epochs 3 --lr 0.01"),
        ("train resnet18 -lr 0.01 --num-classes 7 -j 4", "train resnet18 --lr 0.01 --workers 4"),
        ("train resnet18 --amp --patience 3", "train resnet18 --precision fp16 --early-stop 3"),
        ("train resnet18 --feature_cache=false", "train resnet18 --no-feature-cache"),
        ("train resnet18 --frze-epochs 3", "train resnet18 --freeze-epochs 3"),
        ("train resnet18 digits --epochs 2", "train resnet18 --epochs 2 --data digits"),
        ("fine_tune resnet18", "train resnet18"),
        ("trian resnet18", "train resnet18"),
        ("resnet18 --data digits", "train resnet18 --data digits"),
        ("--resume latest", "train --resume latest"),
        ("resume latest", "train --resume latest"),
        ("val --batch 8", "eval --batch-size 8"),
        ("val model=best.pt", "eval best"),
        ("eval -m last.pt", "eval latest"),
        ("predict model=best source=photo.jpg", "predict best photo.jpg"),
        ("predict best.pt photo.jpg", "predict best photo.jpg"),
        ("diff latest best", "runs diff latest best"),
        ("runs delete 3f2a91c0", "runs rm 3f2a91c0"),
        ("inspect resnet18 --residuals", "inspect resnet18 --residual"),
        ("compare resnet18 efficientnet_b0 --freeze-epochs 5", "compare --models resnet18 efficientnet_b0 --freeze-epochs 5"),
        ("compare resnet18 timm/vit_tiny_patch16_224", "compare --models resnet18 timm/vit_tiny_patch16_224"),
        ("train resnet18 --quiet --dry-run", "train resnet18 --dry-run"),
        ("eval -q --no-log", "eval --no-log"),
        ("predict best.pt", "predict best photo.jpg"),
    ],
)  # fmt: skip
def test_a_command_of_another_tool_is_refused_with_the_equivalent_one(tl, typed: str, suggestion: str) -> None:
    result = tl(*shlex.split(typed))
    assert result.code == 2, result
    assert result.out == ""
    assert result.err.rstrip().endswith(f": tl {suggestion}"), result.err
    if typed == "predict best.pt":
        assert "there is no file best.pt here" in result.err


def test_commands_for_a_user_interface_suggest_mlflow(tl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)  # MLflow leaves it there
    assert tl("ui", "--port", "5001").err.rstrip().endswith("did you mean: mlflow ui --port 5001")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///other.db")
    assert tl("ui").err.rstrip().endswith("mlflow ui --backend-store-uri sqlite:///other.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://anna:secret@mlflow.example.org")
    assert tl("ui").err.rstrip().endswith("did you mean: https://mlflow.example.org in a browser")


def test_no_command_is_suggested_for_unknown_words(tl) -> None:
    for typed in (
        "train resnet18 --zzzz 3 -e 5",
        "qqqq",
        "train resnet18 --epochs many",
        "train --epochs 2 --data nowhere resnet18",
    ):
        result = tl(*typed.split())
        assert result.code == 2
        assert "did you mean: tl" not in result.err


def test_help_and_version_are_commands_too(tl) -> None:
    assert tl("version") == tl("--version")
    assert tl("help") == tl("--help")
    assert tl("help", "runs", "diff") == tl("runs", "diff", "--help")


def test_data_lists_sets_by_part_of_a_name(tl) -> None:
    for name in ("cifar10", "CIFAR-10", "cifar_10"):
        assert [row["name"] for row in json.loads(tl("data", name, "--json").out)] == ["cifar10"]
    assert [row["name"] for row in json.loads(tl("data", "cifar", "--json").out)] == ["cifar10", "cifar100"]
    Path("my photos").mkdir()
    for name, text in (
        ("my photos", "tl data check 'my photos'"),
        ("cifar11", "Did you mean cifar10"),
        ("imagenet", "available to registered users only"),
    ):
        refused = tl("data", name)
        assert (refused.code, text in refused.err) == (2, True), refused.err


@pytest.mark.slow
def test_the_latest_run_is_the_default(tl, colours: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = train(tl, colours)
    alone = tl("runs", "diff", "latest", "best")
    assert (alone.code, "there is no other" in alone.err) == (2, True)
    write_pictures(Path("photos"), COLOURS, 1)
    assert tl("train", "--weights", first, "--data", colours, "--epochs", "1", "--run-name", "other").code == 0
    latest = open_store(None).find("other").info.run_id[:8]
    assert json.loads(tl("eval", "--json").out) == json.loads(tl("eval", latest, "--json").out)
    pictures = ("photos/red/000.png", "photos/blue")
    expected = tl("predict", latest, *pictures, "--format", "jsonl").out
    assert len(expected.splitlines()) == 2
    for names in (pictures, ("latest", *pictures), ("./photos/red/000.png", "photos/blue")):
        found = tl("predict", *names, "--format", "jsonl")
        assert [json.loads(line)["predictions"] for line in found.out.splitlines()] == [
            json.loads(line)["predictions"] for line in expected.splitlines()
        ]
    Path("best.pt").touch()
    for names in (("best.pt",), ("best.pt", *pictures)):
        refused = tl("predict", *names)
        assert (refused.code, "tl train MODEL --weights best.pt" in refused.err) == (2, True), refused.err
    for mistyped in (("othr", *pictures), ("nothing.png",)):
        refused = tl("predict", *mistyped)
        assert (refused.code, "no run is called" in refused.err) == (2, True)
    assert tl("predict", "other").err.rstrip().endswith(": tl predict other photo.jpg")
    # In another, read-only folder.
    Path("elsewhere").mkdir()
    Path("elsewhere/mlruns").touch()
    here = ("other", "--tracking-uri", f"sqlite:///{workplace}/mlflow.db")
    monkeypatch.chdir("elsewhere")
    refused = tl("eval", *here)
    assert (refused.code, refused.err.startswith("error: the results are not recorded")) == (1, True), refused.err
    assert tl("eval", *here, "--no-log").code == 0
    assert "other" in tl("runs", *here[1:]).out
    with pytest.raises(StorageError, match="cannot write"):
        open_store(here[2]).experiment("new")
    monkeypatch.chdir(workplace)
    same = tl("runs", "diff", "latest", "other")
    assert same.err.rstrip().endswith(f"tl runs diff {latest} {first}")
    assert tl("runs", "diff", latest, first).code == 0

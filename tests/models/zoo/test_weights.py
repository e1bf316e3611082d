import hashlib
import json
import os
import pickle
import re
import runpy
import shutil
import subprocess
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from torch import nn

from tests.support.zoo import NAME, card, trained
from tl_cli.contract import Calibration, Preprocessing
from tl_cli.errors import WeightsError
from tl_cli.models import bundle
from tl_cli.models.zoo import registry, weights


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3},
                                  lambda s: {f"module.{key}": value for key, value in s.items()}])  # fmt: skip
def test_a_pth_file_loads_in_the_shapes_people_keep(wrap, tmp_path: Path) -> None:
    model = trained()
    path = tmp_path / "model.pth"
    torch.save(wrap(model.state_dict()), path)
    loaded = registry.create(NAME, 3, weights=str(path), mean=(0.4, 0.4, 0.4))
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in loaded.model.state_dict().items())
    assert loaded.preprocessing.mean == (0.4, 0.4, 0.4)
    assert loaded.weights.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert not loaded.head_is_new


def test_a_safetensors_file_with_other_classes_keeps_its_backbone_only(tmp_path: Path) -> None:
    model = trained(num_classes=5)
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(model.state_dict(), path)
    loaded = registry.create(NAME, 3, weights=str(path))
    assert loaded.head_is_new
    assert loaded.model.fc.weight.shape[0] == 3
    assert torch.equal(loaded.model.conv1[0].weight, model.conv1[0].weight)


def test_weights_stay_when_their_file_is_truncated_after_it_was_read(tmp_path: Path) -> None:
    model, path = trained(), tmp_path / "model.safetensors"
    safetensors.torch.save_file(model.state_dict(), path)
    state = weights.read(path)
    os.truncate(path, 10)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in state.items())


@pytest.mark.parametrize(("classes", "is_new"), [(("a", "b", "c"), False), (("x", "y", "z"), True)])
def test_a_saved_model_keeps_its_head_for_its_own_classes(classes, is_new: bool, tmp_path: Path) -> None:
    model = trained()
    bundle.save(tmp_path / "best", model, card(("a", "b", "c")))
    loaded = registry.create(NAME, 3, weights=str(tmp_path / "best"), classes=classes)
    assert loaded.head_is_new is is_new
    assert torch.equal(loaded.model.fc.weight, model.fc.weight) is not is_new
    assert loaded.preprocessing.mean == (0.1, 0.2, 0.3)


def test_a_saved_model_survives_the_trip(tmp_path: Path) -> None:
    model = trained()
    saved = bundle.save(tmp_path, model, card(("a", "b", "c")))
    classifier, read = registry.restore(tmp_path)
    assert read == saved
    assert read.weights_sha256 == hashlib.sha256((tmp_path / bundle.WEIGHTS_FILE).read_bytes()).hexdigest()
    assert read.model_copy(update={"weights_sha256": None}) == card(("a", "b", "c"))
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(classifier.model(images), model.eval()(images))


def test_a_saved_model_of_another_architecture_is_refused(tmp_path: Path) -> None:
    bundle.save(tmp_path, trained(), card(("a", "b", "c")))
    with pytest.raises(WeightsError, match=f"are for {NAME}, not for resnet18"):
        registry.create("resnet18", 3, weights=str(tmp_path))


def set_in(facts: dict, field: str, value: object) -> None:
    *parents, last = field.split(".")
    for each in parents:
        facts = facts[each]
    facts[last] = value


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("preprocessing.resize", 2_000_000_000),
        ("preprocessing.resize", 0),
        ("preprocessing.resize", 1),
        ("preprocessing.resize", "large"),
        ("preprocessing.crop", -1),
        ("preprocessing.mean", [0.5, float("nan"), 0.5]),
        ("preprocessing.mean", [0.5, 1e300, 0.5]),
        ("preprocessing.std", [0.5, 0.0, 0.5]),
        ("preprocessing.std", [0.5, float("inf"), 0.5]),
        ("preprocessing.pixel_range", [5.0, 5.0]),
        ("preprocessing.crop_mode", "middle"),
        ("data.split_seed", -1),
        ("data.val_fraction", 1.5),
        ("data.test_fraction", float("nan")),
        ("data.limit", 0),
        ("data.source", "a\0b"),
        ("data.splits", {"train": {"count": -3, "digest": ""}}),
        ("classes", ["a", "b", "a"]),
        ("classes", []),
        ("classes", "abc"),
        ("head", []),
        ("build_options", {"image_size": 1 << 40}),
        ("epoch", -1),
        ("val_accuracy", 7),
        ("calibration.temperature", 1e-300),
        ("calibration.images", -1),
        ("config", {"seed": -1}),
        ("architecture", ""),
        ("format", 2),
    ],
)
def test_a_card_that_was_edited_by_hand_is_refused_by_the_name_of_the_field(
    field: str, value: object, tmp_path: Path
) -> None:
    facts = card(("a", "b", "c")).model_copy(update={"calibration": Calibration()}).model_dump(mode="json")
    set_in(facts, field, value)
    (tmp_path / bundle.CARD_FILE).write_text(json.dumps(facts))
    with pytest.raises(WeightsError, match=rf"{bundle.CARD_FILE} is not what tl writes: {re.escape(field)}"):
        bundle.read_card(tmp_path)
    if field == "config":
        with pytest.raises(WeightsError, match=r"writes: config: seed must be a number from 0 to"):
            bundle.read_card(tmp_path)
    del facts[field.partition(".")[0]]
    (tmp_path / bundle.CARD_FILE).write_text(json.dumps(facts))
    if field in ("architecture", "head", "classes", "epoch") or field.startswith(("preprocessing", "data")):
        with pytest.raises(WeightsError, match=f"{field.partition('.')[0]} is missing"):
            bundle.read_card(tmp_path)
    else:
        bundle.read_card(tmp_path)


@pytest.mark.parametrize(
    ("architecture", "side", "said"),
    [("vit_b_32", 96, "build_options are for 64 pixels"), ("squeezenet1_1", 4, "squeezenet1_1 cannot take it")],
)
def test_a_side_that_the_model_cannot_take_is_said_when_the_model_is_opened(
    architecture: str, side: int, said: str, tmp_path: Path
) -> None:
    classifier = registry.create(architecture, 3, weights="none", input_size=64)
    how = Preprocessing(resize=side, crop=side)
    edited = card(("a", "b", "c"), architecture).model_copy(
        update={"head": classifier.head, "build_options": classifier.build_options, "preprocessing": how}
    )
    bundle.save(tmp_path, classifier.model, edited)
    with pytest.raises(WeightsError, match=f"preprocessing.crop is {side}, and {said}"):
        registry.restore(tmp_path)


def test_wrong_shapes_are_named(tmp_path: Path) -> None:
    state = trained().state_dict()
    state["conv1.0.weight"] = torch.zeros(9, 3, 3, 3)
    del state["conv5.0.weight"]
    path = tmp_path / "model.pth"
    torch.save(state, path)
    with pytest.raises(WeightsError, match=r"conv1.0.weight is \(9, 3, 3, 3\), expected \(24, 3, 3, 3\).*conv5.0"):
        registry.create(NAME, 3, weights=str(path))


def leave_canary() -> None:
    os.mkdir(os.environ["CANARY"])


class Canary:
    """Runs something as it is unpickled."""

    def __init__(self, function, *arguments) -> None:
        self.what = (function, arguments)

    def __reduce__(self):
        return self.what


class SetState:
    def __reduce__(self):
        return Holder, (), {"evil": Canary(os.mkdir, os.environ["CANARY"])}


class Holder:
    pass


def evils(canary: str) -> dict[str, object]:
    """Fifteen things that leave a canary when they are unpickled by a reader that runs code."""
    code = f"__import__('os').mkdir({canary!r})"
    return {
        "os.mkdir": Canary(os.mkdir, canary),
        "os.system": Canary(os.system, f"mkdir {canary}"),
        "os.popen": Canary(os.popen, f"mkdir {canary}"),
        "eval": Canary(eval, code),
        "exec": Canary(exec, code),
        "subprocess": Canary(subprocess.check_call, ["mkdir", canary]),
        "runpy": Canary(runpy.run_path, canary + ".py"),
        "shutil": Canary(shutil.copytree, os.path.dirname(canary), canary),
        "open": Canary(open, canary, "w"),
        "pathlib": Canary(Path.mkdir, Path(canary)),
        "a function of a module": Canary(leave_canary),
        "in a list": [torch.zeros(1), Canary(os.mkdir, canary)],
        "as a key": {Holder: Canary(os.mkdir, canary)},
        "in the state of an object": SetState(),
        "getattr": Canary(map, os.mkdir, [canary]),
    }


@pytest.mark.parametrize("form", ["torch", "torch, old format", "pickle", "pickle, protocol 0", "in a state_dict"])
def test_code_in_a_weights_file_is_never_run(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    canary = tmp_path / "ran"
    monkeypatch.setenv("CANARY", str(canary))
    (tmp_path / "ran.py").write_text(f"__import__('os').mkdir({str(canary)!r})")
    made = evils(str(canary))
    assert len(made) == 15
    for name, evil in made.items():
        path = tmp_path / "model.pth"
        if form.startswith("torch"):
            torch.save(evil, path, _use_new_zipfile_serialization=form == "torch")
        elif form.startswith("pickle"):
            path.write_bytes(pickle.dumps(evil, protocol=0 if form.endswith("0") else 4))
        else:
            torch.save({"state_dict": {"conv.weight": torch.zeros(1), "evil": evil}}, path)
        assert not canary.exists(), "the test itself has left it"
        with pytest.raises(WeightsError):
            weights.read(path)
        assert not canary.exists(), name


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"PK\x03\x04torn"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_what_is_no_weights_file_is_refused(content: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="model"):
        weights.read(path)


@pytest.mark.parametrize("name", ["mnasnet0_5", "densenet121", "regnet_y_400mf", "vit_b_32", "efficientnet_lite0"])
def test_every_kind_of_model_survives_being_saved(name: str, tmp_path: Path) -> None:
    classifier = registry.create(name, 3, weights="none", input_size=64)
    saved = card(("a", "b", "c"), name).model_copy(
        update={
            "head": classifier.head,
            "build_options": classifier.build_options,
            "preprocessing": Preprocessing(resize=64, crop=64),
        }
    )
    bundle.save(tmp_path, classifier.model, saved)
    restored, _ = registry.restore(tmp_path)
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(restored.model(images), classifier.model.eval()(images))
    warm = registry.create(name, 3, weights=str(tmp_path), classes=("a", "b", "c"), input_size=64)
    assert not warm.head_is_new


def test_a_file_with_a_hash_sign_in_its_name_is_that_file(tmp_path: Path) -> None:
    path = tmp_path / "run#3.pth"
    torch.save(trained().state_dict(), path)
    assert registry.create(NAME, 3, weights=str(path)).weights.name == "file:run#3.pth"


def test_a_whole_pickled_model_is_named_and_never_built(tmp_path: Path) -> None:
    torch.save(trained(), tmp_path / "model.pth")
    with pytest.raises(WeightsError, match=r"a whole model \(.*ShuffleNetV2.*run code; .*state_dict\(\)"):
        weights.read(tmp_path / "model.pth")


def test_a_torchscript_program_is_named(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "model.pt")
    with pytest.raises(WeightsError, match=r"is a TorchScript program.*state_dict\(\)"):
        weights.read(tmp_path / "model.pt")


def test_a_folder_that_timm_has_saved_is_read_with_classes_and_preprocessing(tmp_path: Path) -> None:
    model = timm.create_model("test_resnet", num_classes=3)
    model.pretrained_cfg.update(mean=(0.1, 0.2, 0.3), crop_pct=0.5, input_size=(3, 64, 64))
    timm.models.save_for_hf(model, tmp_path, model_config={"label_names": ["a", "b", "c"]}, safe_serialization=True)
    loaded = registry.create("timm/test_resnet", 3, weights=str(tmp_path), classes=("a", "b", "c"))
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in loaded.model.state_dict().items())
    assert not loaded.head_is_new
    assert (loaded.preprocessing.mean, loaded.preprocessing.crop, loaded.preprocessing.resize) == (
        (0.1, 0.2, 0.3), 64, 128
    )  # fmt: skip
    with pytest.raises(WeightsError, match="are for timm/test_resnet, not for resnet18"):
        registry.create("resnet18", 3, weights=str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(WeightsError, match=r"config.json is not what timm writes: architecture is missing"):
        registry.create("timm/test_resnet", 3, weights=str(tmp_path))

import hashlib
import json
import os
import pickle
import runpy
import shutil
import subprocess
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from tests.support.zoo import NAME, trained
from tl_cli.errors import WeightsError
from tl_cli.models.zoo import registry, weights


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3},
                                  lambda s: {f"module.{key}": value for key, value in s.items()}])  # fmt: skip
def test_a_pth_file_loads_plain_nested_and_with_a_prefix(wrap, tmp_path: Path) -> None:
    model = trained()
    path = tmp_path / "model.pth"
    torch.save(wrap(model.state_dict()), path)
    loaded = registry.create(NAME, 3, weights=str(path), mean=(0.4, 0.4, 0.4))
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in loaded.model.state_dict().items())
    assert loaded.preprocessing.mean == (0.4, 0.4, 0.4)
    assert loaded.weights.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert not loaded.head_is_new


def test_only_the_backbone_of_a_file_with_other_classes_is_used(tmp_path: Path) -> None:
    model = trained(num_classes=5)
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(model.state_dict(), path)
    loaded = registry.create(NAME, 3, weights=str(path))
    assert loaded.head_is_new
    assert loaded.model.fc.weight.shape[0] == 3
    assert torch.equal(loaded.model.conv1[0].weight, model.conv1[0].weight)


def test_weights_stay_in_memory_when_their_file_is_truncated(tmp_path: Path) -> None:
    model, path = trained(), tmp_path / "model.safetensors"
    safetensors.torch.save_file(model.state_dict(), path)
    state = weights.read(path)
    os.truncate(path, 10)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in state.items())


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
    """Calls a function when it is unpickled."""

    def __init__(self, function, *arguments) -> None:
        self.what = (function, arguments)

    def __reduce__(self):
        return self.what


class SetState:
    def __reduce__(self):
        return Holder, (), {"evil": Canary(os.mkdir, os.environ["CANARY"])}


class Holder:
    pass


def malicious_objects(canary: str) -> dict[str, object]:
    """Return fifteen objects that leave a canary when unpickled by a reader that runs code."""
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
    made = malicious_objects(str(canary))
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
def test_a_file_without_weights_is_refused(content: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="model"):
        weights.read(path)


def test_a_file_with_a_hash_sign_in_its_name_is_that_file(tmp_path: Path) -> None:
    path = tmp_path / "run#3.pth"
    torch.save(trained().state_dict(), path)
    assert registry.create(NAME, 3, weights=str(path)).weights.name == "file:run#3.pth"


def test_a_pickled_model_is_refused_without_loading_it(tmp_path: Path) -> None:
    torch.save(trained(), tmp_path / "model.pth")
    with pytest.raises(WeightsError, match=r"a whole model \(.*ShuffleNetV2.*run code; .*state_dict\(\)"):
        weights.read(tmp_path / "model.pth")


def test_a_torchscript_program_is_refused(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "model.pt")
    with pytest.raises(WeightsError, match=r"is a TorchScript program.*state_dict\(\)"):
        weights.read(tmp_path / "model.pt")


@pytest.mark.parametrize(
    "facts",
    [
        {"classes": ["cat", "ant", "bee"]},
        {"class_to_idx": {"ant": 1, "bee": 2, "cat": 0}},
        {"hyper_parameters": {"idx_to_class": {2: "bee", 0: "cat", 1: "ant"}}},
        {"config": {"id2label": {"0": "cat", "1": "ant", "2": "bee"}}},
        {"meta": {"CLASSES": ("cat", "ant", "bee")}},
        {"label_names": json.dumps(["cat", "ant", "bee"])},
    ],
)
def test_class_names_are_read_in_their_usual_forms(facts: dict[object, object]) -> None:
    assert weights.class_names({"epoch": 7, **facts}) == ("cat", "ant", "bee")


@pytest.mark.parametrize(
    "facts",
    [
        {"classes": ["cat", "ant", "ant"]},
        {"class_to_idx": {"ant": 1, "bee": 3, "cat": 0}},
        {"classes": 3},
        {"classes": "b, a"},
        {"classes": "7"},
        {"epoch": 7},
    ],
)
def test_facts_that_do_not_name_each_output_are_not_read_as_class_names(facts: dict[object, object]) -> None:
    assert weights.class_names(facts) is None


@pytest.mark.parametrize("names", [("b", "a", "c"), ("b", "a")])
def test_class_names_in_the_metadata_of_safetensors_match_the_rows_of_the_head(
    names: tuple[str, ...], tmp_path: Path
) -> None:
    model, path = trained(), tmp_path / "named.safetensors"
    safetensors.torch.save_file(model.state_dict(), path, {"class_names": json.dumps(names)})
    loaded = registry.create(NAME, 3, weights=str(path), classes=("a", "b", "c"))
    assert loaded.head_is_new is (len(names) != 3)
    if len(names) == 3:
        assert torch.equal(loaded.model.fc.weight, model.fc.weight[[1, 0, 2]])

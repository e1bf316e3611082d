import argparse
import re
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from tests.support.zoo import NAME, trained
from tl_cli.errors import WeightsError
from tl_cli.models.zoo import registry, weights


def wrapped(form: str, state: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> object:
    """Return a checkpoint as other programs write it; ``other`` are weights that must not be used."""
    arguments = argparse.Namespace(model="x", lr=0.1, betas=[0.9, 0.99])
    optimizer = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    averaged = {"n_averaged": torch.tensor(7), **{f"module.{key}": value for key, value in other.items()}}
    return {
        "timm train.py": {
            "epoch": 3, "arch": "x", "state_dict": state, "optimizer": optimizer, "version": 2, "args": arguments,
            "metric": 71.2, "state_dict_ema": other,
        },
        "torchvision references": {
            "model": state, "optimizer": optimizer, "epoch": 3, "args": arguments, "model_ema": averaged,
        },
        "AveragedModel": {"n_averaged": torch.tensor(7), **{f"module.{key}": value for key, value in state.items()}},
        "net": {"net": state, "acc": 93.1, "epoch": 4},
        "DataParallel and compile": {f"module._orig_mod.{key}": value for key, value in state.items()},
        "Lightning": {
            "epoch": 3, "pytorch-lightning_version": "2.0", "hyper_parameters": {"lr": 0.1},
            "state_dict": {
                "loss_fn.weight": torch.ones(3), **{f"classifier_net.{key}": value for key, value in state.items()}
            },
        },
        "beside a loss": {"loss": torch.tensor(0.3), "weights": state},
    }[form]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("timm train.py", r"took state_dict from .*, not state_dict_ema; .*--weights '.*model.pth#state_dict_ema'"),
        ("torchvision references", r"took model from .*, not model_ema; .*#model_ema"),
        ("AveragedModel", "left out 1 other tensors: n_averaged"),
        ("net", "took net from"),
        ("DataParallel and compile", r"begin with 'module\._orig_mod\.'"),
        ("Lightning", r"begin with 'classifier_net\.'"),
        ("beside a loss", "took weights from"),
    ],
)
def test_checkpoints_of_other_programs_load_with_a_note_on_the_weights_used(
    form: str, message: str, tmp_path: Path
) -> None:
    model, path = trained(), tmp_path / "model.pth"
    torch.save(wrapped(form, model.state_dict(), trained(seed=6).state_dict()), path)
    loaded = registry.create(NAME, 3, weights=str(path))
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in loaded.model.state_dict().items())
    assert re.search(message, " ".join(loaded.notes))


@pytest.mark.parametrize(
    ("form", "key"), [("timm train.py", "state_dict_ema"), ("torchvision references", "model_ema")]
)
def test_averaged_weights_are_used_if_requested_by_key(form: str, key: str, tmp_path: Path) -> None:
    other, path = trained(seed=6), tmp_path / "model.pth"
    torch.save(wrapped(form, trained().state_dict(), other.state_dict()), path)
    loaded = registry.create(NAME, 3, weights=f"{path}#{key}")
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in loaded.model.state_dict().items())
    assert loaded.weights.name == f"file:model.pth#{key}"
    with pytest.raises(WeightsError, match=rf"no tensors under 'nothing'; it has .*{key}"):
        registry.create(NAME, 3, weights=f"{path}#nothing")


@pytest.mark.parametrize(
    ("head", "kept", "message"),
    [
        (lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(1024, 3)), "1", "took fc.1 as the head fc"),
        (lambda: nn.Sequential(nn.Linear(1024, 8), nn.ReLU(), nn.Linear(8, 3)), None, "left out the weights' own head"),
        (lambda: nn.Sequential(nn.BatchNorm1d(1024), nn.Linear(1024, 3)), None, "left out the weights' own head"),
        (lambda: nn.Sequential(nn.Linear(1024, 3, bias=False)), None, "left out the weights' own head"),
    ],
)
def test_a_replaced_head_is_used_if_it_is_one_layer(head, kept: str | None, message: str, tmp_path: Path) -> None:
    model, path = trained(), tmp_path / "model.pth"
    model.fc = head()
    torch.save(model.state_dict(), path)
    loaded = registry.create(NAME, 3, weights=str(path))
    assert message in " ".join(loaded.notes)
    assert loaded.head_is_new is (kept is None)
    assert torch.equal(loaded.model.conv1[0].weight, model.conv1[0].weight)
    if kept:
        assert torch.equal(loaded.model.fc.weight, model.fc[int(kept)].weight)
        assert torch.equal(loaded.model.fc.bias, model.fc[int(kept)].bias)


@pytest.mark.parametrize("head", [lambda: nn.Linear(1280, 3), lambda: nn.Sequential(nn.Linear(1280, 3))])
def test_a_replaced_head_is_used_where_the_original_is_a_sequence(head, tmp_path: Path) -> None:
    model = torchvision.models.mobilenet_v2(num_classes=3)
    model.classifier = head()
    torch.save(model.state_dict(), tmp_path / "model.pth")
    loaded = registry.create("mobilenet_v2", 3, weights=str(tmp_path / "model.pth"))
    own = model.classifier if isinstance(model.classifier, nn.Linear) else model.classifier[0]
    assert torch.equal(loaded.model.classifier[1].weight, own.weight)


def test_a_checkpoint_without_tensors_names_its_keys(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "note": "none"}, tmp_path / "model.pth")
    with pytest.raises(WeightsError, match="no state_dict.*keys epoch, note"):
        weights.read(tmp_path / "model.pth")

from pathlib import Path

import pytest
import torch

from tl_cli.contract import DataSpec
from tl_cli.data.dataset import open_data
from tl_cli.data.sources.catalogue import SETS
from tl_cli.errors import UsageError
from tl_cli.training.config import Given
from tl_cli.training.plan import foresee, prepare
from tl_cli.training.stage import describe_groups

# What a run finds out by trying, and what is foreseen does not try.
_MEASURED = {"precision", "layout", "threads", "fold"}


@pytest.mark.parametrize(
    "flags",
    [
        {"data": "digits"},
        {"freeze_epochs": 2, "epochs": 6, "unfreeze_stages": 3, "layer_decay": 0.7},
        {"freeze_epochs": 0, "epochs": 2, "bn": "train", "decay_norms": False},
    ],
)  # fmt: skip
def test_what_is_foreseen_is_what_a_run_does(flags: dict[str, object], colours: Path) -> None:
    given = {
        "model": "resnet18",
        "weights": "none",
        "data": str(colours),
        "probe": False,
        "feature_cache": False,
    } | flags
    foreseen, plan = foresee(Given.of(given)), prepare(Given.of(given))
    one, other = foreseen.resolved.config.model_dump(), plan.config.model_dump()
    assert {name: (one[name], other[name]) for name in one if one[name] != other[name] and name not in _MEASURED} == {}
    assert foreseen.strategy.phases == plan.phases
    assert describe_groups(foreseen.strategy, foreseen.resolved.config) == describe_groups(plan.strategy, plan.config)
    assert {p.device.type for p in foreseen.strategy.classifier.model.parameters()} == {"meta"}
    for phase in plan.phases:
        names = ([layer.name for layer in each.trained_layers(phase)] for each in (foreseen.strategy, plan.strategy))
        assert len(set(map(tuple, names))) == 1


def test_nothing_is_fetched_for_a_set_that_is_not_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TL_DATA_DIR", str(tmp_path))
    config = foresee(Given.of({"model": "efficientnet_b0", "data": "cifar10", "freeze_epochs": 5})).resolved.config
    assert (config.freeze_epochs, config.input_size) == (5, 96)
    assert not any(tmp_path.iterdir())


def test_groups_say_what_trains_when() -> None:
    given = {"model": "resnet18", "data": "digits", "freeze_epochs": 2, "epochs": 4, "lr": 1e-3, "unfreeze_lr": 4e-4,
             "freeze_until": "layer4"}  # fmt: skip
    found = foresee(Given.of(given))
    strategy, groups = found.strategy, describe_groups(found.strategy, found.resolved.config)
    assert sum(group.parameters for group in groups) == sum(p.numel() for p in strategy.classifier.model.parameters())
    for group in groups:
        assert group.rates == ((1e-3, 4e-4) if group.is_head else (0.0, 4e-4))
        assert (group.weight_decay == 0) == (group.parameters == 10 or group.tensors == 40)
    with pytest.raises(UsageError, match="there are only 2 layers"):
        foresee(Given.of(given | {"unfreeze_stages": 5, "epochs": 20}))


def test_the_catalogue_knows_the_size_of_digits() -> None:
    data = open_data(DataSpec(source="digits", layout="classes"), workers=0)
    assert data.native_size == SETS["digits"].pixels
    assert all(each.pixels is None or 8 <= each.pixels <= 96 for each in SETS.values())


def test_a_size_that_does_not_fit_is_refused_as_training_does() -> None:
    with pytest.raises(UsageError, match="cannot take --input-size 40"):
        foresee(Given.of({"model": "inception_v3", "data": "digits", "input_size": 40}))
    assert torch.get_default_device().type == "cpu"

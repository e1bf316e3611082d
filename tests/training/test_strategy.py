import copy
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.support.training import RESNET, SMALL_RESNET, plan_for, run, weights_of
from tl_cli.contract import DataSpec
from tl_cli.data.dataset import open_data
from tl_cli.data.sources.catalogue import SETS
from tl_cli.errors import UsageError
from tl_cli.training.config import Given
from tl_cli.training.events import EpochEnded, PhaseStarted
from tl_cli.training.fit import fit
from tl_cli.training.plan import foresee, new_state
from tl_cli.training.strategy import describe_groups


def test_groups_give_rates_and_trained_parameters_per_phase() -> None:
    given = {"model": "resnet18", "data": "digits", "freeze_epochs": 2, "epochs": 4, "lr": 1e-3, "unfreeze_lr": 4e-4,
             "freeze_until": "layer4"}  # fmt: skip
    plan = foresee(Given.of(given))
    strategy, groups = plan.strategy, describe_groups(plan.strategy, plan.resolved.config)
    assert sum(group.parameters for group in groups) == sum(p.numel() for p in strategy.classifier.model.parameters())
    for group in groups:
        assert group.rates == ((1e-3, 4e-4) if group.is_head else (0.0, 4e-4))
        assert (group.weight_decay == 0) == (group.parameters == 10 or group.tensors == 40)
    with pytest.raises(UsageError, match="there are only 2 layers"):
        foresee(Given.of(given | {"unfreeze_stages": 5, "epochs": 20}))


def test_the_catalogue_has_the_size_of_digits() -> None:
    data = open_data(DataSpec(source="digits", layout="classes"), workers=0)
    assert data.native_size == SETS["digits"].pixels
    assert all(each.pixels is None or 8 <= each.pixels <= 96 for each in SETS.values())


def test_layers_below_freeze_until_never_change(colours: Path, tmp_path: Path) -> None:
    weights = weights_of(tmp_path, "timm/test_resnet")
    plan = plan_for(
        colours, **SMALL_RESNET, weights=weights, freeze_until="layer3", epochs=3, bn="train", weight_decay=0.5
    )
    before = copy.deepcopy(plan.classifier.model.state_dict())
    run(plan)
    after = plan.classifier.model.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert {key.partition(".")[0] for key in changed} == {"layer3", "layer4", "fc"}
    assert any("running_mean" in key for key in changed)


def test_the_backbone_is_unfrozen_in_stages_from_the_head_down(colours: Path) -> None:
    plan = plan_for(colours, **RESNET, unfreeze_stages=3, freeze_epochs=1, epochs=8)
    assert [(p.first, p.last) for p in plan.phases] == [(1, 1), (2, 3), (4, 5), (6, 8)]
    names = [[layer.name for layer in plan.strategy.trained_layers(phase)] for phase in plan.phases]
    assert [len(n) for n in names] == [1, 4, 7, 10]
    assert all(above == below[-len(above) :] for above, below in pairwise(names))
    assert names[1] == ["layer3.1", "layer4.0", "layer4.1", "fc"]


def test_every_stage_trains_its_layers_and_nothing_below(colours: Path) -> None:
    plan = plan_for(colours, **SMALL_RESNET, unfreeze_stages=3, freeze_epochs=1, epochs=4)
    model = plan.classifier.model
    states = []

    def notify(event: object) -> None:
        if isinstance(event, PhaseStarted | EpochEnded):
            states.append(copy.deepcopy(dict(model.named_parameters())))

    fit(plan, new_state(plan), notify)
    stages = zip(plan.phases, states[::2], states[1::2], strict=True)
    for phase, start, end in stages:
        inside = {id(parameter) for layer in plan.strategy.trained_layers(phase) for parameter in layer.parameters}
        expected = {name for name, parameter in model.named_parameters() if id(parameter) in inside}
        assert {name for name in start if not torch.equal(start[name], end[name])} == expected


def test_stages_leave_layers_below_freeze_until_frozen(colours: Path, tmp_path: Path) -> None:
    weights = weights_of(tmp_path, "resnet18")
    plan = plan_for(colours, **RESNET, weights=weights, unfreeze_stages=2, freeze_until="layer2", epochs=3)
    assert [plan.strategy.trained_layers(phase)[0].name for phase in plan.phases] == ["fc", "layer3.1", "layer2.0"]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["resnet18", "vit_b_32", "efficientnet_b0", "timm/crossvit_9_240", "timm/levit_128"])
def test_parameter_groups_cover_each_parameter_once_and_decay_by_layer(colours: Path, model: str) -> None:
    size = {"vit_b_32": 64, "timm/crossvit_9_240": 240, "timm/levit_128": 224}.get(model, 32)
    plan = plan_for(
        colours, model=model, input_size=size, layer_decay=0.5, decay_norms=False, weight_decay=0.1, limit=6
    )
    groups = plan.strategy.parameter_groups(plan.config)
    inside = [id(p) for group in groups for p in group["params"]]
    assert len(inside) == len(set(inside))
    assert set(inside) == {id(p) for p in plan.classifier.model.parameters()}
    shares = [group["share"] for group in groups if not group["is_head"]]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert shares[0] == 0.5 ** (len(plan.strategy.layers) - 2)
    for group in groups:
        if group["weight_decay"]:
            assert all(p.dim() > 1 for p in group["params"])
    norms = [
        m for m in plan.classifier.model.modules() if isinstance(m, nn.LayerNorm | nn.BatchNorm2d | nn.BatchNorm1d)
    ]
    spared = {id(p) for group in groups if not group["weight_decay"] for p in group["params"]}
    assert all(id(p) in spared for norm in norms for p in norm.parameters())


def test_rates_fall_by_layer_in_training_and_are_recorded(colours: Path) -> None:
    plan = plan_for(colours, **SMALL_RESNET, layer_decay=0.5, schedule="constant", lr=0.01, unfreeze_lr=0.02, epochs=2)
    events, state = run(plan)
    rates = {next(id(p) for p in group["params"]): group["lr"] for group in state.optimizer.param_groups}
    model = plan.classifier.model
    assert rates[id(model.fc.weight)] == 0.02
    assert rates[id(model.layer4[0].conv1.weight)] == pytest.approx(0.02)
    assert rates[id(model.conv1[0].weight)] == pytest.approx(0.02 * 0.5**6)
    last = [event for event in events if isinstance(event, EpochEnded)][-1]
    assert (last.lr_head, last.lr_backbone) == (0.02, 0.02)

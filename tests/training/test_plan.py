"""Each trick is tried for what it promises, and all of them in short runs."""

import copy
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.support.training import RESNET, SMALL_EFFICIENTNET, SMALL_RESNET, plan_for, run, stopped_and_resumed
from tl_cli.errors import UsageError
from tl_cli.models.zoo import registry
from tl_cli.training.config import Given, TrainConfig
from tl_cli.training.events import EpochEnded, LossSampled, PhaseStarted, StepEnded
from tl_cli.training.fit import fit
from tl_cli.training.phases import first_trained, phases_of
from tl_cli.training.plan import new_state

# timm's own for tests: layers are named as resnet18's are; random features do not tell colours apart in the other.


def weights_of(folder: Path, model: str) -> str:
    """A file of weights, so that freezing a part of them makes sense."""
    path = folder / "weights.pth"
    torch.save(registry.create(model, 3, weights="none", seed=7).model.state_dict(), path)
    return str(path)


def test_a_resumed_run_with_every_trick_ends_bit_identical(colours: Path, tmp_path: Path) -> None:
    settings = {
        **SMALL_EFFICIENTNET, "epochs": 4, "ema": 0.9, "mixup": 0.4, "cutmix": 1.0, "dropout": 0.3, "drop_path": 0.2,
        "auto_augment": "randaugment", "random_erasing": 0.5, "accumulate": 2, "layer_decay": 0.8, "unfreeze_stages": 2,
        "freeze_until": "blocks.1", "weights": weights_of(tmp_path, "timm/test_efficientnet"), "sampler": "balanced", "decay_norms": False, "weight_decay": 0.1,
    }  # fmt: skip
    _, expected = run(plan_for(colours, **settings))
    _, again = stopped_and_resumed(colours, tmp_path, 2, **settings)
    assert expected.average is not None
    assert again.average is not None
    for applied in (False, True):
        with (
            expected.average.applied() if applied else torch.no_grad(),
            again.average.applied() if applied else torch.no_grad(),
        ):
            for key, value in expected.model.state_dict().items():
                assert torch.equal(value, again.model.state_dict()[key]), key


# Freezing in parts, and rates by layer


def test_layers_below_the_one_named_never_change(colours: Path, tmp_path: Path) -> None:
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


def test_stages_respect_what_is_frozen_for_good(colours: Path, tmp_path: Path) -> None:
    weights = weights_of(tmp_path, "resnet18")
    plan = plan_for(colours, **RESNET, weights=weights, unfreeze_stages=2, freeze_until="layer2", epochs=3)
    assert [plan.strategy.trained_layers(phase)[0].name for phase in plan.phases] == ["fc", "layer3.1", "layer2.0"]


@pytest.mark.parametrize("frozen", [0, 2, 5])
@pytest.mark.parametrize("stages", [1, 2, 3, 7])
def test_every_stage_adds_layers_and_the_last_has_all(frozen: int, stages: int) -> None:
    config = TrainConfig.model_construct(
        epochs=30, freeze_epochs=2, lr=1.0, unfreeze_lr=1.0, unfreeze_stages=stages, bn="frozen"
    )
    phases = phases_of(config)
    firsts = [first_trained(phase, 14, frozen) for phase in phases]
    assert firsts[0] == 13
    assert firsts == sorted(firsts, reverse=True)
    assert len(set(firsts)) == len(firsts)
    assert firsts[-1] == frozen
    assert sum(phase.epochs for phase in phases) == 30


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


def test_drop_path_is_set_rising_or_refused(colours: Path) -> None:
    from torchvision.ops import StochasticDepth

    plan = plan_for(colours, model="efficientnet_b0", drop_path=0.4, limit=6)
    rates = [module.p for module in plan.classifier.model.modules() if isinstance(module, StochasticDepth)]
    assert rates == sorted(rates)
    assert (rates[0], rates[-1]) == (0.0, pytest.approx(0.4))
    with pytest.raises(UsageError, match="resnet18 has no stochastic depth"):
        plan_for(colours, **RESNET, drop_path=0.4)


# Steps


@pytest.mark.parametrize("steps", [11, 12, 17, 18])
def test_a_run_takes_exactly_the_steps_that_were_asked_for(colours: Path, steps: int) -> None:
    plan = plan_for(colours, epochs=None, steps=steps, freeze_epochs=1)
    events, state = run(plan)
    assert state.counters.step == steps == sum(isinstance(event, StepEnded) for event in events)
    assert state.counters.epoch == plan.config.epochs
    last = [event for event in events if isinstance(event, LossSampled)][-1]
    assert last.lr_backbone < 1e-5  # the schedule is over


def test_a_small_folder_gets_its_length_in_steps_with_the_reason(colours: Path) -> None:
    from tl_cli.training import plan as setup

    resolved = setup.prepare(
        Given.of({"model": "resnet18", "weights": "none", "data": str(colours), "input_size": 32, "freeze_epochs": 2})
    ).resolved
    assert resolved.config.steps == 2 * 1 + 250
    assert "small set" in resolved.origins["steps"].why
    assert resolved.origins["epochs"].source == "derived"
    again = setup.prepare(Given.of({}, resolved.config.model_dump(exclude_none=True, exclude={"epochs"}))).config
    assert again == resolved.config


@pytest.mark.parametrize("steps", [7, 20])
def test_steps_are_exact_where_a_single_image_is_left_over(colours: Path, steps: int) -> None:
    """The frozen phase keeps it, training BatchNorm cannot."""
    plan = plan_for(colours, **SMALL_EFFICIENTNET, limit=48, val_fraction=0.06, batch_size=22, feature_cache=False, bn="train",
                    freeze_epochs=2, epochs=None, steps=steps)  # fmt: skip
    assert len(plan.data.parts["train"]) % 22 == 1
    _, state = run(plan)
    assert state.counters.step == steps


def test_numbers_of_another_type_in_a_file_mean_the_same(colours: Path) -> None:
    from tl_cli.training import plan as setup

    flags = {"model": "resnet18", "weights": "none", "data": str(colours), "input_size": 32}
    plain = setup.prepare(Given.of(flags, {"steps": 30, "batch_size": 16})).config
    assert setup.prepare(Given.of(flags, {"steps": 30.0, "batch_size": "16"})).config == plain


def test_odd_statistics_do_not_break_erasing(colours: Path) -> None:
    """The colour that a box is filled with is cut to grey levels."""
    plan = plan_for(
        colours, **SMALL_EFFICIENTNET, mean=(2.0, -1.0, 0.5), std=(1.0, 1.0, 1.0), random_erasing=1.0, epochs=2
    )
    _, images = next(plan.train_loader(plan.phases[-1]).augmented(plan.augmentation, 0, 1))
    filled = (images == torch.tensor([255, 0, 128], dtype=torch.uint8).view(3, 1, 1)).all(1)
    assert filled.flatten(1).any(1).all()
    events, _ = run(plan)
    assert all(math.isfinite(event.train_loss) for event in events if isinstance(event, EpochEnded))


# Bad combinations


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"class_weights": "balanced", "sampler": "balanced"}, "twice"),
        ({"unfreeze_stages": 3, "epochs": 3}, "--unfreeze-stages 3 needs at least as many epochs"),
        ({"unfreeze_stages": 50, "epochs": 60}, "only 18 layers to unfreeze"),
        ({"steps": 5}, "--steps and --epochs both"),
        ({"steps": 5, "epochs": None}, "fewer than those of --freeze-epochs 1, 6"),
        ({"freeze_until": "stage3"}, "would keep those layers random"),
        ({"auto_ops": 3}, "--auto-ops has no effect without --auto-augment randaugment"),
        ({"momentum": 0.5}, "--momentum has no effect without --optimizer sgd"),
        ({"warmup": 0.2}, "--warmup has no effect without --schedule cosine"),
        ({"epochs": 1, "layer_decay": 0.5}, "--layer-decay has no effect when all epochs are frozen"),
        ({"epochs": 1, "bn": "train"}, "--bn has no effect when all epochs are frozen"),
        ({"epochs": None, "steps": 6, "unfreeze_lr": 0.1}, "--unfreeze-lr has no effect"),
        ({"epochs": 1, "mixup": 0.5}, "--mixup has no effect on cached features"),
        ({"ema": 1.0}, "--ema 1.0"),
        ({"auto_magnitude": 31}, "--auto-magnitude 31"),
        ({"mixup": -0.1}, "--mixup -0.1"),
        ({"random_erasing": 1.5}, "--random-erasing 1.5"),
        ({"auto_augment": "autoaugment"}, "--auto-augment autoaugment"),
        ({"dropout": 1.0}, "--dropout 1.0"),
        ({"layer_decay": 0.0}, "--layer-decay 0.0"),
        ({"accumulate": 0}, "--accumulate 0"),
    ],
)  # fmt: skip
def test_bad_combinations_are_refused_with_the_reason(colours: Path, settings: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        plan_for(colours, **settings)


# All of them, one by one and together


@pytest.mark.parametrize(
    "settings",
    [
        {"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0, "class_weights": "balanced"},
        {"auto_augment": "randaugment", "auto_ops": 3, "auto_magnitude": 12}, {"auto_augment": "trivialaugment"},
        {"random_erasing": 1.0}, {"ema": 0.99, "schedule": "plateau"}, {"accumulate": 3}, {"unfreeze_stages": 2, "schedule": "plateau"},
        {"layer_decay": 0.7, "schedule": "cosine"}, {"sampler": "balanced"}, {"dropout": 0.2},
    ],
    ids=lambda settings: "+".join(settings),
)  # fmt: skip
def test_every_trick_learns_colours(colours: Path, settings: dict[str, object]) -> None:
    values = {**SMALL_EFFICIENTNET, "bn": "train", "epochs": 8, "lr": 0.003, "unfreeze_lr": 0.003, **settings}
    events, _ = run(plan_for(colours, **values))
    ended = [event for event in events if isinstance(event, EpochEnded)]
    assert max(event.validation[0] for event in ended) == 1.0
    assert all(math.isfinite(event.train_loss) for event in ended)

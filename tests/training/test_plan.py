import math
from pathlib import Path

import pytest
import torch
from torchvision.ops import StochasticDepth

from tests.support.training import MODEL, RESNET, SMALL_EFFICIENTNET, plan_for, run
from tl_cli.errors import UsageError
from tl_cli.training import plan as setup
from tl_cli.training.config import Given
from tl_cli.training.events import EpochEnded, LossSampled, StepEnded
from tl_cli.training.plan import first_candidate, foresee, open_phase, prepare
from tl_cli.training.strategy import describe_groups

_MEASURED = {"precision", "layout", "threads", "fold"}


@pytest.mark.parametrize(
    "flags",
    [
        {"data": "digits"},
        {"freeze_epochs": 2, "epochs": 6, "unfreeze_stages": 3, "layer_decay": 0.7},
        {"freeze_epochs": 0, "epochs": 2, "bn": "train", "decay_norms": False},
        {"head_features": "stages"},
    ],
)  # fmt: skip
def test_foresee_resolves_what_a_run_uses(flags: dict[str, object], colours: Path) -> None:
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


def test_foresee_gives_the_head_its_stages() -> None:
    strategy = foresee(Given.of({"model": "resnet18", "data": "digits", "recipe": "head"})).strategy
    # The head's own 512 inputs and the means of layer2 and layer3, for ten digits.
    assert sum(p.numel() for p in strategy.layers[-1].parameters) == (512 + 128 + 256) * 10 + 10
    plain = foresee(Given.of({"model": "resnet18", "data": "digits"})).strategy
    assert sum(p.numel() for p in plain.layers[-1].parameters) == 512 * 10 + 10


def test_stages_of_a_network_that_has_none_are_refused(colours: Path) -> None:
    with pytest.raises(UsageError, match="the stages of squeezenet1_1 cannot be joined; use last"):
        plan_for(colours, model="squeezenet1_1", input_size=64, head_features="stages")


def test_foresee_downloads_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TL_DATA_DIR", str(tmp_path))
    config = foresee(Given.of({"model": "efficientnet_b0", "data": "cifar10", "freeze_epochs": 5})).resolved.config
    assert (config.freeze_epochs, config.input_size) == (5, 96)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "file", "is_watched"), [({}, {}, True), ({"threads": 1}, {}, False), ({}, {"threads": 1}, False)]
)
def test_steps_are_watched_unless_a_person_or_a_recorded_run_has_set_the_threads(
    colours: Path, flags: dict[str, object], file: dict[str, object], is_watched: bool
) -> None:
    given = {"model": MODEL, "weights": "none", "data": str(colours), "input_size": 32, "probe": False}
    plan = prepare(Given.of(given | flags, file))
    opened = open_phase(plan, plan.phases[0], lambda event: None)
    assert (opened.watch is not None) is is_watched


def test_foresee_refuses_an_impossible_input_size() -> None:
    with pytest.raises(UsageError, match="cannot take --input-size 40"):
        foresee(Given.of({"model": "inception_v3", "data": "digits", "input_size": 40}))
    assert torch.get_default_device().type == "cpu"


def test_an_untrained_backbone_is_not_frozen_by_default(colours: Path) -> None:
    config = setup.prepare(Given.of({"model": MODEL, "weights": "none", "data": str(colours), "input_size": 32})).config
    assert (config.freeze_epochs, config.bn) == (0, "train")


def test_batch_norm_cannot_train_on_single_images(colours: Path) -> None:
    with pytest.raises(UsageError, match="batches of one image"):
        plan_for(colours, batch_size=1, bn="train")
    run(plan_for(colours, batch_size=1, bn="frozen", epochs=2, limit=6))


@pytest.mark.parametrize(("name", "value"), [("split_seed", -1), ("val_fraction", -0.1), ("limit", "x"), ("data", 5)])
def test_settings_are_checked_before_anything_is_opened(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"--{name.replace('_', '-')}"):
        setup.prepare(Given.of({"model": MODEL, "data": "/nowhere", name: value}))


def test_drop_path_is_set_rising_or_refused(colours: Path) -> None:
    plan = plan_for(colours, model="efficientnet_b0", drop_path=0.4, limit=6)
    rates = [module.p for module in plan.classifier.model.modules() if isinstance(module, StochasticDepth)]
    assert rates == sorted(rates)
    assert (rates[0], rates[-1]) == (0.0, pytest.approx(0.4))
    with pytest.raises(UsageError, match="resnet18 has no stochastic depth"):
        plan_for(colours, **RESNET, drop_path=0.4)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [11, 12, 17, 18])
def test_a_run_takes_exactly_the_requested_steps(colours: Path, steps: int) -> None:
    plan = plan_for(colours, epochs=None, steps=steps, freeze_epochs=1)
    events, state = run(plan)
    assert state.counters.step == steps == sum(isinstance(event, StepEnded) for event in events)
    assert state.counters.epoch == plan.config.epochs
    last = [event for event in events if isinstance(event, LossSampled)][-1]
    assert last.lr_backbone < 1e-5  # the schedule has ended


def test_a_small_folder_gets_its_length_in_steps_with_the_reason(colours: Path) -> None:
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
    """The frozen phase can train on a single image; BatchNorm cannot."""
    plan = plan_for(colours, **SMALL_EFFICIENTNET, limit=48, val_fraction=0.06, batch_size=22, feature_cache=False, bn="train",
                    freeze_epochs=2, epochs=None, steps=steps)  # fmt: skip
    assert len(plan.data.parts["train"]) % 22 == 1
    _, state = run(plan)
    assert state.counters.step == steps


def test_numbers_of_another_type_in_a_file_are_equal(colours: Path) -> None:
    flags = {"model": "resnet18", "weights": "none", "data": str(colours), "input_size": 32}
    plain = setup.prepare(Given.of(flags, {"steps": 30, "batch_size": 16})).config
    assert setup.prepare(Given.of(flags, {"steps": 30.0, "batch_size": "16"})).config == plain


def test_odd_statistics_do_not_break_erasing(colours: Path) -> None:
    """The fill colour of an erased box is clipped to the range of pixels."""
    plan = plan_for(
        colours, **SMALL_EFFICIENTNET, mean=(2.0, -1.0, 0.5), std=(1.0, 1.0, 1.0), random_erasing=1.0, epochs=2
    )
    _, images = next(plan.train_loader(plan.phases[-1]).augmented(plan.augmentation, 0, 1))
    filled = (images == torch.tensor([255, 0, 128], dtype=torch.uint8).view(3, 1, 1)).all(1)
    assert filled.flatten(1).any(1).all()
    events, _ = run(plan)
    assert all(math.isfinite(event.train_loss) for event in events if isinstance(event, EpochEnded))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "message"),
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
def test_bad_combinations_are_refused_with_the_reason(colours: Path, settings: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan_for(colours, **settings)


def test_on_a_gpu_the_probe_starts_from_torchs_own_threads(colours: Path) -> None:
    config = plan_for(colours).config
    assert first_candidate(config, torch.device("cuda"), set()).threads == torch.get_num_threads()
    assert first_candidate(config, torch.device("cpu"), set()).threads == 1
    fixed = config.model_copy(update={"threads": 7})
    assert first_candidate(fixed, torch.device("cuda"), {"threads"}).threads == 7

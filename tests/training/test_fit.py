import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import pytest
import torch

from tests.support.splitmix import reference
from tests.support.training import SMALL_EFFICIENTNET, plan_for, run, stopped_and_resumed
from tl_cli.choices import OptimizerName
from tl_cli.compute.device import Machine
from tl_cli.errors import DivergedError
from tl_cli.models.zoo import registry
from tl_cli.randomness import Purpose
from tl_cli.training import plan as setup
from tl_cli.training.events import EpochEnded, Event, LossSampled, Noticed, PhaseStarted, StepEnded, StoppedEarly
from tl_cli.training.fit import fit
from tl_cli.training.plan import new_state
from tl_cli.training.state import BEST_FOLDER, Saver


def test_events_arrive_in_the_documented_order(colours: Path) -> None:
    events, state = run(plan_for(colours, feature_cache=False, keep_epoch="best"))
    phases = [event for event in events if isinstance(event, PhaseStarted)]
    assert [(p.name, p.epochs, p.cached) for p in phases] == [("head", (1, 1), False), ("fine-tune", (2, 3), False)]
    assert phases[0].trainable < phases[1].trainable
    steps = [event.step for event in events if isinstance(event, StepEnded)]
    assert steps == list(range(1, len(steps) + 1))
    epochs = [event for event in events if isinstance(event, EpochEnded)]
    assert [e.epoch for e in epochs] == [1, 2, 3]
    assert epochs[0].lr_backbone == 0 < epochs[1].lr_backbone
    best = max(epochs, key=lambda e: (e.val_accuracy, -e.val_loss))
    assert state.counters.best_epoch == best.epoch
    assert [e.is_best for e in epochs].index(True) == 0


def test_a_change_of_threads_is_notified_and_ends_with_the_training(
    colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of these networks are too short for the real watch, so its answers are given."""
    seconds: list[float] = []

    class Watch:
        def __init__(self, threads: int, most: int) -> None:
            assert threads == torch.get_num_threads()

        def after_step(self, duration: float) -> str | None:
            seconds.append(duration)
            torch.set_num_threads(1)
            return "fewer threads" if len(seconds) == 3 else None

    monkeypatch.setattr(setup, "StepWatch", Watch)
    before = torch.get_num_threads()
    plan = plan_for(colours, epochs=1, freeze_epochs=0)  # which sets the threads, too
    torch.set_num_threads(2)
    try:
        events, _ = run(plan)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    names = [type(event).__name__ for event in events if isinstance(event, Noticed | StepEnded)]
    assert names[:4] == ["StepEnded"] * 3 + ["Noticed"]
    assert len(seconds) == names.count("StepEnded")
    assert all(each > 0 for each in seconds)


def test_a_small_model_learns_colours(colours: Path) -> None:
    events, _ = run(plan_for(colours, epochs=6, model="timm/test_resnet", bn="train", unfreeze_lr=0.01))
    epochs = [event for event in events if isinstance(event, EpochEnded)]
    assert epochs[-1].train_loss < 0.5 * epochs[0].train_loss
    assert epochs[-1].val_accuracy == 1.0


@pytest.mark.parametrize("cache", [True, False])
def test_the_frozen_phase_changes_only_the_head(colours: Path, cache: bool) -> None:
    plan = plan_for(colours, epochs=2, freeze_epochs=2, feature_cache=cache, optimizer="adamw", weight_decay=0.5)
    assert bool(plan.cached) is cache
    before = copy.deepcopy(plan.classifier.model.state_dict())
    run(plan)
    after = plan.classifier.model.state_dict()
    assert {key for key in before if not torch.equal(before[key], after[key])} == {"fc.weight", "fc.bias"}


@pytest.mark.slow
def test_equal_seeds_give_equal_runs_and_others_do_not(colours: Path) -> None:
    states = [run(plan_for(colours, epochs=2, seed=seed))[1].model.state_dict() for seed in (3, 3, 4)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not torch.equal(states[0]["fc.weight"], states[2]["fc.weight"])


@pytest.mark.slow
def test_dropout_is_seeded_by_the_runs_seed_and_the_step(colours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[int, list[int]] = {seed: [] for seed in (0, 1)}
    for seed, seeds in drawn.items():
        monkeypatch.setattr(Machine, "seed", lambda machine, bits, seeds=seeds: seeds.append(bits))
        events, _ = run(plan_for(colours, epochs=2, seed=seed))
        steps = [event.step for event in events if isinstance(event, StepEnded)]
        assert seeds == [reference(seed, Purpose.DROPOUT, step) for step in steps]
    assert set(drawn[0]).isdisjoint(drawn[1])


@dataclass(frozen=True, slots=True)
class Uninterrupted:
    settings: dict[str, object]
    events: list[Event]
    state: setup.TrainState


@pytest.fixture(scope="module", params=["one-cycle", "plateau"])
def uninterrupted(request: pytest.FixtureRequest, colours: Path) -> Uninterrupted:
    settings = {"model": "mobilenet_v3_small", "augment": "blog", "schedule": request.param}
    return Uninterrupted(settings, *run(plan_for(colours, **settings)))


@pytest.mark.slow
@pytest.mark.parametrize("stop_after", [1, 2])
def test_a_resumed_run_ends_bit_identical(
    colours: Path, tmp_path: Path, uninterrupted: Uninterrupted, stop_after: int
) -> None:
    settings, events, expected = uninterrupted.settings, uninterrupted.events, uninterrupted.state
    later, again = stopped_and_resumed(colours, tmp_path, stop_after, **settings)
    for key, value in expected.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[key]), key
    uninterrupted = [event.loss for event in events if isinstance(event, LossSampled) and event.epoch > stop_after]
    assert [event.loss for event in later if isinstance(event, LossSampled)] == uninterrupted
    assert again.counters.best_epoch == expected.counters.best_epoch


def test_the_best_model_on_disk_is_from_the_best_epoch(colours: Path, tmp_path: Path) -> None:
    from tl_cli.models import bundle

    plan = plan_for(colours, epochs=4)
    state = new_state(plan)
    saver = Saver(tmp_path, state, plan.card())
    states = {}

    def notify(event: Event) -> None:
        saver(event)
        if isinstance(event, EpochEnded):
            states[event.epoch] = copy.deepcopy(state.model.state_dict())

    assert saver.best is None
    counters = fit(plan, state, notify)
    classifier, card = registry.restore(tmp_path / BEST_FOLDER)
    assert card.epoch == counters.best_epoch
    assert card.classes == ("blue", "green", "red")
    assert saver.best == card == bundle.read_card(tmp_path / BEST_FOLDER)
    best = states[counters.best_epoch]
    assert all(torch.equal(best[key], value) for key, value in classifier.model.state_dict().items())


def test_a_loss_that_is_not_finite_ends_the_run_with_advice(colours: Path) -> None:
    plan = plan_for(colours, freeze_epochs=0, epochs=3, optimizer="sgd", lr=1e30, schedule="constant")
    with pytest.raises(DivergedError, match=r"loss is (nan|inf) at step \d+ .*--lr"):
        run(plan)


def test_early_stopping_waits_for_the_last_phase(colours: Path) -> None:
    plan = plan_for(colours, freeze_epochs=3, epochs=9, lr=1e-9, unfreeze_lr=1e-9, schedule="constant", early_stop=2)
    events, _ = run(plan)
    stopped = [event for event in events if isinstance(event, StoppedEarly)]
    ended = max(event.epoch for event in events if isinstance(event, EpochEnded))
    assert [event.patience for event in stopped] == [2]
    assert 3 < ended < 9


@pytest.mark.slow
def test_label_smoothing_is_not_in_the_reported_loss(colours: Path) -> None:
    first = [
        next(e for e in run(plan_for(colours, label_smoothing=s, log_every=1))[0] if isinstance(e, LossSampled)).loss
        for s in (0.0, 0.5)
    ]
    assert first[0] == first[1]
    assert first[0] == pytest.approx(math.log(3), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", get_args(OptimizerName))
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_optimizer_and_cpu_precision_trains(colours: Path, optimizer: str, precision: str) -> None:
    plan = plan_for(colours, optimizer=optimizer, precision=precision, clip_norm=1.0, epochs=2)
    events, _ = run(plan)
    losses = [event.train_loss for event in events if isinstance(event, EpochEnded)]
    assert all(math.isfinite(loss) for loss in losses)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", get_args(OptimizerName))
@pytest.mark.parametrize("layer_decay", [1.0, 0.8])
def test_every_optimizer_trains_layers_unfrozen_later(colours: Path, optimizer: str, layer_decay: float) -> None:
    plan = plan_for(colours, optimizer=optimizer, unfreeze_stages=3, layer_decay=layer_decay, freeze_epochs=1, epochs=4)
    events, _ = run(plan)
    assert [event.epoch for event in events if isinstance(event, EpochEnded)] == [1, 2, 3, 4]


@pytest.mark.slow
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
def test_every_regularizer_still_learns_colours(colours: Path, settings: dict[str, object]) -> None:
    values = {**SMALL_EFFICIENTNET, "bn": "train", "epochs": 8, "lr": 0.003, "unfreeze_lr": 0.003, **settings}
    events, _ = run(plan_for(colours, **values))
    ended = [event for event in events if isinstance(event, EpochEnded)]
    assert max(event.validation[0] for event in ended) == 1.0
    assert all(math.isfinite(event.train_loss) for event in ended)

import copy
import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.support.splitmix import reference
from tests.support.training import MODEL, plan_for, run, stopped_and_resumed
from tl_cli.compute.device import Machine
from tl_cli.errors import DivergedError, UsageError
from tl_cli.randomness import Purpose
from tl_cli.training import plan as setup
from tl_cli.training.config import Given
from tl_cli.training.events import EpochEnded, Event, LossSampled, PhaseStarted, StepEnded, StoppedEarly
from tl_cli.training.fit import fit
from tl_cli.training.plan import new_state
from tl_cli.training.state import BEST_FOLDER, Saver


def test_the_events_tell_the_story_in_order(colours: Path) -> None:
    events, state = run(plan_for(colours, feature_cache=False))
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


def test_a_small_model_learns_colours(colours: Path) -> None:
    events, _ = run(plan_for(colours, epochs=6, model="timm/test_resnet", bn="train", unfreeze_lr=0.01))
    epochs = [event for event in events if isinstance(event, EpochEnded)]
    assert epochs[-1].train_loss < 0.5 * epochs[0].train_loss
    assert epochs[-1].val_accuracy == 1.0


@pytest.mark.parametrize("cache", [True, False])
def test_the_frozen_phase_changes_the_head_alone(colours: Path, cache: bool) -> None:
    plan = plan_for(colours, epochs=2, freeze_epochs=2, feature_cache=cache, optimizer="adamw", weight_decay=0.5)
    assert bool(plan.cached) is cache
    before = copy.deepcopy(plan.classifier.model.state_dict())
    run(plan)
    after = plan.classifier.model.state_dict()
    assert {key for key in before if not torch.equal(before[key], after[key])} == {"fc.weight", "fc.bias"}


def test_equal_seeds_give_equal_runs_and_others_do_not(colours: Path) -> None:
    states = [run(plan_for(colours, epochs=2, seed=seed))[1].model.state_dict() for seed in (3, 3, 4)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not torch.equal(states[0]["fc.weight"], states[2]["fc.weight"])


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


@pytest.mark.parametrize("stop_after", [1, 2])
def test_a_resumed_run_ends_bit_identical(
    colours: Path, tmp_path: Path, uninterrupted: Uninterrupted, stop_after: int
) -> None:
    settings, events, expected = uninterrupted.settings, uninterrupted.events, uninterrupted.state
    later, again = stopped_and_resumed(colours, tmp_path, stop_after, **settings)
    for key, value in expected.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[key]), key
    wanted = [event.loss for event in events if isinstance(event, LossSampled) and event.epoch > stop_after]
    assert [event.loss for event in later if isinstance(event, LossSampled)] == wanted
    assert again.counters.best_epoch == expected.counters.best_epoch


def test_the_best_model_on_disk_is_the_best_epochs(colours: Path, tmp_path: Path) -> None:
    from tl_cli.models import bundle
    from tl_cli.models.zoo import registry

    plan = plan_for(colours, epochs=4)
    state = new_state(plan)
    saver = Saver(tmp_path, state, plan.card())
    kept = {}

    def notify(event: Event) -> None:
        saver(event)
        if isinstance(event, EpochEnded):
            kept[event.epoch] = copy.deepcopy(state.model.state_dict())

    assert saver.best is None
    counters = fit(plan, state, notify)
    classifier, card = registry.restore(tmp_path / BEST_FOLDER)
    assert card.epoch == counters.best_epoch
    assert card.classes == ("blue", "green", "red")
    assert saver.best == card == bundle.read_card(tmp_path / BEST_FOLDER)
    best = kept[counters.best_epoch]
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


def test_label_smoothing_is_not_in_the_reported_loss(colours: Path) -> None:
    first = [
        next(e for e in run(plan_for(colours, label_smoothing=s, log_every=1))[0] if isinstance(e, LossSampled)).loss
        for s in (0.0, 0.5)
    ]
    assert first[0] == first[1]
    assert first[0] == pytest.approx(math.log(3), abs=1e-5)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_optimizer_and_cpu_precision_trains(colours: Path, optimizer: str, precision: str) -> None:
    plan = plan_for(colours, optimizer=optimizer, precision=precision, clip_norm=1.0, epochs=2)
    events, _ = run(plan)
    losses = [event.train_loss for event in events if isinstance(event, EpochEnded)]
    assert all(math.isfinite(loss) for loss in losses)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("layer_decay", [1.0, 0.8])
def test_every_optimizer_takes_up_what_is_unfrozen_later(colours: Path, optimizer: str, layer_decay: float) -> None:
    plan = plan_for(colours, optimizer=optimizer, unfreeze_stages=3, layer_decay=layer_decay, freeze_epochs=1, epochs=4)
    events, _ = run(plan)
    assert [event.epoch for event in events if isinstance(event, EpochEnded)] == [1, 2, 3, 4]


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

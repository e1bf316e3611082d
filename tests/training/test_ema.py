import copy
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.support.training import SMALL_EFFICIENTNET, SMALL_RESNET, plan_for, run
from tl_cli.contract import Calibration
from tl_cli.models.zoo import registry
from tl_cli.training.ema import Average
from tl_cli.training.events import EpochEnded
from tl_cli.training.fit import fit
from tl_cli.training.plan import new_state
from tl_cli.training.state import BEST_FOLDER, Saver


def test_the_average_follows_its_formula() -> None:
    model = nn.Linear(1, 1, bias=False)
    values = [0.3, -1.0, 2.0, 5.0, 4.0]
    with torch.no_grad():
        model.weight.fill_(1.0)
    average = Average(model, 0.35)
    expected = 1.0
    for step, value in enumerate(values, 1):
        with torch.no_grad():
            model.weight.fill_(value)
        average.update()
        decay = min(0.35, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    with average.applied():
        assert model.weight.item() == pytest.approx(expected, rel=1e-6)
    assert model.weight.item() == values[-1]


def test_frozen_values_have_a_constant_average(colours: Path) -> None:
    plan = plan_for(colours, **SMALL_RESNET, ema=0.9, epochs=2, freeze_epochs=2)
    before = copy.deepcopy(plan.classifier.model.state_dict())
    _, state = run(plan)
    assert state.average is not None
    with state.average.applied():
        after = plan.classifier.model.state_dict()
        assert {key for key in before if not torch.equal(before[key], after[key])} == {"fc.weight", "fc.bias"}


@pytest.mark.slow
@pytest.mark.parametrize("bn", ["frozen", "train"])
def test_the_average_is_validated_and_saved_where_it_is_better(colours: Path, tmp_path: Path, bn: str) -> None:
    settings = {**SMALL_EFFICIENTNET, "ema": 0.8, "epochs": 6, "schedule": "constant", "lr": 0.01, "unfreeze_lr": 0.01}
    plan = plan_for(colours, **settings, bn=bn)
    state = new_state(plan)
    assert state.average is not None
    saver = Saver(tmp_path, state, plan.card())
    ended = []

    def notify(event: object) -> None:
        if isinstance(event, EpochEnded):
            saver(event)
            ended.append(event)
            if event.is_best:
                with state.average.applied() if event.averaged else nullcontext():
                    assert_saved(tmp_path, state.model, averaged=event.averaged)

    counters = fit(plan, state, notify)
    assert all(event.ema_val_accuracy is not None for event in ended)
    validated = [(event.validation[0], -event.validation[1]) for event in ended]
    assert [event.is_best for event in ended] == [
        all(mark > earlier for earlier in validated[:index]) for index, mark in enumerate(validated)
    ]
    best = ended[validated.index(max(validated))]
    assert (counters.best_epoch, counters.best_val_accuracy) == (best.epoch, best.validation[0])


def assert_saved(folder: Path, model: nn.Module, *, averaged: bool) -> None:
    classifier, card = registry.restore(folder / BEST_FOLDER)
    assert card.averaged is averaged
    expected = model.state_dict()
    assert all(torch.equal(expected[key], value) for key, value in classifier.model.state_dict().items())


@pytest.mark.parametrize(("ema_accuracy", "averaged"), [(0.9, True), (0.7, False)])
def test_the_better_of_weights_and_average_is_saved(
    colours: Path, tmp_path: Path, ema_accuracy: float, averaged: bool
) -> None:
    plan = plan_for(colours, **SMALL_EFFICIENTNET, ema=0.9)
    state = new_state(plan)
    assert state.average is not None
    with torch.no_grad():
        state.model.classifier.bias.fill_(3.0)  # the average still has zeros at these positions
    event = EpochEnded(2, 20, val_accuracy=0.8, val_loss=1.0, ema_val_accuracy=ema_accuracy, ema_val_loss=1.0, is_best=True,
                       calibration=Calibration(temperature=1.5))  # fmt: skip
    Saver(tmp_path, state, plan.card())(event)
    saved, _ = registry.restore(tmp_path / BEST_FOLDER)
    assert saved.temperature == 1.5
    assert saved.model.classifier.bias.unique().tolist() == [0.0 if averaged else 3.0]
    with state.average.applied() if averaged else nullcontext():
        assert_saved(tmp_path, state.model, averaged=averaged)

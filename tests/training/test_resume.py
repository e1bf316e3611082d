"""A run that is stopped anywhere and resumed ends like the same run without interruption."""

import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.support.training import (
    SMALL,
    SMALL_EFFICIENTNET,
    plan_for,
    run,
    state_digest,
    stopped_and_resumed,
    weights_of,
)
from tl_cli.data.images import PackedImages
from tl_cli.errors import Interrupted
from tl_cli.training.events import EpochEnded, Event, LossSampled, StepEnded, Worked
from tl_cli.training.fit import fit
from tl_cli.training.plan import new_state
from tl_cli.training.state import Saver


def measured_after(events: list[Event], after: int) -> list[tuple[object, ...]]:
    """Return the measurements after a step, without times."""
    samples = [
        (e.step, e.loss, e.lr_head, e.lr_backbone) for e in events if isinstance(e, LossSampled) and e.step > after
    ]
    epochs = [
        (e.step, e.train_loss, e.train_accuracy, e.val_loss, e.val_accuracy, e.is_best, e.ema_val_accuracy, e.lr_head)
        for e in events
        if isinstance(e, EpochEnded) and (e.step > after or (e.step == after))
    ]
    return [*samples, *epochs]


@dataclass(frozen=True)
class Uninterrupted:
    """A run that was never stopped, and a checkpoint after each of its steps and epochs."""

    data: Path
    settings: dict[str, object]
    events: list[Event]
    saved: dict[int, bytes]
    state_digest: str


CASES = {
    "cached head, one-cycle, average": {"feature_cache": True, "ema": 0.9, "schedule": "one-cycle"},
    "images, plateau, BatchNorm learns": {"feature_cache": False, "schedule": "plateau", "bn": "train"},
    "mixup, accumulation, balanced, dropout": {
        "feature_cache": True, "mixup": 0.4, "accumulate": 2, "batch_size": 4, "sampler": "balanced", "dropout": 0.5,
        "schedule": "cosine",
    },
}  # fmt: skip


PACKED = "images, plateau, BatchNorm learns"


@pytest.fixture(
    scope="module",
    params=[*((case, workers, False) for case in CASES for workers in (0, 2)), (PACKED, 0, True)],
    ids=str,
)
def uninterrupted(request: pytest.FixtureRequest, odd_pictures: Path, colours: Path) -> Uninterrupted:
    case, workers, is_packed = request.param
    data = colours if is_packed else odd_pictures
    # 43 training images: 4 epochs of 6 steps, the backbone frozen in the first two.
    settings = {"model": SMALL, "augment": "blog", "epochs": 4, "freeze_epochs": 2, "batch_size": 8,
                "log_every": 1, "workers": workers, **CASES[case]}  # fmt: skip
    plan = plan_for(data, **settings)
    assert isinstance(plan.data.parts["train"], PackedImages) is is_packed
    state = new_state(plan)
    events: list[Event] = []
    saved: dict[int, bytes] = {}

    def observe(event: Event) -> None:
        events.append(event)
        # Both states of a last step: before its epoch is validated, and after.
        if isinstance(event, StepEnded):
            saved[event.step] = state.to_bytes()
        elif isinstance(event, EpochEnded):
            saved[-event.step] = state.to_bytes()

    fit(plan, state, observe)
    assert max(saved) == 24
    return Uninterrupted(data, settings, events, saved, state_digest(state))


@pytest.mark.slow
def test_a_run_resumed_after_any_step_ends_bit_identical(uninterrupted: Uninterrupted) -> None:
    plan = plan_for(uninterrupted.data, **uninterrupted.settings)
    for position, data in uninterrupted.saved.items():
        # With the same model object, changed by training.
        again = new_state(plan)
        again.from_bytes(data)
        assert again.step == abs(position)
        later: list[Event] = []
        fit(plan, again, later.append)
        assert state_digest(again) == uninterrupted.state_digest, f"resumed after step {position}"
        expected = [
            each for each in measured_after(uninterrupted.events, abs(position)) if position > 0 or each[0] != -position
        ]
        assert measured_after(later, abs(position)) == expected, f"resumed after step {position}"


@pytest.mark.parametrize("where", ["a step", "validation", "caching", "the end of an epoch", "saving"])
def test_a_signal_stops_a_run_where_it_can_be_resumed(
    odd_pictures: Path, tmp_path: Path, where: str, monkeypatch
) -> None:
    import os

    from tl_cli import interrupts

    monkeypatch.setattr(interrupts, "_signalled_at", -1.0)
    settings = {"model": SMALL, "epochs": 2, "freeze_epochs": 1, "batch_size": 8}
    plan = plan_for(odd_pictures, **settings)
    expected = new_state(plan)
    fit(plan, expected, lambda event: None)
    plan = plan_for(odd_pictures, **settings)
    state = new_state(plan)
    saver = Saver(tmp_path, state, plan.card())
    sent_at: list[int] = []
    steps_after: list[int] = []

    def observe(event: Event) -> None:
        saver(event)
        if sent_at and isinstance(event, StepEnded):
            steps_after.append(event.step)
        is_reached = {
            "a step": isinstance(event, StepEnded) and event.step == 8,
            "validation": isinstance(event, Worked) and event.activity == "validating",
            "caching": isinstance(event, Worked) and event.activity == "caching features",
            "the end of an epoch": isinstance(event, EpochEnded),
            "saving": False,
        }[where]
        if is_reached and not sent_at:
            sent_at.append(state.step)
            os.kill(os.getpid(), signal.SIGTERM)

    synced = os.fsync

    def fsync(descriptor: int) -> None:
        # While a checkpoint is written, before it is renamed.
        if where == "saving" and not sent_at and state.step:
            sent_at.append(state.step)
            os.kill(os.getpid(), signal.SIGTERM)
        synced(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    before = {name: signal.getsignal(getattr(signal, name)) for name in interrupts.NAMES}
    interrupts.listen()
    try:
        with pytest.raises(Interrupted) as stopped:
            fit(plan, state, observe)
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)
    assert stopped.value.exit_code == 143
    assert steps_after == []
    assert saver.save()
    again = new_state(plan)
    again.restore(tmp_path)
    assert again.step == sent_at[0]
    fit(plan, again, lambda event: None)
    assert state_digest(again) == state_digest(expected)


def test_a_resumed_run_with_every_regularizer_ends_bit_identical(colours: Path, tmp_path: Path) -> None:
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

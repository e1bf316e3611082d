import pytest

from tl_cli.training.config import TrainConfig
from tl_cli.training.phases import first_trained, phases_of


def config(**changed: object) -> TrainConfig:
    values = {"epochs": 9, "freeze_epochs": 2, "lr": 0.1, "unfreeze_lr": 0.01, "unfreeze_stages": 3, "bn": "train"}
    return TrainConfig.model_construct(**(values | changed))


@pytest.mark.parametrize("frozen", [0, 2, 5])
@pytest.mark.parametrize("stages", [1, 2, 3, 7])
def test_every_stage_adds_layers_and_the_last_has_all(frozen: int, stages: int) -> None:
    phases = phases_of(config(epochs=30, unfreeze_stages=stages))
    firsts = [first_trained(phase, 14, frozen) for phase in phases]
    assert firsts[0] == 13
    assert firsts == sorted(firsts, reverse=True)
    assert len(set(firsts)) == len(firsts)
    assert firsts[-1] == frozen
    assert sum(phase.epochs for phase in phases) == 30


def test_the_last_stages_get_the_remaining_epochs() -> None:
    phases = phases_of(config())
    assert [(phase.title, phase.first, phase.last) for phase in phases] == [
        ("head", 1, 2), ("fine-tune 1", 3, 4), ("fine-tune 2", 5, 6), ("fine-tune 3", 7, 9),
    ]  # fmt: skip
    assert [phase.epochs for phase in phases] == [2, 2, 2, 3]


def test_a_phase_without_epochs_is_left_out() -> None:
    assert [phase.name for phase in phases_of(config(freeze_epochs=0, unfreeze_stages=1))] == ["fine-tune"]
    assert [phase.name for phase in phases_of(config(freeze_epochs=9, unfreeze_stages=1))] == ["head"]


def test_batch_norm_statistics_update_only_after_unfreezing() -> None:
    assert [phase.bn for phase in phases_of(config())] == ["frozen", "train", "train", "train"]


def test_peak_rates_follow_the_phase_and_the_share_of_the_group() -> None:
    head, tune, *_ = phases_of(config())
    groups = {"is_head": True, "share": 1.0}, {"is_head": False, "share": 0.25}
    assert [head.peak_lr(group) for group in groups] == [0.1, 0.0]
    assert [tune.peak_lr(group) for group in groups] == [0.01, 0.0025]

from pathlib import Path

import pytest

from tl_cli.errors import UsageError
from tl_cli.training.config import Given, read_toml
from tl_cli.training.recipes import Facts
from tl_cli.training.resolve import resolve
from tl_cli.training.state import write_toml

TINY = Facts("cifar10", 45_000, 5_000, 32, 1, 224, on_gpu=False, bf16=False, cores=2)


MODEL = {"model": "resnet18"}


def test_flags_override_the_file_and_the_file_the_recipe() -> None:
    resolved = resolve(Given.of({**MODEL, "lr": 0.5}, {"lr": 0.1, "epochs": 7, "freeze_epochs": 2}), TINY)
    assert resolved.config.lr == 0.5
    assert resolved.config.epochs == 7
    assert [resolved.origins[name].source for name in ("lr", "epochs", "optimizer", "momentum")] == [
        "flag", "config file", "recipe", "default",
    ]  # fmt: skip


def test_epochs_given_alone_leave_room_for_both_phases() -> None:
    config = resolve(Given.of({**MODEL, "epochs": 4}), TINY).config
    assert (config.freeze_epochs, config.epochs) == (2, 4)


def test_without_freezing_there_is_one_rate() -> None:
    assert resolve(Given.of({**MODEL, "freeze_epochs": 0, "lr": 0.02}), TINY).config.unfreeze_lr == 0.02
    config = resolve(Given.of({**MODEL, "freeze_epochs": 0}), TINY).config
    assert config.lr == config.unfreeze_lr == 6e-4


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"epochs": 3, "freeze_epochs": 5}, "--epochs 3 is the total and cannot be fewer than --freeze-epochs 5"),
        ({"freeze_epochs": 0, "unfreeze_lr": 0.1}, "nothing is unfrozen"),
        ({"epochs": 5, "freeze_epochs": 5, "unfreeze_lr": 0.1}, "all 5 epochs are frozen"),
        ({"lr": -1.0}, "--lr -1.0"),
        ({"lr": float("nan")}, "--lr nan"),
        ({"batch_size": 0}, "--batch-size 0"),
        ({"optimizer": "lion"}, "--optimizer lion"),
        ({"resize": "stretch"}, "--resize stretch"),
        ({"std": (1.0, 0.0, 1.0)}, "--std must be positive"),
        ({"recipe": "blgo"}, "--recipe blgo: Input should be"),
        ({"val_fraction": 1.0}, "--val-fraction 1.0"),
    ],
)
def test_errors_name_the_flag(flags: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve(Given.of({**MODEL, **flags}), TINY)


def test_a_saved_config_has_the_steps_without_the_derived_epochs(tmp_path: Path) -> None:
    config = resolve(Given.of({**MODEL, "steps": 9000}), TINY).config
    write_toml(tmp_path / "c.toml", config)
    saved = read_toml(tmp_path / "c.toml")
    assert "epochs" not in saved
    assert resolve(Given.of({}, saved), TINY).config == config
    with pytest.raises(UsageError, match="give one of them"):
        resolve(Given.of({}, {**saved, "epochs": 40}), TINY)

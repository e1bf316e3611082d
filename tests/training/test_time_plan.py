"""The training that ``--time`` lays out."""

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.support.training import SMALL, plan_for
from tl_cli.errors import UsageError
from tl_cli.tracking.store import open_store
from tl_cli.training.config import Given
from tl_cli.training.plan import gather
from tl_cli.training.time_plan import LEVELS, best_level, is_laid_out, lay_out, shares_of_work

WEIGHTLESS = ("--weights", "none", "--workers", "0", "--threads", "1")


def given(data: Path, **settings: object) -> Given:
    fixed = {"model": SMALL, "weights": "none", "data": str(data), "workers": 0, "threads": 1, "batch_size": 8}
    return Given.of({**fixed, **settings})


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [
        (0.1, 0),
        (3.9, 0),  # 1.95 epochs of the second level
        (4.1, 1),
        (19.9, 1),  # 4.97 of the third
        (20.1, 2),
        (79, 2),
        (81, 3),
        (1e6, 3),
    ],
)
def test_a_level_is_chosen_if_its_fewest_epochs_fit(epochs: float, expected: int) -> None:
    assert [level.fewest_epochs for level in LEVELS] == [0, 2, 5, 10]
    assert best_level(epochs, [1.0, 2.0, 4.0, 8.0]) == expected


def test_the_work_before_each_layer_is_that_of_torchs_own_counter(colours: Path) -> None:
    plan = plan_for(colours, model=SMALL, input_size=64)
    layers, shares = shares_of_work(plan)
    with FlopCounterMode(display=False) as counter:
        plan.classifier.model(torch.zeros(1, 3, 64, 64))
    counts = counter.get_flop_counts()
    names = {id(module): name for name, module in plan.classifier.model.named_modules()}
    root = type(plan.classifier.model).__name__
    total, before = sum(counts["Global"].values()), 0
    for layer, share in zip(layers, shares, strict=True):
        assert share == pytest.approx(before / total)
        before += sum(sum(counts.get(f"{root}.{names[id(module)]}", {}).values()) for module in layer.modules)
    assert before == total
    assert 0 == shares[0] < shares[len(shares) // 2] < shares[-1] < 1


@pytest.mark.slow
def test_more_time_gives_larger_images_and_more_steps(colours: Path) -> None:
    def laid_out(seconds: str):
        return lay_out(gather(given(colours, time=seconds)), time.monotonic())

    short, long = laid_out("14s"), laid_out("1h")
    assert short.config.input_size <= long.config.input_size
    assert short.config.steps < long.config.steps == 500
    assert long.resolved.origins["steps"].source == "time"
    assert long.resolved.origins["input_size"].source == "time"
    assert "fine-tuning" in long.time_note


@pytest.mark.slow
def test_what_is_given_stays(colours: Path) -> None:
    plan = lay_out(gather(given(colours, time="1h", input_size=64, augment="none", freeze_epochs=2)), time.monotonic())
    assert (plan.config.input_size, plan.config.augment, plan.config.freeze_epochs) == (64, "none", 2)
    assert plan.resolved.origins["input_size"].source == "flag"
    assert plan.steps_of(plan.phases[-1]) == 500


@pytest.mark.slow
def test_without_time_for_fine_tuning_the_head_alone_trains(colours: Path) -> None:
    plan = lay_out(gather(given(colours, time="1s")), time.monotonic())
    assert plan.config.epochs == plan.config.freeze_epochs
    assert plan.resolved.origins["recipe"].source == "time"


def test_a_length_and_a_time_exclude_each_other(colours: Path) -> None:
    assert is_laid_out(given(colours, time="5m"))
    assert not is_laid_out(given(colours, epochs=3))
    for length in ({"epochs": 3}, {"steps": 30}):
        with pytest.raises(UsageError, match="give one of them"):
            is_laid_out(given(colours, time="5m", **length))
    # The config of a run has the time, and the length that was chosen for it.
    recorded = replace(
        given(colours, time="5m", steps=30), flags=frozenset({"model"}), file=frozenset({"time", "steps"})
    )
    assert not is_laid_out(recorded)


@pytest.mark.parametrize("bad", ["5", "0m", "m", "5 minutes", "-5m", "5d"])
def test_a_time_has_a_unit(colours: Path, bad: str) -> None:
    with pytest.raises(UsageError, match="time"):
        given(colours, time=bad)
    assert given(colours, time="90s").settings.time_s == 90
    assert given(colours, time="2h").settings.time_s == 7200


def test_recipes_of_fixed_length_take_no_time(colours: Path) -> None:
    for recipe in ("head", "blog"):
        with pytest.raises(UsageError, match="--time has no effect"):
            is_laid_out(given(colours, time="5m", recipe=recipe))


@pytest.mark.slow
def test_a_run_keeps_its_time_and_its_config_repeats_it(tl, colours: Path) -> None:
    small = ("--input-size", "32", "--batch-size", "4")
    result = tl("train", SMALL, "--data", colours, *WEIGHTLESS, *small, "--time", "60s", "--json")
    assert result.code == 0, result.err
    first = json.loads(result.out)
    run = open_store(None).find("latest")
    assert run.data.params["time"] == "60s"
    config = Path(first["model"]).parent / "config.toml"
    again = json.loads(tl("train", "--config", config, "--dry-run", "--json").out)["settings"]
    for name in ("steps", "input_size", "freeze_epochs"):
        assert again[name]["value"] == first["settings"][name]
    assert again["steps"]["from"] == "config file"

from pathlib import Path

import pytest

from tests.support.training import plan_for
from tl_cli.training.forecast import estimate


def test_a_forecast_covers_the_whole_command(colours: Path) -> None:
    plan = plan_for(colours, epochs=3, freeze_epochs=1)
    forecast = estimate(plan, 12.5)
    assert list(forecast.seconds) == ["start", "head", "fine-tune", "final evaluation", "recording"]
    assert forecast.seconds["start"] == 12.5
    assert min(forecast.seconds.values()) > 0
    assert forecast.total == pytest.approx(12.5 + sum(list(forecast.seconds.values())[1:]))


def test_the_dry_run_states_the_start_the_recording_and_the_total(tl, colours: Path) -> None:
    shown = tl("train", "timm/test_resnet", "--weights", "none", "--input-size", "32", "--data", str(colours),
               "--epochs", "2", "--freeze-epochs", "1", "--dry-run")  # fmt: skip
    assert shown.code == 0, shown.err
    lines = [line.split(" about ")[0].strip() for line in shown.out.splitlines() if " about " in line]
    assert lines[-7:] == ["start", "head", "fine-tune", "final evaluation", "recording", "total", "memory"]

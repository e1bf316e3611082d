"""A training through Python, without a command line or a terminal."""

import json
from pathlib import Path

import jsonschema
import pytest

from tl_cli.api.training_run import DryRun, TrainObserver, TrainRequest, TrainResult, dry_run, train
from tl_cli.errors import UsageError
from tl_cli.tracking.store import open_store
from tl_cli.training.config import Settings
from tl_cli.training.plan import Plan

SCHEMA = json.loads((Path(__file__).parents[2] / "tl_cli" / "api" / "schemas" / "train.json").read_text())


def settings(data: Path) -> Settings:
    return Settings(
        model="timm/test_resnet", weights="none", data=str(data), input_size=32, batch_size=8, epochs=2,
        freeze_epochs=1, workers=0, probe=False,
    )  # fmt: skip


class Listening(TrainObserver):
    def __init__(self) -> None:
        self.plans: list[Plan] = []
        self.warnings: list[str] = []

    def planned(self, plan: Plan) -> None:
        self.plans.append(plan)

    def warn(self, message: str) -> None:
        self.warnings.append(message)


def test_a_training_returns_its_results_records_them_and_prints_nothing(
    colours: Path, workplace: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    observer = Listening()
    result = train(TrainRequest(settings(colours), run_name="first", tags={"who": "me"}, command="mine"), observer)
    assert isinstance(result, TrainResult)
    assert capfd.readouterr().out == ""
    assert [plan.config.epochs for plan in observer.plans] == [2]
    assert any("random weights" in message for message in observer.warnings)
    run = open_store(None).find("first")
    assert run.info.run_id == result.run_id
    assert run.data.tags["who"] == "me"
    assert run.data.tags["tl.command"] == "mine"
    assert run.data.params["freeze_epochs"] == "1"
    data = result.to_dict()
    jsonschema.validate(data, SCHEMA)
    assert (data["epochs"], data["val_accuracy"]) == (2, run.data.metrics["best/val_accuracy"])
    assert data["settings"]["model"] == "timm/test_resnet"
    assert (result.model / "model.safetensors").exists()
    with pytest.raises(UsageError, match="is complete, and --resume continues only interrupted runs"):
        train(TrainRequest(resume=result.run_id))


def test_a_dry_run_forecasts_and_records_nothing(colours: Path, workplace: Path) -> None:
    forecast = dry_run(TrainRequest(settings(colours)), Listening())
    assert isinstance(forecast, DryRun)
    data = forecast.to_dict()
    jsonschema.validate(data, SCHEMA)
    assert data["settings"]["epochs"] == {"value": 2, "from": "flag", "why": ""}
    assert data["settings"]["optimizer"]["from"] == "recipe"
    assert list(data["seconds"]) == ["start", "head", "fine-tune", "final evaluation", "recording"]
    assert not (workplace / "mlruns").exists()


def test_the_command_prints_the_same_as_json(tl, colours: Path, workplace: Path) -> None:
    (workplace / "c.toml").write_text(f'data = "{colours}"\n')
    common = ("train", "timm/test_resnet", "--weights", "none", "--input-size", "32", "--epochs", "2", "--no-probe",
              "--freeze-epochs", "0", "--config", "c.toml", "--json")  # fmt: skip
    for more in (("--dry-run", "--quiet"), ()):
        shown = tl(*common, *more)
        assert shown.code == 0, shown.err
        jsonschema.validate(json.loads(shown.out), SCHEMA)


def test_a_config_file_is_read_and_a_model_is_needed(workplace: Path) -> None:
    (workplace / "c.toml").write_text("epochs = 0\n")
    with pytest.raises(UsageError, match="--epochs 0"):
        train(TrainRequest(Settings(model="resnet18"), config=workplace / "c.toml"))
    with pytest.raises(UsageError, match="give a MODEL"):
        train(TrainRequest(Settings(data="digits")))

from pathlib import Path

import pytest

from tests.support.commands import QUICK, train
from tests.support.imports import run_watched
from tl_cli.cli import groups
from tl_cli.tracking.store import open_store


@pytest.mark.parametrize(
    ("option", "value"), [("--register", "a/b"), ("--run-name", "two\nlines"), ("--data", ""), ("--mean", "nan")]
)
def test_names_and_numbers_are_refused_before_training(tl, colours: Path, option: str, value: str) -> None:
    values = [value] * 3 if option == "--mean" else [value]
    result = tl("train", *QUICK, "--data", colours, option, *values)
    assert result.code == 2
    assert option in result.err


@pytest.mark.parametrize("flag", [("--dry-run",), ("--run-name", "x"), ("--register", "x"), ("--experiment", "x")])
def test_options_without_effect_are_refused_with_resume(tl, flag: tuple[str, ...]) -> None:
    result = tl("train", "--resume", "latest", *flag)
    assert result.code == 2
    assert flag[0] in result.err


def test_a_dry_run_shows_settings_with_reasons_and_records_nothing(tl, colours: Path, workplace: Path) -> None:
    result = tl("train", *QUICK, "--data", colours, "--lr", "0.02", "--dry-run")
    assert result.code == 0, result.err
    for text in ("0.02", "flag", "recipe", "learning rate", "in all", "GB", "nothing was trained"):
        assert text in result.out
    assert not list((workplace / "mlruns").glob("*/*"))


@pytest.mark.slow
def test_a_recorded_config_is_read_again_and_flags_override_it(tl, colours: Path, workplace: Path) -> None:
    train(tl, colours, "--lr", "0.004", "--seed", "7")
    (saved,) = (workplace / "mlruns").glob("*/*/state/config.toml")
    result = tl("train", "--config", saved, "--seed", "8")
    assert result.code == 0, result.err
    params = open_store(None).find("latest").data.params
    assert (params["lr"], params["seed"], params["model"]) == ("0.004", "8", "shufflenet_v2_x0_5")


def test_training_prints_a_line_before_torch_is_imported() -> None:
    done = run_watched("train", "resnet18", stop_at="torch")
    assert (done.returncode, done.stdout, done.stderr) == (77, "loading torch\n", "")
    done = run_watched("train", "resnet18", "--json", stop_at="torch")
    assert (done.returncode, done.stdout, done.stderr) == (77, "", "loading torch\n")
    done = run_watched("train", "resnet18", "--quiet", stop_at="torch")
    assert (done.returncode, done.stdout, done.stderr) == (77, "", "")


def test_every_option_of_a_setting_has_its_name() -> None:
    from tl_cli.training.config import FIELDS

    options = {parameter.name for parameter in groups.load("train").params}
    others = {
        "config",
        "experiment",
        "run_name",
        "tag",
        "tracking_uri",
        "register",
        "resume",
        "dry_run",
        "as_json",
        "plain",
        "quiet",
    }
    assert options - others - {"help"} == set(FIELDS)

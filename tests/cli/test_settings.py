"""Options, config file, schema and README come from the fields of `Settings`."""

import json
from pathlib import Path

import jsonschema
import pytest

from tl_cli.cli.groups import load
from tl_cli.cli.settings import parse_train_options, settings_table
from tl_cli.training.config import FIELDS, settings_schema

ROOT = Path(__file__).parents[2]
SCHEMA = ROOT / "tl_cli" / "api" / "schemas" / "settings.json"
START, END = "<!-- settings: made by tests/cli/test_settings.py -->\n", "<!-- end of settings -->\n"
OPTIONS = {option.name: option for option in load("train").params}


def write() -> None:
    """Write the table and the schema: python -m tests.cli.test_settings."""
    text = (ROOT / "README.md").read_text()
    before, _, rest = text.partition(START)
    (ROOT / "README.md").write_text(before + START + settings_table() + END + rest.partition(END)[2])
    SCHEMA.write_text(json.dumps(settings_schema(), indent=2) + "\n")


def test_the_table_in_the_readme_is_up_to_date() -> None:
    assert (ROOT / "README.md").read_text().partition(START)[2].partition(END)[0] == settings_table(), write.__doc__


def test_the_schema_file_is_up_to_date() -> None:
    assert json.loads(SCHEMA.read_text()) == settings_schema(), write.__doc__


@pytest.mark.parametrize(
    ("settings", "is_valid"),
    [
        ({"model": "resnet18", "epochs": 3, "lr": 0.01, "mean": [0.5, 0.5, 0.5]}, True),
        ({"optimizer": "adamw", "feature_cache": False}, True),
        ({"optimizer": "lion"}, False),
        ({"epochs": 0}, False),
        ({"learning_rate": 0.1}, False),
        ({"val_fraction": 0.9}, False),
    ],
)
def test_the_schema_describes_config_files(settings: dict[str, object], is_valid: bool) -> None:
    jsonschema.Draft202012Validator.check_schema(settings_schema())
    assert jsonschema.Draft202012Validator(settings_schema()).is_valid(settings) is is_valid


def test_every_setting_has_an_option_with_help_a_panel_and_its_default() -> None:
    assert all(OPTIONS[name].help and OPTIONS[name].default is None for name in FIELDS)
    assert all(OPTIONS[name].rich_help_panel for name in FIELDS if name != "model")
    for name, default in {"batch_size": "64", "seed": "0", "checkpoint_every": "5m", "lr": "set by the recipe"}.items():
        assert OPTIONS[name].help.endswith(f" Default: {default}.")


def test_help_names_every_choice() -> None:
    choices = {
        "recipe": ("default", "fast", "blog"),
        "schedule": ("constant", "cosine", "one-cycle", "plateau"),
        "resize": ("crop", "squash", "pad"),
        "layout": ("channels-last", "contiguous", "images-last"),
    }
    assert all(choice in OPTIONS[name].help for name, names in choices.items() for choice in names)
    # Typer lists the choices itself where an option has no placeholder.
    assert OPTIONS["optimizer"].metavar is None


def test_options_of_a_training_are_parsed_for_other_commands(tmp_path: Path) -> None:
    (tmp_path / "c.toml").touch()
    settings, others = parse_train_options(
        ["resnet18", "--epochs", "3", "--mean", "0", "0.5", "1", "--no-probe", "--data-dir", "here",
         "--config", str(tmp_path / "c.toml"), "--run-name", "one"]
    )  # fmt: skip
    assert settings == {
        "model": "resnet18", "epochs": 3, "mean": (0.0, 0.5, 1.0), "probe": False, "data_dir": "here",
    }  # fmt: skip
    assert Path(others["config"]) == tmp_path / "c.toml"
    assert others["run_name"] == "one"
    assert not any(others[name] for name in ("resume", "dry_run", "tag"))


if __name__ == "__main__":
    write()

from pathlib import Path

import pytest

from tl_cli import habits
from tl_cli.cli.groups import COMMANDS, load


def all_options() -> dict[str, set[str]]:
    """The options of every command, by how it is typed."""
    found = {}
    for name in COMMANDS:
        command = load(name)
        for inner, each in getattr(command, "commands", {"": command}).items():
            found[f"{name} {inner}".strip()] = {
                opt for parameter in each.params for opt in (*parameter.opts, *parameter.secondary_opts)
            }
    return found


def test_every_name_of_another_tool_maps_to_an_existing_option_or_command() -> None:
    known = all_options()
    options = set().union(*known.values()) | {"--version"}
    flags = {meaning.split()[0] for meaning in habits.options().values() if meaning.startswith("--")}
    assert flags <= options
    groups = {name.split()[0] for name in known}
    assert {meaning.partition(" --")[0] for meaning in habits.commands().values()} <= groups | set(known)
    assert not {typed for typed in habits.commands() if typed in groups}


def test_a_config_file_with_a_setting_of_another_tool_is_refused_with_the_name_in_tl(tl) -> None:
    for line, text in (
        ("learning_rate = 0.1", "It is called lr here"),
        ('arch = "resnet18"', "It is called model here"),
        ("num_epochs = 3", "It is called epochs here"),
        ("amp = true", 'It is called precision = "fp16" here'),
        ("pretrained = true", "Leave it out"),
        ("freeze_epoch = 3", "Did you mean freeze_epochs"),
    ):
        Path("own.toml").write_text(line + "\n")
        refused = tl("train", "resnet18", "--config", "own.toml")
        assert (refused.code, text in refused.err) == (2, True), refused.err


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("wd", "weight_decay"),
        ("Learning_Rate", "lr"),
        ("arch", "model"),
        ("no_amp", 'precision = "fp32"'),
        ("verbose", ""),
        ("source", None),
        ("nonsense", None),
    ],
)
def test_a_setting_of_another_tool_is_a_line_of_a_config_file(name: str, line: str | None) -> None:
    assert habits.setting(name) == line


@pytest.mark.parametrize(
    ("file", "run"),
    [("weights/best.pt", "best"), ("LAST.ckpt", "latest"), ("epoch3.pt", None), ("best.jpg", None), ("best", None)],
)
def test_a_weights_file_name_of_another_tool_maps_to_a_run(file: str, run: str | None) -> None:
    assert habits.kept_run(file) == run

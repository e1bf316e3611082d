from pathlib import Path

import pytest

from tests.support.imports import run_watched
from tl_cli.cli import groups

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("arguments", "commands"),
    [
        ("--help", []),
        ("--version", []),
        ("train --help", ["train"]),
        ("runs rm --help", ["runs"]),
        ("help env", ["env"]),
        ("data", ["data"]),
        ("cache clear --kind nothing --yes", ["cache"]),
        ("predict --show --json photo.jpg", ["predict"]),
        ("train --tag nonsense", ["train"]),
        ("train resnet18 --data nowhere", ["train"]),
        ("train resnet18 --data ./no/where", ["train"]),
        ("train --config settings.toml --data nowhere", ["train"]),
    ],
)
def test_only_the_typed_command_is_imported_and_nothing_heavy(arguments: str, commands: list[str]) -> None:
    done = run_watched(*arguments.split())
    heavy = "['numpy']" if arguments.startswith("cache") else "[]"
    assert f"IMPORTED {heavy} {commands}" in done.stderr


def test_listed_commands_have_their_modules() -> None:
    modules = {path.stem for path in (ROOT / "tl_cli" / "cli").glob("*.py")}
    assert modules - {"__init__", "app", "groups", "params", "settings", "typed"} == set(groups.COMMANDS)
    assert all(groups.load(name).name == name for name in groups.COMMANDS)


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("tl tr", "train"),
        ("tl train resnet1", "resnet18"),
        ("tl models pull timm/resnet1", "timm/resnet18"),
        ("tl train --data cifar1", "cifar100"),
        ("tl train --recipe f", "fast"),
        ("tl inspect resnet18 --data dig", "digits"),
        ("tl data check mn", "mnist"),
        ("tl runs d", "diff"),
    ],
)
def test_names_are_completed_without_anything_heavy(words: str, offered: str) -> None:
    done = run_watched(_TL_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=str(words.count(" ")))
    assert offered in done.stdout.split()
    assert "IMPORTED []" in done.stderr

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from tl_cli.cli.app import app

ROOT = Path(__file__).parents[2]


def paths(group: Any, prefix: str = "") -> Iterator[str]:
    """Every command as it is typed, groups and what is in them."""
    for name, command in sorted(group.commands.items()):
        yield f"{prefix}{name}"
        if hasattr(command, "commands"):
            yield from paths(command, f"{prefix}{name} ")


COMMANDS = list(paths(typer.main.get_command(app)))
HEAVY = ("torch", "torchvision", "timm", "mlflow", "numpy", "matplotlib", "plotext")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example_and_a_line_in_the_readme(command: str, tl) -> None:
    result = tl(*command.split(), "--help")
    assert result.code == 0
    assert f"tl {command} " in result.out
    assert "Examples:" in result.out
    assert re.search(rf"\btl {command.removesuffix(' list')}\b", (ROOT / "README.md").read_text())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_example_in_help_uses_options_that_exist(command: str, tl) -> None:
    text = tl(*command.split(), "--help").out
    usage, _, examples = text.partition("Examples:")
    if command in ("compare", "inspect"):
        # Options of tl train follow, of what is trained or what would be.
        usage += tl("train", "--help").out
    for option in re.findall(r"(--[a-z-]+)", examples):
        assert option in usage, option


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    script = (
        "import sys\nsys.argv = ['tl', *sys.argv[1:]]\n"
        "from tl_cli.cli.app import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
    assert "HEAVY []" in done.stdout


def test_completion_imports_nothing_heavy() -> None:
    script = (
        "import os, sys\nos.environ.update(_TL_COMPLETE='complete_bash', COMP_WORDS='tl tr', COMP_CWORD='1')\n"
        "sys.argv = ['tl']\nfrom tl_cli.cli.app import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "train" in done.stdout
    assert "HEAVY []" in done.stdout


def test_python_m_is_tl() -> None:
    done = subprocess.run([sys.executable, "-m", "tl_cli", "--version"], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"tl \d+\.\d+\.\d+\n", done.stdout)


def test_every_option_of_train_that_is_a_setting_bears_the_settings_name() -> None:
    from tl_cli.training.config import FIELDS

    options = {parameter.name for parameter in typer.main.get_command(app).commands["train"].params}  # type: ignore[attr-defined]
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


def test_package_files_are_empty_but_for_the_python_api() -> None:
    filled = {path.parent for path in (ROOT / "tl_cli").rglob("__init__.py") if path.read_text()}
    assert filled == {ROOT / "tl_cli", ROOT / "tl_cli" / "api"}


@pytest.mark.parametrize(
    ("words", "offered"),
    [
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
    script = (
        "import os, sys\n"
        f"os.environ.update(_TL_COMPLETE='complete_bash', COMP_WORDS={words!r}, COMP_CWORD='{words.count(' ')}')\n"
        "sys.argv = ['tl']\nfrom tl_cli.cli.app import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert offered in done.stdout.split()
    assert "HEAVY []" in done.stdout

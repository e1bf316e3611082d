import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.imports import run_watched
from tl_cli.cli import groups

ROOT = Path(__file__).parents[2]


def all_commands() -> Iterator[str]:
    """Every command as it is typed: groups and their commands."""
    for name in sorted(groups.COMMANDS):
        yield name
        yield from (f"{name} {inner}" for inner in sorted(getattr(groups.load(name), "commands", ())))


COMMANDS = list(all_commands())


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
        # Options of tl train may follow.
        usage += tl("train", "--help").out
    for option in re.findall(r"(--[a-z-]+)", examples):
        assert option in usage, option


@pytest.mark.parametrize(
    "arguments", ["cache", "runs", "runs show latest", "plot --terminal", "plot --terminal nothing"]
)
def test_listings_import_neither_torch_nor_mlflow(arguments: str, workplace: Path) -> None:
    done = run_watched(*arguments.split(), MLFLOW_TRACKING_URI=f"sqlite:///{workplace}/mlflow.db")
    assert "IMPORTED" in done.stderr
    assert not re.search("torch|timm|mlflow|matplotlib", done.stderr.partition("IMPORTED")[2])


def test_package_files_are_empty_but_for_the_python_api() -> None:
    filled = {path.parent for path in (ROOT / "tl_cli").rglob("__init__.py") if path.read_text()}
    assert filled == {ROOT / "tl_cli", ROOT / "tl_cli" / "api"}

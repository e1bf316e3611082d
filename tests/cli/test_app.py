import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tl_cli.cli import groups

ROOT = Path(__file__).parents[2]


def all_commands() -> Iterator[str]:
    """Every command as it is typed, groups and what is in them."""
    for name in sorted(groups.COMMANDS):
        yield name
        yield from (f"{name} {inner}" for inner in sorted(getattr(groups.load(name), "commands", ())))


COMMANDS = list(all_commands())
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


def run_watched(*arguments: str, stop_at: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``tl`` in a new process, which writes the heavy modules and the commands that it has imported to stderr.

    Args:
        stop_at: a module at whose import the process ends.
    """
    script = (
        "import os, sys\n"
        "class Stop:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {stop_at!r}:\n"
        "            os._exit(77)\n"
        "sys.meta_path.insert(0, Stop())\n"
        "sys.argv[0] = 'tl'\nfrom tl_cli.cli.app import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"heavy = [name for name in {HEAVY!r} if name in sys.modules]\n"
        f"commands = [name for name in {[*groups.COMMANDS]!r} if f'tl_cli.cli.{{name}}' in sys.modules]\n"
        "print('IMPORTED', heavy, commands, file=sys.stderr)"
    )
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True, text=True, check=False, env={**os.environ, **environment},
    )  # fmt: skip


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
    ],
)
def test_only_the_typed_command_is_imported_and_nothing_heavy(arguments: str, commands: list[str]) -> None:
    done = run_watched(*arguments.split())
    heavy = "['numpy']" if arguments.startswith("cache") else "[]"
    assert f"IMPORTED {heavy} {commands}" in done.stderr


@pytest.mark.parametrize(
    "arguments", ["cache", "runs", "runs show latest", "plot --terminal", "plot --terminal nothing"]
)
def test_listings_import_neither_torch_nor_mlflow(arguments: str, workplace: Path) -> None:
    done = run_watched(*arguments.split(), MLFLOW_TRACKING_URI=f"sqlite:///{workplace}/mlflow.db")
    assert "IMPORTED" in done.stderr
    assert not re.search("torch|timm|mlflow|matplotlib", done.stderr.partition("IMPORTED")[2])


def test_the_environment_is_printed_before_torch_is_imported() -> None:
    done = run_watched("env", stop_at="torch")
    assert done.returncode == 77
    assert "python: " in done.stdout
    assert "mlflow.db" in done.stdout
    assert "torch cpu capability" not in done.stdout


def test_training_prints_a_line_before_torch_is_imported() -> None:
    done = run_watched("train", "resnet18", stop_at="torch")
    assert (done.returncode, done.stdout, done.stderr) == (77, "loading torch\n", "")
    done = run_watched("train", "resnet18", "--json", stop_at="torch")
    assert (done.returncode, done.stdout, done.stderr) == (77, "", "loading torch\n")
    done = run_watched("train", "resnet18", "--quiet", stop_at="torch")
    assert (done.returncode, done.stdout, done.stderr) == (77, "", "")


def test_listed_commands_have_their_modules() -> None:
    modules = {path.stem for path in (ROOT / "tl_cli" / "cli").glob("*.py")}
    assert modules - {"__init__", "app", "groups", "params", "settings", "typed"} == set(groups.COMMANDS)
    assert all(groups.load(name).name == name for name in groups.COMMANDS)


def test_python_m_is_tl() -> None:
    done = subprocess.run([sys.executable, "-m", "tl_cli", "--version"], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"tl \d+\.\d+\.\d+\n", done.stdout)


def test_every_option_of_train_that_is_a_setting_bears_the_settings_name() -> None:
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


def test_package_files_are_empty_but_for_the_python_api() -> None:
    filled = {path.parent for path in (ROOT / "tl_cli").rglob("__init__.py") if path.read_text()}
    assert filled == {ROOT / "tl_cli", ROOT / "tl_cli" / "api"}


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

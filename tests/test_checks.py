"""Linters and type checks, so that `pytest` is the only command that contributors and CI run."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check", "."],
        ["ruff", "format", "--check", "."],
        [sys.executable, "-m", "mypy"],
        ["lint-imports"],
    ],
    ids=["ruff", "format", "mypy", "import-linter"],
)
def test_the_code_passes(command: list[str]) -> None:
    path = Path(sys.executable).parent / command[0]
    done = subprocess.run(
        [str(path) if path.exists() else command[0], *command[1:]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr

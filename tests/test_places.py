"""Folders, homes and locales that are not as one would like them."""

import os
from pathlib import Path

import pytest

from tests.conftest import COLOURS, tl_process, write_pictures

TRAIN = ("train", "timm/test_resnet", "--weights", "none", "--input-size", "32", "--epochs", "2", "--freeze-epochs", "1",
         "--data", "pictures", "--workers", "0")  # fmt: skip


def said_by(folder: Path, *arguments: str, **environment: str) -> tuple[int | None, str]:
    said_in = folder / "said.txt"
    with said_in.open("wb") as said:
        process = tl_process(*arguments, cwd=folder, stdout=said.fileno(), stderr=said.fileno(), **environment)
        process.join(100)
    return process.exitcode, said_in.read_bytes().decode(errors="replace")


def work_in(folder: Path, **environment: str) -> str:
    """Train, list, draw and evaluate in a folder; return what was said."""
    write_pictures(folder / "pictures", COLOURS, 12)
    everything = ""
    for command in (
        TRAIN,
        ("runs",),
        ("plot", "-t"),
        ("plot",),
        ("eval", "latest"),
        ("data", "check", "pictures", "--no-labels"),
    ):
        code, said = said_by(folder, *command, **environment)
        assert code == 0, f"{command}: {said}"
        assert "Traceback" not in said
        everything += said
    return everything


@pytest.mark.parametrize("name", ["-with spaces, 'quotes', 猫 é ñ #hash%20?query=1", "x" * 200])
def test_any_name_of_a_folder_will_do(name: str, tmp_path: Path, ready_database: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    (folder / "mlflow.db").write_bytes(ready_database.read_bytes())
    assert "test accuracy" in work_in(folder)
    assert list(folder.glob("*-loss_by_step.png"))


@pytest.mark.parametrize(
    "environment",
    [
        {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0"},
        {"HOME": "/nonexistent/home", "TL_CACHE_DIR": "/proc/nowhere"},
        {"HOME": "", "XDG_CACHE_HOME": "/dev/null/x", "TL_CACHE_DIR": "/dev/null/cache"},
    ],
    ids=["C locale", "read-only home", "no home"],
)
def test_no_home_and_no_locale_are_needed(environment: dict[str, str], tmp_path: Path, ready_database: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(ready_database.read_bytes())
    said = work_in(tmp_path, **environment)
    assert "test accuracy" in said
    if "LC_ALL" in environment:
        assert "\x1b" not in said


def test_a_folder_that_may_not_be_written_is_said(tmp_path: Path) -> None:
    code, said = said_by(tmp_path, "runs", "--tracking-uri", "sqlite:////proc/nowhere/mlflow.db")
    assert code == 1
    assert "cannot be used" in said
    assert "Traceback" not in said


def test_a_name_that_is_no_utf8_is_refused_or_shown_as_it_can_be(tmp_path: Path, ready_database: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/pictures\xff"))
    write_pictures(folder / "train", COLOURS, 6)
    write_pictures(folder / "test", COLOURS, 3)
    (tmp_path / "mlflow.db").write_bytes(ready_database.read_bytes())
    code, said = said_by(tmp_path, *TRAIN[:-4], "--data", str(folder), "--workers", "0")
    assert "Traceback" not in said, said
    assert code in (0, 2), said

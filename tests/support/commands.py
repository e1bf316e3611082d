"""Commands of ``tl`` in this process."""

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

QUICK = ("shufflenet_v2_x0_5", "--weights", "none", "--input-size", "32", "--epochs", "2", "--freeze-epochs", "1")


@dataclass
class Result:
    """The result of a command."""

    code: int
    out: str
    err: str


def train_in(folder: Path, ready_database: Path, *commands: Sequence[str | Path]) -> Path:
    """Run each of these ``tl train`` commands in a folder shared by several tests; return the folder."""
    import mlflow

    from tl_cli.cli.app import main

    (folder / "mlflow.db").write_bytes(ready_database.read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TL_CACHE_DIR", str(folder / "cache"))
        patch.chdir(folder)
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        for options in commands:
            patch.setattr(sys, "argv", ["tl", "train", *map(str, options)])
            with pytest.raises(SystemExit) as stopped:
                main()
            assert stopped.value.code == 0
    return folder


def train(tl: Callable[..., Result], data: Path, *more: object) -> str:
    """Train a small network; return the first characters of the run's id."""
    result: Result = tl("train", *QUICK, "--data", data, *more)
    assert result.code == 0, result.err
    return re.search(r"run (\w{8}) is recorded", result.out).group(1)

"""A run killed at any moment resumes to the same result: 10 times here, ``python -m tests.test_kills 200`` for more."""

import os
import random
import shutil
import signal
import sqlite3
import sys
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import mlflow
import pytest
import torch
from safetensors.torch import load_file

from tests.support.processes import run_in, start_in
from tests.support.quick_run import TRAIN, is_described, newest_step, wait_until

TRIALS = 10
STEPS = 24


@dataclass(frozen=True)
class Pace:
    """The current speed of a run: seconds per step, before the first step and after the last one."""

    step_s: float
    rest_s: float


@dataclass(frozen=True)
class Ended:
    """The result of a run."""

    weights: dict[str, torch.Tensor]
    points: dict[tuple[str, int], float]
    doubled: list[tuple[str, int]]


def run_tl(
    folder: Path, *arguments: str, kill: "random.Random | None" = None, pace: Pace | None = None, writing: bool = False
) -> int | None:
    """Run tl and optionally kill it near a random step of its training; return how it ended.

    Args:
        writing: kill tl while a checkpoint is being written.
    """
    process = start_in(folder, *arguments, TL_CACHE_DIR=str(folder / "cache"))
    if kill is not None:
        first = newest_step(folder)
        # A fifth of the kills come before the first step or after the last one.
        step = min(kill.randint(first, STEPS + 5), STEPS - 1 if writing else STEPS)
        wait_until(process, lambda: is_described(folder) and newest_step(folder) >= step)
        if writing:
            # The checkpoint was written too quickly to be seen.
            wait_until(
                process,
                lambda: (
                    any(folder.glob("mlruns/*/*/state/.step-*.tmp")) or newest_step(folder) > min(step + 1, STEPS - 1)
                ),
            )
        else:
            time.sleep(kill.uniform(0, pace.rest_s if step in (first, STEPS) else pace.step_s))
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
    process.join()
    return process.exitcode


def outcome_of(folder: Path) -> Ended:
    (state,) = folder.glob("mlruns/*/*/state")
    with closing(sqlite3.connect(folder / "mlflow.db")) as database:
        rows = database.execute(
            "select key, step, value from metrics where key not like 'system/%' and key not like 'time/%'"
        ).fetchall()
    counted = Counter((key, step) for key, step, _ in rows)
    return Ended(
        load_file(state / "best" / "model.safetensors"),
        {(key, step): value for key, step, value in rows},
        [k for k, n in counted.items() if n > 1],
    )


def whole_run(folder: Path, database: Path, data: Path) -> tuple[Ended, Pace]:
    """Run tl once without a kill; return its result and the time of its parts."""
    folder.mkdir()
    shutil.copy(database, folder / "mlflow.db")
    process = start_in(folder, *TRAIN, "--data", str(data), TL_CACHE_DIR=str(folder / "cache"))
    at = []
    for step in (0, 1, STEPS):
        wait_until(process, lambda step=step: is_described(folder) and newest_step(folder) >= step)
        at.append(time.monotonic())
    process.join()
    assert process.exitcode == 0, (folder / "output").read_text()
    described, first, last = at
    rest_s = min(first - described, 0.8 * (time.monotonic() - last))
    return outcome_of(folder), Pace((last - first) / STEPS, rest_s)


def killed_run(folder: Path, database: Path, data: Path, seed: int, pace: Pace) -> tuple[Ended, bool]:
    """Kill a run, and sometimes the process that resumes it too; return its result, and whether it was killed at all."""
    chance = random.Random(seed)
    folder.mkdir()
    shutil.copy(database, folder / "mlflow.db")
    code = run_tl(folder, *TRAIN, "--data", str(data), kill=chance, pace=pace, writing=seed % 2 == 1)
    was_killed = code == -signal.SIGKILL
    while code == -signal.SIGKILL:
        again = chance if chance.random() < 0.2 else None
        code = run_tl(folder, "train", "--resume", "latest", kill=again, pace=pace)
    output = (folder / "output").read_text()
    # If the run was killed after everything was recorded, there is nothing to resume.
    assert code == 0 or "is complete; to train its model further" in output, output
    return outcome_of(folder), was_killed


def check(ended: Ended, undisturbed: Ended, seed: int) -> None:
    assert ended.weights.keys() == undisturbed.weights.keys()
    different = [key for key, value in undisturbed.weights.items() if not torch.equal(value, ended.weights[key])]
    assert not different, f"trial {seed}: {different[:3]}"
    assert not ended.doubled, f"trial {seed}: recorded twice: {ended.doubled[:3]}"
    assert ended.points == undisturbed.points, f"trial {seed}"


@pytest.mark.slow
@pytest.mark.timeout(7200)  # fifty runs, one after another
def test_a_run_killed_at_any_moment_resumes_to_the_same_result(
    tmp_path: Path, ready_database: Path, colours: Path
) -> None:
    undisturbed, pace = whole_run(tmp_path / "whole", ready_database, colours)
    assert len([key for key, step in undisturbed.points if key == "step/loss"]) == STEPS
    killed = seed = 0
    # Some runs end before they are killed.
    while killed < TRIALS and seed < 3 * TRIALS:
        ended, was_killed = killed_run(tmp_path / str(seed), ready_database, colours, seed, pace)
        check(ended, undisturbed, seed)
        shutil.rmtree(tmp_path / str(seed))
        killed += was_killed
        seed += 1
    assert killed == TRIALS


def die_in(name: str) -> None:
    """Kill the process when it begins to record this item."""
    from tl_cli.tracking import recorder as run
    from tl_cli.tracking import sync

    def die(*arguments: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if name == "write_toml":
        run.write_toml = die
    elif name == "dataset_inputs":
        sync.dataset_inputs = die
    else:
        setattr(run.Recorder, name, die)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["write_toml", "dataset_inputs", "_queue_results"])
def test_an_interrupted_record_is_completed(name: str, tmp_path: Path, ready_database: Path, colours: Path) -> None:
    shutil.copy(ready_database, tmp_path / "mlflow.db")
    code, _ = run_in(tmp_path, *TRAIN, "--data", colours, prepare=partial(die_in, name))
    assert code == -signal.SIGKILL
    code, output = run_in(tmp_path, "train", "--resume", "latest")
    assert code == 0, output
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs(["1"])
    assert run.info.status == "FINISHED"
    assert run.data.params["epochs"] == "4"
    assert run.data.tags["tl.model"] == "timm/test_efficientnet"
    assert len(run.inputs.dataset_inputs) == 3
    assert len(run.outputs.model_outputs) == 1
    assert {each.path for each in client.list_artifacts(run.info.run_id)} >= {
        "config.toml",
        "training_batch.png",
        "curves",
    }
    assert "on test images" in run.data.tags["mlflow.note.content"]
    assert run.data.metrics["test/accuracy"] > 0


if __name__ == "__main__":
    import tempfile

    from tests.support.pictures import COLOURS, write_pictures

    count = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        mlflow.MlflowClient(f"sqlite:///{root}/mlflow.db").search_experiments()
        write_pictures(root / "data" / "train", COLOURS, 16)
        write_pictures(root / "data" / "test", COLOURS, 6)
        reference, found_pace = whole_run(root / "whole", root / "mlflow.db", root / "data")
        times = number = 0
        while times < count:
            found, hit = killed_run(root / str(number), root / "mlflow.db", root / "data", number, found_pace)
            check(found, reference, number)
            shutil.rmtree(root / str(number))
            times += hit
            number += 1
            print(f"{times} of {count} killed", end="\r", flush=True)
        print(f"{times} of {times} that were killed went on as if nothing had been, and {number - times} others")

"""Runs that are recorded without a training, and projects with a store."""

import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import mlflow
import pytest
import torch

from tl_cli.contract import DataSpec, ModelCard
from tl_cli.models import bundle
from tl_cli.models.zoo import registry
from tl_cli.tracking.liveness import HEARTBEAT_TAG, PROCESS_TAG, process_tags
from tl_cli.tracking.recorder import Pace, Recorder
from tl_cli.tracking.store import Store, open_store
from tl_cli.training.events import EpochEnded, LossSampled


def epoch(number: int, step: int, loss: float = 0.5) -> EpochEnded:
    return EpochEnded(number, step, loss, 0.8, 0.6, 0.7, 1e-3, 0.0, 2.0, images_per_second=99.0, is_best=True)


TRAIN_SMALL = ("train", "timm/test_resnet", "--weights", "none", "--epochs", "1", "--freeze-epochs", "0", "--input-size",
               "32", "--batch-size", "16", "--no-probe", "--quiet")  # fmt: skip


def recorder(store: Store, **options: object) -> Recorder:
    """A recorder of a run called r, unless the options say otherwise, with a list of its warnings."""
    warnings: list[str] = []
    given = {"run_name": "r", **options}
    made = Recorder(store, experiment_id=store.experiment("tl"), warn=warnings.append, **given)
    made.warnings = warnings  # type: ignore[attr-defined]
    return made


def dead_run(store: Store, beat: float | None = None) -> str:
    """Return a run whose process on this machine has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    machine = process_tags()[PROCESS_TAG].split(" ")[0]
    process.wait()
    tags = {"tl.version": "0", PROCESS_TAG: f"{machine} {process.pid} 1"}
    if beat is not None:
        tags[HEARTBEAT_TAG] = str(beat)
    return str(store.client.create_run(store.experiment("tl"), run_name="gone", tags=tags).info.run_id)


def silent_run(store: Store) -> str:
    tags = {"tl.version": "0", "tl.host": "far", PROCESS_TAG: "far/boot 7 1", HEARTBEAT_TAG: str(time.time() - 3600)}
    return str(store.client.create_run(store.experiment("tl"), run_name="far", tags=tags).info.run_id)


def project(folder: Path, database: Path, location: str | None = None) -> str:
    """Make a project with one run, which has an artifact, a checkpoint and a model; return the run's id."""
    folder.mkdir(parents=True)
    shutil.copy(database, folder / "mlflow.db")
    with closing(sqlite3.connect(folder / "mlflow.db")) as connection, connection:
        connection.execute("update experiments set artifact_location = ?", (f"{folder}/mlruns/0",))
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    client = mlflow.MlflowClient()
    experiment = client.create_experiment("tl", artifact_location=location or str(folder / "mlruns" / "1"))
    run_id = str(client.create_run(experiment, run_name="one").info.run_id)
    (folder / "note.txt").write_text("x" * 5000)
    client.log_artifact(run_id, str(folder / "note.txt"))
    state = folder / "mlruns" / experiment / run_id / "state"
    state.mkdir(parents=True)
    (state / "step-00000001.ckpt").write_bytes(bytes(9000))
    model = client.create_logged_model(experiment, name="m", source_run_id=run_id)
    client.log_model_artifacts(model.model_id, str(state))
    client.log_outputs(run_id, [mlflow.entities.LoggedModelOutput(model.model_id, 0)])
    client.set_terminated(run_id)
    return run_id


def use_project(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix in (".txt", ".ckpt")
    }


def save_small_model(folder: Path, epoch: int = 1) -> Path:
    """Save a small model with random weights, which depend on the epoch; return its folder."""
    made = registry.create("timm/test_resnet", 2, weights="none", input_size=32)
    with torch.no_grad():
        next(made.model.parameters()).add_(epoch)
    bundle.save(
        folder,
        made.model,
        ModelCard(
            architecture=made.name, head=made.head, classes=("a", "b"), preprocessing=made.preprocessing,
            weights=made.weights, data=DataSpec(source="/nowhere", layout="classes"), recipe="default", epoch=epoch,
        ),
    )  # fmt: skip
    return folder


_HOLD = (
    "import sys, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print(flush=True); sys.stdin.read()"
)


@contextmanager
def held(lock: Path) -> Iterator[None]:
    """Let another process hold a lock during the block."""
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        yield
        process.stdin.close()


def record(name: str, *, epochs: int = 3, end: bool = True, accuracy: float = 0.7):
    store = open_store(None)
    made = recorder(store, run_name=name, pace=Pace(send_s=0.1))
    made.__enter__()
    for number in range(1, epochs + 1):
        for step in range(10 * number - 9, 10 * number + 1):
            made(LossSampled(step, number, 2 / step, 1e-3, 0.0))
        made(epoch(number, 10 * number, 1 / number))
    if end:
        made.__exit__(None, None, None)
    return made

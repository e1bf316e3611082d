"""Project folders with a store, which tests move and copy."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import mlflow
import pytest


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


def enter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix in (".txt", ".ckpt")
    }

"""The record on a real tracking server, whose artifacts only it can reach."""

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tl_cli.tracking.history import read_history
from tl_cli.tracking.store import open_store


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, ready_database: Path) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    (folder / "mlflow.db").write_bytes(ready_database.read_bytes())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", "sqlite:///mlflow.db", "--workers", "1",
               "--artifacts-destination", "./kept", "--host", "127.0.0.1", "--port", str(port)]  # fmt: skip
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2):
                break
        except (OSError, urllib.error.URLError):
            time.sleep(0.3)
    else:
        pytest.fail((folder / "log").read_text())
    yield url
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture
def at_server(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A folder with nothing in it, on a machine that knows the server."""
    import mlflow

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    mlflow.set_tracking_uri(None)
    yield server
    mlflow.set_tracking_uri(None)


def test_a_server_serves_as_well_as_a_local_file(
    at_server: str, tl, colours: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", at_server)
    trained = tl("train", "shufflenet_v2_x0_5", "--weights", "none", "--data", colours, "--epochs", "2", "--freeze-epochs",
                 "1", "--input-size", "32", "--run-name", "far", "--tracking-uri", at_server)  # fmt: skip
    assert trained.code == 0, trained.err
    assert "View run" not in trained.out
    assert f"{at_server}/#/experiments/" in trained.out
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as local:
        assert local.execute("select count(*) from runs").fetchone() == (0,)
    run = open_store(at_server).find("far")
    assert run.info.artifact_uri.startswith("mlflow-artifacts:")

    # Another machine: another folder, and nothing of the first.
    other = tmp_path / "other"
    other.mkdir()
    monkeypatch.chdir(other)
    flag = ("--tracking-uri", at_server)
    drawn = tl("plot", "--terminal", "far", *flag)
    assert drawn.code == 0, drawn.err
    assert "best: " in drawn.out
    assert "backbone unfrozen after epoch 1" in drawn.out
    assert tl("plot", "far", "--output", "curves.svg", *flag).code == 0
    assert Path("curves.svg").stat().st_size > 5000
    listed = tl("runs", *flag)
    assert listed.code == 0, listed.err
    assert "far" in listed.out
    evaluated = tl("eval", "far", *flag)
    assert evaluated.code == 0, evaluated.err
    assert "top-1" in evaluated.out
    followed = tl("plot", "--follow", "far", *flag)
    assert (followed.code, "the run is complete" in followed.out) == (0, True), followed.err
    note = open_store(at_server).client.get_experiment(run.info.experiment_id).tags["mlflow.note.content"]
    assert "far" in note
    history = read_history(open_store(at_server), run)
    assert [point.epoch for point in history.epochs] == [1, 2]
    assert history.clock

    refused = tl("runs", "rm", "far", "--purge", "--yes", *flag)
    assert (refused.code, "local store" in refused.err) == (2, True)
    assert tl("runs", "rm", "far", "--yes", *flag).code == 0
    assert "no runs" in tl("runs", *flag).out

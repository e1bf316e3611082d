"""This version of ``tl`` reads what an earlier version recorded.

``store_2026_11.tar.xz`` is a project in which the version of 30 November 2026 trained two small models, was stopped by
SIGTERM in a third training, and predicted ``store_2026_11.predictions.csv``. Figures that ``tl`` drew are left out.
Model cards and checkpoints of it: format 1 and format 4.
"""

import csv
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import mlflow
import numpy as np
import pytest

HERE = Path(__file__).parent
FIRST, SECOND, STOPPED = "first", "second", "stopped"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project, unpacked in another folder, so that its store was moved."""
    with tarfile.open(HERE / "store_2026_11.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    return tmp_path


@pytest.fixture
def tl(tl, project: Path):
    """``tl`` in that project, after the relocation that it requests."""
    mlflow.set_tracking_uri(f"sqlite:///{project}/mlflow.db")
    moved = tl("runs")
    assert (moved.code, "tl runs relocate" in moved.err) == (0, True), moved
    assert tl("runs", "relocate").code == 0
    return tl


@pytest.fixture
def workplace(project: Path) -> Path:
    return project


def predictions() -> list[list[str]]:
    with (HERE / "store_2026_11.predictions.csv").open(encoding="utf-8") as file:
        return list(csv.reader(file))


def test_its_runs_are_listed_and_plotted(tl) -> None:
    listed = tl("runs", "--json")
    assert {(run["name"], run["status"], run["test_accuracy"]) for run in json.loads(listed.out)} == {
        (FIRST, "finished", 1.0),
        (SECOND, "finished", 1.0),
        (STOPPED, "killed", None),
    }
    assert listed.err == ""
    plotted = tl("plot", "--terminal", FIRST, SECOND)
    assert (plotted.code, "loss" in plotted.out) == (0, True), plotted


def test_its_models_give_the_recorded_predictions(tl) -> None:
    header, *expected = predictions()
    result = tl("predict", FIRST, "--format", "csv", *(row[0] for row in expected))
    assert result.code == 0, result
    found_header, *found = csv.reader(result.out.splitlines())
    assert found_header == header
    for row, other in zip(found, expected, strict=True):
        assert (row[0], row[1::2]) == (other[0], other[1::2])
        # Another processor rounds differently.
        np.testing.assert_allclose(np.float64(row[2::2]), np.float64(other[2::2]), atol=1e-4)


@pytest.mark.slow
def test_its_models_are_evaluated_and_compared(tl, project: Path) -> None:
    data = ("--data", project / "pictures")
    evaluated = json.loads(tl("eval", FIRST, "--json", *data).out)
    assert (evaluated["images"], evaluated["accuracy"]) == (24, 1.0)
    assert evaluated["loss"] == pytest.approx(0.9146805, abs=1e-4)  # the output of that version
    assert evaluated["digest"] == "59ac77a7ac383d32443dbe16534a70c8c095ce2caa3e6cb630d34432780c2c38"
    compared = tl("compare", FIRST, SECOND, "--no-speed", "--format", "csv")
    assert compared.code == 0, compared
    assert len(list(csv.DictReader(compared.out.splitlines()))) == 2


@pytest.mark.slow
def test_its_models_are_exported_and_trained_further(tl, project: Path) -> None:
    exported = tl("export", FIRST, "--output", "model", "--format", "folder")
    assert exported.code == 0, exported
    assert (project / "model" / "model.safetensors").is_file()
    result = tl("train", "--weights", FIRST, "--data", "pictures", "--epochs", "2", "--freeze-epochs", "1",
                "--input-size", "32", "--batch-size", "8", "--no-probe")  # fmt: skip
    assert result.code == 0, result


def test_its_interrupted_run_is_resumed_or_refused_with_a_reason(tl, project: Path) -> None:
    assert not Path("/tmp/project").exists()
    result = tl("train", "--resume", STOPPED)
    assert result.code == 2, result
    assert "/tmp/project/pictures" in result.err


@pytest.mark.slow
def test_its_logged_model_is_loaded_by_mlflow_with_its_own_code(project: Path, tl) -> None:
    script = (
        "import base64, mlflow, pandas, sys, tl_cli.models.bundle, tl_cli.evaluation\n"
        f"mlflow.set_tracking_uri('sqlite:///{project}/mlflow.db')\n"
        "model = mlflow.pyfunc.load_model(sys.argv[1])\n"
        "image = base64.b64encode(open(sys.argv[2], 'rb').read()).decode()\n"
        "print(model.predict(pandas.DataFrame({'image': [image]})))\n"
    )
    client = mlflow.MlflowClient()
    (run,) = client.search_runs(["1"], f"attributes.run_name = '{FIRST}'")
    model_id = run.outputs.model_outputs[0].model_id
    header, expected, *_ = predictions()
    done = subprocess.run(
        [sys.executable, "-c", script, f"models:/{model_id}", str(project / expected[0])],
        capture_output=True, text=True, cwd=project, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert expected[1] in done.stdout

"""Changes of a store, seen by MLflow's own client."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import mlflow
import pytest

from tests.api.conftest import Project
from tl_cli.api.run_changes import Removal, RunName, SentRun, close_runs, relocate_runs, remove_runs, sync_runs
from tl_cli.errors import RunNotFoundError, UsageError


@pytest.fixture
def client(workplace: Path) -> mlflow.MlflowClient:
    return mlflow.MlflowClient()


@pytest.fixture
def copied(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the project; its store has the paths of the original's files."""
    folder = tmp_path / "copy"
    shutil.copytree(project.folder, folder, symlinks=True)
    monkeypatch.chdir(folder)
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    return folder


def finished(client: mlflow.MlflowClient, name: str) -> str:
    run = client.create_run("0", run_name=name)
    client.set_terminated(run.info.run_id)
    return str(run.info.run_id)


class Consent:
    def __init__(self, *, agrees: bool) -> None:
        self.agrees = agrees
        self.planned: list[Removal] = []

    def remove(self, planned: Removal) -> bool:
        self.planned.append(planned)
        return self.agrees

    def outside(self, run: RunName, folders: object, size: int) -> bool:
        raise AssertionError("no folder is outside")


def test_an_ended_run_cannot_be_closed_and_without_names_no_run_is_dead(client: mlflow.MlflowClient) -> None:
    run_id = finished(client, "one")
    assert close_runs((), None).to_dict() == {"closed": []}
    with pytest.raises(UsageError, match="has ended already"):
        close_runs((run_id,), None)


def test_a_run_without_a_living_process_is_recorded_as_killed(client: mlflow.MlflowClient) -> None:
    run_id = str(client.create_run("0", run_name="one").info.run_id)
    closed = close_runs(("one",), None)
    assert closed.to_dict() == {"closed": [{"run_id": run_id, "name": "one"}]}
    assert str(closed.runs[0]) == f"{run_id[:8]} (one)"
    assert client.get_run(run_id).info.status == "KILLED"


def test_removed_runs_can_be_restored_and_purged_ones_are_gone(client: mlflow.MlflowClient) -> None:
    first, second = finished(client, "one"), finished(client, "two")
    removed = remove_runs(("one", first), None)
    assert removed.to_dict() == {
        "runs": [{"run_id": first, "name": "one", "complete": True, "freed": 0, "remaining": [], "kept": []}],
        "purged": False, "bytes_on_disk": 0,
    }  # fmt: skip
    assert client.get_run(first).info.lifecycle_stage == "deleted"
    client.restore_run(first)
    assert remove_runs((first, second), None, purge=True, outside=False).complete
    for run_id in (first, second):
        with pytest.raises(mlflow.exceptions.MlflowException):
            client.get_run(run_id)


def test_nothing_is_removed_without_consent(client: mlflow.MlflowClient) -> None:
    run_id = finished(client, "one")
    consent = Consent(agrees=False)
    removed = remove_runs(("one",), consent)
    assert (removed.runs, removed.complete) == ((), False)
    assert [facts.run_id for facts in consent.planned[0].runs] == [run_id]
    assert client.get_run(run_id).info.lifecycle_stage == "active"
    with pytest.raises(RunNotFoundError):
        remove_runs(("one", "nothing-of-this-name"), Consent(agrees=True))
    assert client.get_run(run_id).info.lifecycle_stage == "active"


def test_trainings_that_are_kept_are_named_before_their_comparison_is_removed(client: mlflow.MlflowClient) -> None:
    parent = client.create_run("0", run_name="both", tags={"tl.compares": "models"}).info.run_id
    client.set_terminated(parent)
    child = client.create_run("0", run_name="child", tags={"mlflow.parentRunId": parent}).info.run_id
    client.set_terminated(child)
    consent = Consent(agrees=True)
    assert remove_runs((parent,), consent).complete
    ((name, left),) = consent.planned[0].children
    assert "both" in name
    assert left == 1
    assert client.get_run(child).info.lifecycle_stage == "active"


def test_files_of_the_original_project_are_not_deleted_with_a_copy(copied: Path, project: Project) -> None:
    with pytest.raises(UsageError, match="--keep-outside leaves them"):
        remove_runs(("first",), None, purge=True)
    assert (project.runs[0].model / "model.json").exists()


def test_a_copied_store_is_relocated_to_its_own_files(copied: Path, project: Project) -> None:
    planned = relocate_runs(None, dry_run=True)
    assert (project.folder / "mlruns" / "1", copied / "mlruns" / "1") in planned.moves
    with closing(sqlite3.connect(copied / "mlflow.db")) as database:
        assert planned.counts["runs"] == database.execute("SELECT COUNT(*) FROM runs").fetchone()[0]
    run_id = project.runs[0].run_id
    assert str(project.folder) in mlflow.MlflowClient().get_run(run_id).info.artifact_uri
    done = relocate_runs(None)
    assert done.to_dict() == {**planned.to_dict(), "dry_run": False}
    assert str(copied) in mlflow.MlflowClient().get_run(run_id).info.artifact_uri
    assert relocate_runs(None).changes == 0


def test_a_complete_journal_has_nothing_to_sync(project: Project) -> None:
    sent = sync_runs(("first",), None)
    assert sent.complete
    assert sent.to_dict() == {
        "runs": [{
            "run_id": project.runs[0].run_id, "name": "first", "restored": False, "points": 0, "pieces": 0,
            "status": None, "refused": [], "failed": [],
        }],
        "complete": True,
    }  # fmt: skip
    assert sync_runs((), None).runs == ()


def test_a_run_that_its_store_has_lost_is_recorded_again(copied: Path, project: Project, ready_database: Path) -> None:
    run_id = project.runs[0].run_id
    recorded = mlflow.MlflowClient().get_run(run_id)
    shutil.copy(ready_database, copied / "empty.db")
    uri = f"sqlite:///{copied}/empty.db"
    sent = sync_runs((run_id,), uri)
    assert sent.complete
    assert (sent.runs[0].restored, sent.runs[0].status) == (True, "FINISHED")
    restored = mlflow.MlflowClient(uri).get_run(run_id)
    assert (restored.info.run_name, restored.info.status) == ("first", "FINISHED")
    # The system metrics that MLflow records in runs of more than ten seconds are not restored.
    metrics = {key: value for key, value in recorded.data.metrics.items() if not key.startswith("system/")}
    assert restored.data.metrics == metrics
    assert restored.data.params == recorded.data.params


def test_a_folder_without_journals_is_refused(workplace: Path) -> None:
    with pytest.raises(UsageError, match="no run was made in this folder"):
        sync_runs((), None)


def test_problems_of_a_synced_run_are_sentences() -> None:
    sent = SentRun("0123456789", "one", False, 1, 2, None, ("param x: too long",), ("point y: timeout",))
    assert sent.problems == ["the store refuses param x: too long", "not sent: point y: timeout"]
    assert str(sent) == "01234567 (one)"

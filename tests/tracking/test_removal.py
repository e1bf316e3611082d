import ctypes
import os
import re
import signal
import time
from functools import partial
from pathlib import Path

import mlflow
import pytest

from tests.support.processes import run_in
from tests.support.recording import dead_run, files, held, project, recorder, silent_run, use_project
from tl_cli.errors import UsageError
from tl_cli.tracking import removal
from tl_cli.tracking import store as tracking_store
from tl_cli.tracking.facts import status_of
from tl_cli.tracking.liveness import process_tags
from tl_cli.tracking.store import Store, open_store


def die_after(count: int) -> None:
    """Kill the process after it has deleted ``count`` files of runs, or, with 0, when it deletes the record."""

    def die(*arguments: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if not count:
        Store.delete_for_good = die
        return
    unlink, done = os.unlink, []

    def unlink_and_count(path: object, **options: object) -> None:
        unlink(path, **options)
        done.append(path)
        if len([path for path in done if str(path).endswith((".txt", ".ckpt"))]) == count:
            die()

    os.unlink = unlink_and_count


def obey_permissions() -> None:
    """Drop all of root's capabilities, including write access to any file."""
    header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None, use_errno=True).capset(header, data) == 0


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 3, 0])
def test_a_killed_purge_is_completed_by_the_same_command(count: int, tmp_path: Path, ready_database: Path) -> None:
    folder = tmp_path / "project"
    run_id = project(folder, ready_database)
    before = files(folder)
    assert len(before) == 4  # an artifact, a checkpoint, the model's file and a file of the user
    code, output = run_in(folder, "runs", "rm", "one", "--purge", "--yes", prepare=partial(die_after, count))
    assert code == -signal.SIGKILL, output
    assert len(files(folder)) == 4 - count if count else 1
    # A run with deleted files is in no list.
    assert mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db").search_runs(["1"]) == []
    code, output = run_in(folder, "runs", "rm", "one", "--purge", "--yes")
    assert code == 0, output
    assert list(files(folder)) == ["note.txt"]
    assert not list(folder.glob(f"mlruns/1/{run_id}")) + list(folder.glob("mlruns/1/models/*"))
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    assert client.search_runs(["1"], run_view_type=mlflow.entities.ViewType.ALL) == []
    assert client.search_logged_models(["1"]) == []


def test_files_that_cannot_be_deleted_are_named_and_not_counted_as_freed(tmp_path: Path, ready_database: Path) -> None:
    folder = tmp_path / "project"
    run_id = project(folder, ready_database)
    run = folder / "mlruns" / "1" / run_id
    kept, gone, linked = run / "artifacts" / "kept.bin", run / "state" / "gone.bin", run / "state" / "linked.bin"
    for path, size in ((kept, 20), (gone, 7), (linked, 40)):
        path.write_bytes(os.urandom(size * 1_000_000))
    os.link(linked, folder / "mine.bin")  # deleting one of two names frees nothing
    with (run / "state" / "sparse.bin").open("wb") as sparse:
        sparse.truncate(1 << 30)
    kept.parent.chmod(0o555)
    code, output = run_in(folder, "runs", "rm", "one", "--purge", "--yes", prepare=obey_permissions)
    text = " ".join(output.split())
    assert (code, "7 MB are free" in text, f"{kept}" in output, "Permission denied" in output) == (
        1,
        True,
        True,
        True,
    ), output
    assert f"tl runs rm {run_id[:8]} --purge" in text
    assert sorted(path.name for path in run.rglob("*")) == ["artifacts", "kept.bin", "note.txt"]
    kept.parent.chmod(0o755)
    code, output = run_in(folder, "runs", "rm", "one", "--purge", "--yes", prepare=obey_permissions)
    assert (code, "20 MB are free" in " ".join(output.split()), run.exists()) == (0, True, False), output
    assert (folder / "mine.bin").stat().st_size == 40_000_000


def test_no_run_is_deleted_if_one_of_them_is_in_use(
    tl, tmp_path: Path, workplace: Path, ready_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "project"
    run_id = project(folder, ready_database)
    use_project(folder, monkeypatch)
    client = mlflow.MlflowClient()
    second = client.create_run("1", run_name="two").info.run_id
    client.set_terminated(second)
    before = files(folder)
    with held(folder / "mlruns" / "1" / run_id / "state" / ".journal.jsonl.lock"):
        refused = tl("runs", "rm", "two", "one", "--purge", "--yes")
        assert (refused.code, "is in use by another process" in refused.err) == (2, True), refused.err
        assert client.get_run(second).info.lifecycle_stage == "active"
    assert files(folder) == before


def test_a_model_made_by_another_run_is_not_deleted(
    tl, tmp_path: Path, workplace: Path, ready_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "project"
    project(folder, ready_database)
    use_project(folder, monkeypatch)
    client, before = mlflow.MlflowClient(), files(folder)
    (model,) = client.search_logged_models(["1"])
    second = client.create_run("1", run_name="two").info.run_id
    client.log_outputs(second, [mlflow.entities.LoggedModelOutput(model.model_id, 0)])
    client.set_terminated(second)
    assert tl("runs", "rm", "two", "--purge", "--yes").code == 0
    assert files(folder) == before
    assert [each.model_id for each in client.search_logged_models(["1"])] == [model.model_id]


def test_a_run_whose_disk_is_not_mounted_is_not_removed(
    tl, tmp_path: Path, workplace: Path, ready_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "project"
    run_id = project(folder, ready_database)
    run, disk = folder / "mlruns" / "1" / run_id, folder / "disk"
    disk.mkdir()
    run.rename(disk / run_id)
    run.symlink_to(disk / run_id)
    use_project(folder, monkeypatch)
    disk.rename(folder / "unmounted")
    refused = tl("runs", "rm", "one", "--purge", "--yes")
    assert (refused.code, f"{disk / run_id} is not there" in refused.err) == (1, True), refused.err
    assert run.is_symlink()
    assert mlflow.MlflowClient().get_run(run_id)
    (folder / "unmounted").rename(disk)
    done = tl("runs", "rm", "one", "--purge", "--yes")
    assert (done.code, run.is_symlink(), list(disk.iterdir())) == (0, False, []), done.err


def test_a_dead_run_is_closed_with_the_time_of_its_last_heartbeat(store: Store) -> None:
    beat = round(time.time()) + 100_000  # later than its start
    run_id = dead_run(store, beat)
    assert status_of(store.find(run_id)) == "dead"
    removal.close(store, store.find(run_id))
    info = store.find(run_id).info
    assert (info.status, info.end_time) == ("KILLED", beat * 1000)
    with pytest.raises(UsageError, match="has ended already: killed"):
        removal.close(store, store.find(run_id))


def test_a_silent_run_can_be_closed_and_a_running_one_cannot(store: Store) -> None:
    run_id = silent_run(store)
    assert status_of(store.find(run_id)) == "silent"
    removal.close(store, store.find(run_id))
    assert status_of(store.find(run_id)) == "killed"
    with recorder(store) as record:
        for refused in (removal.close, removal.remove):
            with pytest.raises(UsageError, match="is running on .*; stop it first"):
                refused(store, store.find(record.run_id))


@pytest.mark.slow
def test_removing_hides_a_run_from_lists_and_purging_deletes_its_files(
    tl, colours: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        done = tl("train", "shufflenet_v2_x0_5", "--weights", "none", "--data", colours, "--epochs", "1", "--freeze-epochs",
                  "1", "--input-size", "32", "--run-name", name, "--quiet")  # fmt: skip
        assert done.code == 0, done.err
    store = open_store(None)
    one, two = store.find("one"), store.find("two")
    assert removal.files_of(store, one).size() > 1_000_000
    refused = tl("runs", "rm", "one")
    assert (refused.code, "--yes" in refused.err) == (2, True)
    removed = tl("runs", "rm", "one", "--yes")
    assert removed.code == 0, removed.err
    assert "mlflow runs restore" in " ".join(removed.out.split())
    assert [run.info.run_name for run in store.runs()] == ["two"]
    assert "the only run" in store.client.get_experiment(two.info.experiment_id).tags["mlflow.note.content"]
    store.client.restore_run(one.info.run_id)
    # The run and its model are hidden everywhere.
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(tracking_store, "STATE_ROOT", Path("elsewhere"))
        assert (store.model_folder(store.find("one")) / "model.json").exists()
    kept = [*store.artifact_folders(two, store.models_of(two)), store.state_folder(two)]
    gone = [*store.artifact_folders(one, store.models_of(one)), store.state_folder(one)]
    assert len(kept) == 3
    assert tl("runs", "rm", "one", "--yes").code == 0
    # A run that was removed earlier can be purged by its id or name.
    purged = tl("runs", "rm", "one", "--purge", "--yes")
    assert purged.code == 0, purged.err
    assert re.search(r"is deleted, \d+ MB are free", purged.out)
    assert all(path.exists() for path in kept)
    assert not any(path.exists() for path in gone)
    with pytest.raises(Exception, match="not found"):
        store.client.get_run(one.info.run_id)


def test_purging_one_run_deletes_nothing_else(tl, workplace: Path) -> None:
    store = open_store(None)
    client = store.client
    precious = client.create_experiment("precious")
    kept = client.create_run(precious, run_name="kept")
    (workplace / "keep.txt").write_text("keep")
    client.log_artifact(kept.info.run_id, str(workplace / "keep.txt"))
    client.delete_experiment(precious)
    experiment = store.experiment("tl")
    with mlflow.start_run(experiment_id=experiment, run_name="earlier") as earlier:
        model = mlflow.pyfunc.log_model(name="m", python_model=lambda model_input: model_input, pip_requirements=[])
    client.create_run(experiment, run_name="purged")
    client.set_terminated(store.find("purged").info.run_id)
    assert tl("runs", "rm", "earlier", "--yes").code == 0
    purged = tl("runs", "rm", "purged", "--purge", "--yes")
    assert purged.code == 0, purged.err
    client.restore_experiment(precious)
    assert [item.path for item in client.list_artifacts(kept.info.run_id)] == ["keep.txt"]
    client.restore_run(earlier.info.run_id)
    assert all(folder.is_dir() for folder in store.artifact_folders(earlier, [model.model_id])[1:])
    assert client.get_logged_model(model.model_id).name == "m"


def test_a_registered_model_is_not_purged(tl, workplace: Path) -> None:
    store = open_store(None)
    with mlflow.start_run(experiment_id=store.experiment("tl"), run_name="served"):
        mlflow.pyfunc.log_model(
            name="m", python_model=lambda model_input: model_input, pip_requirements=[], registered_model_name="prod"
        )
    refused = tl("runs", "rm", "served", "--purge", "--yes")
    assert (refused.code, "prod version 1" in refused.err) == (2, True)


def test_a_run_resumed_during_the_confirmation_is_not_removed(store: Store) -> None:
    stopped = store.find(dead_run(store))
    store.client.set_terminated(stopped.info.run_id, "KILLED")
    stopped = store.find(stopped.info.run_id)
    store.client.update_run(stopped.info.run_id, status="RUNNING")
    for key, value in process_tags().items():
        store.client.set_tag(stopped.info.run_id, key, value)
    for refused in (removal.close, removal.remove):
        with pytest.raises(UsageError, match="is running"):
            refused(store, stopped)
    assert store.find(stopped.info.run_id).info.lifecycle_stage == "active"


def test_a_run_of_unknown_state_is_closed_if_named(store: Store) -> None:
    run = store.client.create_run(store.experiment("tl"), run_name="foreign")
    assert status_of(store.find("foreign")) == "running"
    removal.close(store, store.find("foreign"))
    assert store.client.get_run(run.info.run_id).info.status == "KILLED"

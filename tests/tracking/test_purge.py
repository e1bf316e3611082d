import ctypes
import os
import signal
from functools import partial
from pathlib import Path

import mlflow
import pytest

from tests.support.processes import said_by
from tests.support.projects import enter, files, project


def die_after(count: int) -> None:
    """Let the process be killed when it has deleted so many files of runs, or 0: when it deletes the record."""
    from tl_cli.tracking.store import Store

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
    """Give up root's right to write anywhere, with all other capabilities."""
    header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None, use_errno=True).capset(header, data) == 0


@pytest.mark.parametrize("count", [1, 2, 3, 0])
def test_a_purge_that_was_killed_is_finished_by_the_same_command(
    count: int, tmp_path: Path, ready_database: Path
) -> None:
    folder = tmp_path / "project"
    run_id = project(folder, ready_database)
    before = files(folder)
    assert len(before) == 4  # an artifact, a checkpoint, the model's file, and one that is the user's
    code, said = said_by(folder, "runs", "rm", "one", "--purge", "--yes", prepare=partial(die_after, count))
    assert code == -signal.SIGKILL, said
    assert len(files(folder)) == 4 - count if count else 1
    # A run that lacks some of its files is offered by no list.
    assert mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db").search_runs(["1"]) == []
    code, said = said_by(folder, "runs", "rm", "one", "--purge", "--yes")
    assert code == 0, said
    assert list(files(folder)) == ["note.txt"]
    assert not list(folder.glob(f"mlruns/1/{run_id}")) + list(folder.glob("mlruns/1/models/*"))
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    assert client.search_runs(["1"], run_view_type=mlflow.entities.ViewType.ALL) == []
    assert client.search_logged_models(["1"]) == []


def test_what_cannot_be_deleted_is_named_and_not_counted_as_free(tmp_path: Path, ready_database: Path) -> None:
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
    code, said = said_by(folder, "runs", "rm", "one", "--purge", "--yes", prepare=obey_permissions)
    text = " ".join(said.split())
    assert (code, "7 MB are free" in text, f"{kept}" in said, "Permission denied" in said) == (1, True, True, True), (
        said
    )
    assert f"tl runs rm {run_id[:8]} --purge" in text
    assert sorted(path.name for path in run.rglob("*")) == ["artifacts", "kept.bin", "note.txt"]
    kept.parent.chmod(0o755)
    code, said = said_by(folder, "runs", "rm", "one", "--purge", "--yes", prepare=obey_permissions)
    assert (code, "20 MB are free" in " ".join(said.split()), run.exists()) == (0, True, False), said
    assert (folder / "mine.bin").stat().st_size == 40_000_000


def test_of_several_runs_none_is_deleted_where_one_is_in_use(
    tl, tmp_path: Path, workplace: Path, ready_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.support.locks import held

    folder = tmp_path / "project"
    run_id = project(folder, ready_database)
    enter(folder, monkeypatch)
    client = mlflow.MlflowClient()
    second = client.create_run("1", run_name="two").info.run_id
    client.set_terminated(second)
    before = files(folder)
    with held(folder / "mlruns" / "1" / run_id / "state" / ".journal.jsonl.lock"):
        refused = tl("runs", "rm", "two", "one", "--purge", "--yes")
        assert (refused.code, "is in use by another process" in refused.err) == (2, True), refused.err
        assert client.get_run(second).info.lifecycle_stage == "active"
    assert files(folder) == before


def test_a_model_that_another_run_made_stays_with_it(
    tl, tmp_path: Path, workplace: Path, ready_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "project"
    project(folder, ready_database)
    enter(folder, monkeypatch)
    client, before = mlflow.MlflowClient(), files(folder)
    (model,) = client.search_logged_models(["1"])
    second = client.create_run("1", run_name="two").info.run_id
    client.log_outputs(second, [mlflow.entities.LoggedModelOutput(model.model_id, 0)])
    client.set_terminated(second)
    assert tl("runs", "rm", "two", "--purge", "--yes").code == 0
    assert files(folder) == before
    assert [each.model_id for each in client.search_logged_models(["1"])] == [model.model_id]


def test_a_run_whose_disk_is_away_is_not_forgotten(
    tl, tmp_path: Path, workplace: Path, ready_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "project"
    run_id = project(folder, ready_database)
    run, disk = folder / "mlruns" / "1" / run_id, folder / "disk"
    disk.mkdir()
    run.rename(disk / run_id)
    run.symlink_to(disk / run_id)
    enter(folder, monkeypatch)
    disk.rename(folder / "unmounted")
    refused = tl("runs", "rm", "one", "--purge", "--yes")
    assert (refused.code, f"{disk / run_id} is not there" in refused.err) == (1, True), refused.err
    assert run.is_symlink()
    assert mlflow.MlflowClient().get_run(run_id)
    (folder / "unmounted").rename(disk)
    done = tl("runs", "rm", "one", "--purge", "--yes")
    assert (done.code, run.is_symlink(), list(disk.iterdir())) == (0, False, []), done.err

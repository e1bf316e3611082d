import os
import shutil
import signal
from pathlib import Path

import pytest
from mlflow.entities import Run

from tests.support.processes import run_in, start_in
from tests.support.quick_run import TRAIN, newest_step, wait_until
from tests.support.recording import held, record, recorder
from tl_cli.errors import TrackingError, UsageError
from tl_cli.tracking.journal import JOURNAL, hold_lock
from tl_cli.tracking.ownership import lock_for_reading, lock_run
from tl_cli.tracking.store import Store
from tl_cli.tracking.sync import Synced, sync


def killed_run(store: Store) -> Run:
    made = record("stopped")
    store.client.set_terminated(made.run_id, "KILLED", end_time=1_000_000_000_000)
    return store.find(made.run_id)


def contents_of(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}


def test_a_journal_belongs_to_one_process_at_a_time(store: Store) -> None:
    run = killed_run(store)
    path = store.state_folder(run) / JOURNAL
    other = held(path.with_name(f".{JOURNAL}.lock"))
    refused = pytest.raises(TrackingError, match="another process writes or sends")
    with other, refused, hold_lock(path, timeout_s=0):
        pass
    with hold_lock(path, timeout_s=0), hold_lock(path, timeout_s=0):  # a process may take its own lock again
        assert sync(store, run) == Synced(0, 0, None)
    with held(path.with_name(f".{JOURNAL}.lock")), pytest.raises(TrackingError), hold_lock(path, timeout_s=0):
        pass


def test_a_process_that_does_not_own_a_run_does_not_change_it(store: Store) -> None:
    run = killed_run(store)
    before = contents_of(store.state_folder(run))
    with held(store.state_folder(run) / f".{JOURNAL}.lock"):
        with pytest.raises(TrackingError, match="another process"):
            recorder(store, run_id=run.info.run_id).__enter__()
        assert store.find(run.info.run_id) == run
        assert contents_of(store.state_folder(run)) == before


@pytest.mark.parametrize(
    "command",
    [("train", "--resume"), ("runs", "close"), ("runs", "rm", "--yes"), ("runs", "rm", "--purge", "--yes")],
    ids=" ".join,
)
def test_a_run_locked_by_another_process_is_neither_resumed_nor_closed_nor_deleted(
    command: tuple[str, ...],
    tl,
    store: Store,
    workplace: Path,
) -> None:
    run = killed_run(store)
    before = contents_of(workplace / "mlruns")
    lock = store.state_folder(run) / f".{JOURNAL}.lock"
    with held(lock):
        refused = tl(*command, run.info.run_id[:8])
        assert (refused.code, "is in use by another process" in refused.err) == (2, True), refused.err
        assert store.find(run.info.run_id) == run
        assert contents_of(workplace / "mlruns") == before
        assert lock.exists()


def test_a_run_that_is_being_read_is_not_deleted_and_readers_are_concurrent(tl, store: Store) -> None:
    run = killed_run(store)
    other = held(store.state_folder(run) / ".reader-other.lock")
    with other, lock_for_reading(store, run), lock_for_reading(store, run):
        assert len(list(store.state_folder(run).glob(".reader-*.lock"))) == 3
        for flags in (("--yes",), ("--purge", "--yes")):
            refused = tl("runs", "rm", "stopped", *flags)
            assert (refused.code, "is in use by another process" in refused.err) == (2, True), refused.err
        with lock_run(store, run):  # it may continue meanwhile
            pass
    # The file of a killed reader is not a lock.
    assert [path.name for path in store.state_folder(run).glob(".reader-*")] == [".reader-other.lock"]
    with lock_run(store, run, from_readers=True) as now:
        assert now.info.run_id == run.info.run_id


def test_no_lock_is_made_where_a_run_has_no_folder(store: Store, workplace: Path) -> None:
    made = store.client.create_run(store.experiment("tl"), run_name="foreign")
    store.client.set_terminated(made.info.run_id)
    before = sorted(workplace.rglob("*"))
    run = store.find("foreign")
    with lock_for_reading(store, run), lock_run(store, run, from_readers=True):
        assert sorted(workplace.rglob("*")) == before


def test_a_run_that_was_removed_meanwhile_is_not_resumed(store: Store) -> None:
    run = killed_run(store)
    store.client.delete_run(run.info.run_id)
    with pytest.raises(UsageError, match="has been removed in the meantime"), lock_run(store, run):
        pass


@pytest.mark.slow
def test_one_of_two_concurrent_resumes_completes_a_run(tmp_path: Path, ready_database: Path, colours: Path) -> None:
    import mlflow

    shutil.copy(ready_database, tmp_path / "mlflow.db")
    first = start_in(tmp_path, *TRAIN, "--data", colours)
    wait_until(first, lambda: newest_step(tmp_path) >= 6)
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    assert first.exitcode == -signal.SIGKILL, (tmp_path / "output").read_text()
    both = [start_in(tmp_path, "train", "--resume", "latest") for _ in range(2)]
    for process in both:
        process.join()
    output = (tmp_path / "output").read_text()
    # The other process comes while the run is locked, while it trains, or when it is complete.
    assert sorted(process.exitcode for process in both) == [0, 2], output
    (run,) = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").search_runs(["1"])
    assert (run.info.status, run.data.metrics["epoch"], len(run.outputs.model_outputs)) == ("FINISHED", 4, 1)
    code, output = run_in(tmp_path, "runs", "rm", "latest", "--purge", "--yes")
    assert code == 0, output


@pytest.mark.slow
def test_two_concurrent_evaluations_record_each_metric_once(
    tmp_path: Path, ready_database: Path, colours: Path
) -> None:
    import mlflow

    shutil.copy(ready_database, tmp_path / "mlflow.db")
    code, output = run_in(tmp_path, *TRAIN, "--data", colours)
    assert code == 0, output
    both = [start_in(tmp_path, "eval", "latest", "--split", "val") for _ in range(2)]
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0], (tmp_path / "output").read_text()
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs(["1"])
    keys = [key for key in run.data.metrics if key.startswith("eval/")]
    assert {len(client.get_metric_history(run.info.run_id, key)) for key in keys} == {1}

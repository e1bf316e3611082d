"""What others write into a store, or the clock, never ends a list."""

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import Run

from tests.support.records import epoch, recorder
from tl_cli.errors import StorageError, TrackingError
from tl_cli.tracking.reasons import reason
from tl_cli.tracking.store import Store, open_store
from tl_cli.training.state import checkpoints

HOSTILE = ("1e400", "-1e400", "nan", "", " ", "x", "9" * 5000, "-1", "0x10", "1_0", "[]", "{}", "٣", "1-2-3", "5-", "a b c",
           "1-" + "9" * 400, "host 99999999999999999999 1", "-0", "1e308")  # fmt: skip
TAGS = ("mlflow.tl.heartbeat", "mlflow.tl.pauses", "mlflow.tl.process", "tl.pid", "tl.host", "tl.version", "tl.data",
        "mlflow.runName", "mlflow.parentRunId", "tl.compares")  # fmt: skip
PARAMS = ("epochs", "freeze_epochs", "unfreeze_stages", "model", "data", "input_size")
METRICS = ("best/val_accuracy", "best/epoch", "test/accuracy", "test/loss", "epoch", "time/train_seconds", "val/accuracy",
           "clean_train/accuracy", "step/loss")  # fmt: skip


@pytest.fixture
def store(workplace: Path) -> Store:
    return open_store(None)


@pytest.fixture
def strange(store: Store) -> list[str]:
    """Runs of others, each with one kind of value everywhere."""
    experiment_id = store.experiment("tl")
    made = []
    for value in HOSTILE:
        run_id = store.client.create_run(experiment_id).info.run_id
        with closing(sqlite3.connect("mlflow.db")) as database:
            for key in TAGS:
                database.execute("insert or replace into tags values (?, ?, ?)", (key, value, run_id))
            for key in PARAMS:
                database.execute("insert into params (key, value, run_uuid) values (?, ?, ?)", (key, value, run_id))
            database.commit()
        made.append(run_id)
    for number in (1e300, -1e300, float("inf"), float("-inf"), float("nan"), 2.0, -0.5, 1e12):
        run_id = store.client.create_run(experiment_id).info.run_id
        for key in METRICS:
            store.client.log_metric(run_id, key, number, step=1)
            store.client.log_metric(run_id, key, number, step=2)
        made.append(run_id)
    for moment in (0, -1, -(10**15), 10**15, 2**62, -(2**62)):
        run_id = store.client.create_run(experiment_id).info.run_id
        with closing(sqlite3.connect("mlflow.db")) as database:
            database.execute(
                "update runs set start_time = ?, end_time = ? where run_uuid = ?", (moment, -moment, run_id)
            )
            database.commit()
        made.append(run_id)
    return made


def test_no_strange_record_ends_a_list_or_hides_another(tl, store: Store, strange: list[str]) -> None:
    with recorder(store) as record:
        record(epoch(1, 5))
    for command in (("runs",), ("runs", "--limit", "0"), ("runs", "--sort", "val"), ("runs", "--sort", "time"),
                    ("runs", "--since", "2d"), ("runs", "diff", "latest", *strange[:20:7]), ("runs", "diff", *strange[20:]),
                    ("runs", "close")):  # fmt: skip
        done = tl(*command)
        assert done.code == 0, (command, done.err)
    listed = json.loads(tl("runs", "--json").out)
    assert {run["run_id"] for run in listed} == {*strange, record.run_id}
    for run in listed:
        assert run["val_accuracy"] is None or 0 <= run["val_accuracy"] <= 1 or run["run_id"] in strange
        assert run["seconds"] >= 0
    assert store.find("latest")
    for run_id in strange[-14:]:
        drawn = tl("plot", "--terminal", run_id)
        assert drawn.code in (0, 2), drawn.err


def test_a_run_before_1970_passes_a_list_without_filters(tl, store: Store) -> None:
    run_id = store.client.create_run(store.experiment("tl"), start_time=-86_400_000, run_name="old").info.run_id
    assert [run["run_id"] for run in json.loads(tl("runs", "--json").out)] == [run_id]
    assert "old" in tl("runs").out
    assert json.loads(tl("runs", "--json", "--since", "2d").out) == []


def test_no_run_ends_before_it_starts_where_the_clock_was_set_back(store: Store) -> None:
    with recorder(store) as record:
        later = store.client.get_run(record.run_id).info.start_time + 3_600_000
        with closing(sqlite3.connect("mlflow.db")) as database:
            database.execute("update runs set start_time = ? where run_uuid = ?", (later, record.run_id))
            database.commit()
    info = store.client.get_run(record.run_id).info
    assert (info.status, info.start_time, info.end_time) == ("FINISHED", later, later)


def test_the_drivers_own_words_are_the_reason() -> None:
    from sqlalchemy import create_engine, text
    from sqlalchemy.exc import OperationalError

    engine = create_engine("sqlite://")
    with pytest.raises(OperationalError) as missing, engine.connect() as connection:
        connection.execute(text("select * from runs"))
    autoflush = "(raised as a result of Query-invoked autoflush; consider using a session.no_autoflush block)\n"
    for error in (missing.value, mlflow.MlflowException(autoflush + str(missing.value))):
        assert reason(error) == "no such table: runs; the database has been removed or reset"
    with engine.connect() as connection:
        connection.execute(text("create table t (x)"))
        connection.execute(text("pragma max_page_count = 2"))
        with pytest.raises(OperationalError) as full:
            connection.execute(text("insert into t values (zeroblob(90000))"))
    assert reason(mlflow.MlflowException(autoflush + str(full.value))).startswith("database or disk is full; free ")


def test_a_database_that_is_away_is_said_in_the_drivers_words(store: Store, workplace: Path) -> None:
    with closing(sqlite3.connect("mlflow.db")) as database:
        database.execute("drop table tags")
        database.execute("drop table runs")
        database.commit()
    with pytest.raises(TrackingError, match="no such table.*removed or reset"):
        store.runs()


@pytest.mark.parametrize("is_reset", [False, True])
def test_a_run_whose_database_was_removed_is_recorded_again_from_its_folder(
    is_reset: bool, tl, colours: Path, workplace: Path, ready_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tl_cli.tracking import recorder as recording

    started = recording.Recorder.log_start

    def and_then_lost(self, *arguments) -> None:
        started(self, *arguments)
        Path("mlflow.db").unlink()
        if is_reset:
            Path("mlflow.db").write_bytes(ready_database.read_bytes())

    options = ("train", "timm/test_resnet", "--weights", "none", "--data", colours, "--epochs", "2", "--freeze-epochs", "1",
               "--input-size", "32", "--batch-size", "16", "--no-probe", "--experiment", "mine", "--tag", "k=v")  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(recording.Recorder, "log_start", and_then_lost)
        trained = tl(*options, "--run-name", "lost")
    assert trained.code == 0, trained.err
    assert "is recorded" not in trained.out
    assert "not recorded" in trained.out
    assert "tl runs sync" in trained.err
    warnings = trained.err.splitlines()
    assert len(warnings) == len(set(warnings))
    assert list(Path("mlruns").glob("*/*/state/best/model.json"))
    (state,) = Path("mlruns").glob("*/*/state")
    assert checkpoints(state)
    # Processes of their own: this one has the old database open.
    from tests.support.processes import said_by

    code, said = said_by(workplace, "runs", "sync")
    assert (code, "recorded again" in said) == (0, True), said
    code, said = said_by(workplace, "runs", "sync")
    assert (code, "nothing left to sync" in said) == (0, True), said
    # Under its own name MLflow would read the old one.
    shutil.copy("mlflow.db", "seen.db")
    client = mlflow.MlflowClient(f"sqlite:///{workplace}/seen.db")
    (run,) = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    (state,) = Path("mlruns").glob("*/*/state")
    assert checkpoints(state) == []
    assert (run.info.run_id, run.info.experiment_id) == (state.parts[2], state.parts[1])
    assert (run.info.run_name, run.info.status, run.data.tags["k"]) == ("lost", "FINISHED", "v")
    assert run.data.params["epochs"] == "2"
    assert len(run.inputs.dataset_inputs) == 3
    assert len(client.get_metric_history(run.info.run_id, "val/accuracy")) == 2
    assert "test/accuracy" in run.data.metrics
    assert len(run.outputs.model_outputs) == 1
    assert "eval/test_logits.npz" in {item.path for item in client.list_artifacts(run.info.run_id, "eval")}
    code, said = said_by(workplace, "eval", "lost")
    assert (code, f"{100 * run.data.metrics['test/accuracy']:.2f}%" in said) == (0, True), said
    # One that was removed on purpose stays so.
    assert said_by(workplace, "runs", "rm", "lost", "--yes")[0] == 0
    code, said = said_by(workplace, "runs", "sync")
    assert "recorded again" not in said


@pytest.fixture
def lost(store: Store, tl, colours: Path) -> Run:
    """A finished run as the store had it, which has nothing of it any more."""
    assert tl("train", "timm/test_resnet", "--weights", "none", "--data", colours, "--epochs", "1", "--freeze-epochs", "0",
              "--input-size", "32", "--batch-size", "16", "--no-probe", "--quiet").code == 0  # fmt: skip
    run = store.find("latest")
    store.delete_for_good(run, [output.model_id for output in run.outputs.model_outputs])
    with closing(sqlite3.connect("mlflow.db")) as database:
        database.execute("delete from inputs")
        database.commit()
    return run


def assert_is_again(run: Run, store: Store) -> None:
    now = store.client.get_run(run.info.run_id)
    assert now.info.status == "FINISHED"
    assert now.data.metrics.items() >= {k: v for k, v in run.data.metrics.items() if "system/" not in k}.items()
    assert {each.dataset.digest for each in now.inputs.dataset_inputs} == {
        each.dataset.digest for each in run.inputs.dataset_inputs
    }
    assert len(now.outputs.model_outputs) == 1


def test_a_run_of_an_earlier_version_is_recorded_again_from_its_card(tl, store: Store, lost: Run) -> None:
    store.state_folder(lost).joinpath("record.jsonl").unlink()
    # Nothing says that it was of this store.
    assert "recorded again" not in tl("runs", "sync").out
    synced = tl("runs", "sync", lost.info.run_id)
    assert (synced.code, "recorded again" in synced.out) == (0, True), synced.err
    assert_is_again(lost, store)


def test_a_call_that_was_interrupted_is_completed_by_the_next(
    tl, store: Store, lost: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise StorageError("the disk is full")

    for method in ("tl_cli.tracking.journal.Journal.leave", "tl_cli.tracking.store.Store.add_run"):
        with monkeypatch.context() as patch:
            patch.setattr(method, fail)
            assert tl("runs", "sync").code == 1
    assert tl("runs", "sync").code == 0
    assert_is_again(lost, store)


def test_a_run_in_a_deleted_experiment_is_not_a_lost_one(tl, store: Store) -> None:
    with recorder(store) as run:
        store.client.log_text(run.run_id, "x", "x.txt")
    store.client.delete_experiment(store.experiment("tl"))
    done = tl("runs", "sync")
    assert (done.code, done.err) == (0, "")

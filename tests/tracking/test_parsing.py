"""No record of another program, and no clock setting, makes a list fail."""

import json
import sqlite3
from contextlib import closing

import pytest

from tests.support.recording import epoch, recorder
from tl_cli.tracking.store import Store

HOSTILE = ("1e400", "-1e400", "nan", "", " ", "x", "9" * 5000, "-1", "0x10", "1_0", "[]", "{}", "٣", "1-2-3", "5-", "a b c",
           "1-" + "9" * 400, "host 99999999999999999999 1", "-0", "1e308")  # fmt: skip
TAGS = ("mlflow.tl.heartbeat", "mlflow.tl.pauses", "mlflow.tl.process", "tl.pid", "tl.host", "tl.version", "tl.data",
        "mlflow.runName", "mlflow.parentRunId", "tl.compares")  # fmt: skip
PARAMS = ("epochs", "freeze_epochs", "unfreeze_stages", "model", "data", "input_size")
METRICS = ("best/val_accuracy", "best/epoch", "test/accuracy", "test/loss", "epoch", "time/train_seconds", "val/accuracy",
           "clean_train/accuracy", "step/loss")  # fmt: skip


@pytest.fixture
def malformed_runs(store: Store) -> list[str]:
    """Runs of other programs, each with one kind of malformed value everywhere."""
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


def test_no_malformed_record_ends_a_list_or_hides_another(tl, store: Store, malformed_runs: list[str]) -> None:
    with recorder(store) as record:
        record(epoch(1, 5))
    for command in (("runs",), ("runs", "--limit", "0"), ("runs", "--sort", "val"), ("runs", "--sort", "time"),
                    ("runs", "--since", "2d"), ("runs", "diff", "latest", *malformed_runs[:20:7]), ("runs", "diff", *malformed_runs[20:]),
                    ("runs", "close")):  # fmt: skip
        done = tl(*command)
        assert done.code == 0, (command, done.err)
    listed = json.loads(tl("runs", "--json").out)
    assert {run["run_id"] for run in listed} == {*malformed_runs, record.run_id}
    for run in listed:
        assert run["val_accuracy"] is None or 0 <= run["val_accuracy"] <= 1 or run["run_id"] in malformed_runs
        assert run["seconds"] >= 0
    assert store.find("latest")
    for run_id in malformed_runs[-14:]:
        drawn = tl("plot", "--terminal", run_id)
        assert drawn.code in (0, 2), drawn.err


def test_a_run_before_1970_passes_a_list_without_filters(tl, store: Store) -> None:
    run_id = store.client.create_run(store.experiment("tl"), start_time=-86_400_000, run_name="old").info.run_id
    assert [run["run_id"] for run in json.loads(tl("runs", "--json").out)] == [run_id]
    assert "old" in tl("runs").out
    assert json.loads(tl("runs", "--json", "--since", "2d").out) == []

"""The sqlite reader against MLflow's own client on the same store, field by field."""

import math
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, ViewType

from tests.support.recording import recorder, save_small_model
from tl_cli.errors import RunNotFoundError, TrackingError
from tl_cli.models import bundle
from tl_cli.tracking.logged_model import Naming, log_model
from tl_cli.tracking.reader import read_history
from tl_cli.tracking.sqlite_reader import SqliteStore, default_uri, open_to_read
from tl_cli.tracking.store import Store, open_store

INFO = ("run_id", "run_name", "experiment_id", "status", "start_time", "end_time", "lifecycle_stage", "artifact_uri")


@pytest.fixture
def client(workplace: Path) -> mlflow.MlflowClient:
    """A store with three experiments, one of them deleted, and runs of every kind."""
    client = mlflow.MlflowClient(f"sqlite:///{workplace}/mlflow.db")
    for name in ("tl", "other", "deleted"):
        experiment = client.create_experiment(name)
        parent = client.create_run(experiment, run_name=f"{name} parent", tags={"tl.compares": "2", "note": "é\n🐕"})
        for number in range(3):
            tags = {"mlflow.parentRunId": parent.info.run_id, "empty": ""}
            run_id = client.create_run(experiment, run_name=f"{name}-{number}", tags=tags, start_time=7).info.run_id
            client.log_param(run_id, "lr", 0.1)
            client.log_param(run_id, "long", "x" * 5000)
            values = [0.5, math.nan, math.inf, -math.inf, 0.25, 0.25]
            points = [Metric("val/accuracy", value, 1000 + step, step) for step, value in enumerate(values)]
            points += [
                Metric("nan", math.nan, 5, 0),
                Metric("inf", math.inf, 5, 0),
                Metric("best/val_accuracy", 0.7, 5, 0),
            ]
            points += [Metric("step/loss", 1 / (step + 1), 900, step) for step in range(40)]
            client.log_batch(run_id, metrics=[*points, Metric("val/accuracy", 0.75, 2000, 2)])
            data = Dataset("digits", f"{number}" * 8, "local", "{}", "{}" if number else None, '{"num_rows": 9}')
            contexts = [InputTag("mlflow.data.context", "validation"), InputTag("tl.digest_scheme", "contents")]
            client.log_inputs(run_id, [DatasetInput(data, contexts), DatasetInput(Dataset("bare", "b", "l", "{}"), [])])
            client.set_terminated(run_id, ("FINISHED", "FAILED", "KILLED")[number])
        removed = client.create_run(experiment, run_name=f"{name} removed", tags={"a": "b"})
        client.delete_run(removed.info.run_id)
    client.delete_experiment(client.get_experiment_by_name("deleted").experiment_id)
    with sqlite3.connect(workplace / "mlflow.db") as connection:
        connection.execute("update runs set end_time = null where name = 'tl-1'")
        connection.execute("update tags set value = null where key = 'empty'")
    return client


def reader() -> SqliteStore:
    store = open_to_read(None)
    assert isinstance(store, SqliteStore)
    return store


def same(left: float, right: float) -> bool:
    return left == right or (math.isnan(left) and math.isnan(right))


def mlflow_runs(client: mlflow.MlflowClient, *, removed: bool) -> list[mlflow.entities.Run]:
    ids = [each.experiment_id for each in client.search_experiments(view_type=ViewType.ACTIVE_ONLY)]
    view = ViewType.DELETED_ONLY if removed else ViewType.ACTIVE_ONLY
    return list(client.search_runs(ids, run_view_type=view, order_by=["attributes.start_time DESC"]))


@pytest.mark.parametrize("removed", [False, True])
def test_runs_are_those_of_mlflows_client_in_its_order(client: mlflow.MlflowClient, removed: bool) -> None:
    expected, actual = mlflow_runs(client, removed=removed), reader().runs(removed=removed)
    assert [run.info.run_id for run in actual] == [run.info.run_id for run in expected]
    assert len(actual) == (2 if removed else 8)
    for mine, theirs in zip(actual, expected, strict=True):
        assert [getattr(mine.info, name) for name in INFO] == [getattr(theirs.info, name) for name in INFO]
        assert list(mine.data.params.items()) == list(theirs.data.params.items())
        assert mine.data.tags == theirs.data.tags
        assert list(mine.data.metrics) == list(theirs.data.metrics)
        assert all(same(mine.data.metrics[key], value) for key, value in theirs.data.metrics.items())
        inputs = {each.dataset.digest: each for each in theirs.inputs.dataset_inputs}
        for context, images in mine.images.items():
            other = inputs[images.digest]
            tags = {tag.key: tag.value for tag in other.tags}
            assert (context, images.scheme) == (tags["mlflow.data.context"], tags["tl.digest_scheme"])
            assert images.profile == other.dataset.profile
        assert len(mine.images) == sum(bool(each.tags) for each in inputs.values())


def test_experiments_are_those_of_mlflows_client(client: mlflow.MlflowClient) -> None:
    expected = {each.name: each.experiment_id for each in client.search_experiments(view_type=ViewType.ACTIVE_ONLY)}
    assert list(reader().experiments().items()) == list(expected.items())
    assert [run.info.run_name for run in reader().runs("other")] == [
        run.info.run_name for run in open_store(None).runs("other")
    ]


def test_histories_are_those_of_mlflows_client(client: mlflow.MlflowClient) -> None:
    for run in mlflow_runs(client, removed=False):
        for key in ("val/accuracy", "nan", "inf", "step/loss", "missing"):
            expected = client.get_metric_history(run.info.run_id, key)
            actual = reader().metric_history(run.info.run_id, key)
            assert [(p.key, p.step, p.timestamp) for p in actual] == [(p.key, p.step, p.timestamp) for p in expected]
            assert all(same(mine.value, theirs.value) for mine, theirs in zip(actual, expected, strict=True))


def test_curves_are_those_read_through_mlflow(client: mlflow.MlflowClient) -> None:
    mine, theirs = reader(), open_store(None)
    for name in ("tl-0", "other-1", "tl parent"):
        actual, expected = (read_history(store, store.find(name)) for store in (mine, theirs))
        assert (actual.losses, actual.epochs, actual.clock) == (expected.losses, expected.epochs, expected.clock)
        assert actual.not_finite == expected.not_finite


@pytest.mark.slow
@pytest.mark.parametrize("name", ["latest", "best", "tl-0", "other parent"])
def test_names_find_the_runs_that_they_find_through_mlflow(client: mlflow.MlflowClient, name: str) -> None:
    assert reader().find(name).info.run_id == open_store(None).find(name).info.run_id


def test_a_name_without_a_run_gets_the_message_of_the_other_reader(client: mlflow.MlflowClient) -> None:
    messages = []
    for store in (reader(), open_store(None)):
        with pytest.raises(RunNotFoundError) as error:
            store.find("tl-9")
        messages.append(str(error.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize("how", ["schema", "no table", "no file", "query", "old files", "quoted"])
def test_a_store_that_it_cannot_read_is_read_through_mlflow(
    how: str, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    uri = None
    with sqlite3.connect(workplace / "mlflow.db") as connection:
        if how == "schema":
            connection.execute("update alembic_version set version_num = 'later'")
        elif how == "no table":
            connection.execute("drop table alembic_version")
    if how == "no file":
        (workplace / "mlflow.db").unlink()
    elif how == "query":
        uri = f"sqlite:///{workplace}/mlflow.db?timeout=3"
    elif how == "quoted":
        uri = f"sqlite:///{workplace}/a b.db"
    elif how == "old files":
        (workplace / "mlruns" / "0").mkdir(parents=True)
        (workplace / "mlruns" / "0" / "meta.yaml").touch()
    try:
        store = open_to_read(uri)
    except TrackingError:
        return  # MLflow's own error message
    assert isinstance(store, Store)


def test_a_failure_of_the_database_is_a_tracking_error(workplace: Path) -> None:
    store = reader()
    (workplace / "mlflow.db").write_bytes(b"not a database" * 100)
    with pytest.raises(TrackingError, match="cannot be used: file is not a database"):
        store.runs()


def test_reading_imports_neither_mlflow_nor_torch() -> None:
    code = "import sys, tl_cli.tracking.sqlite_reader, tl_cli.tracking.listing; print({'mlflow', 'torch'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


@pytest.mark.parametrize("uri", ["", "sqlite:///other.db", "https://user@host.example/mlflow", "mlruns"])
def test_the_default_address_is_that_of_mlflow(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert default_uri() == mlflow.get_tracking_uri()


def test_runs_of_the_old_file_store_are_the_default_as_in_mlflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mlruns" / "0").mkdir(parents=True)
    (tmp_path / "mlruns" / "0" / "meta.yaml").touch()
    assert default_uri() == mlflow.get_tracking_uri()


def test_the_model_of_a_run_is_the_one_that_mlflow_gives(workplace: Path) -> None:
    store = open_store(None)
    with recorder(store) as record:
        ids = [
            log_model(save_small_model(workplace / f"best{number}", epoch=number), Naming("small", {}))
            for number in range(3)
        ]
    run = reader().find(record.run_id)

    def found(name: str = "") -> int:
        folder = reader().model_folder(run, name)
        assert folder == store.model_folder(store.find(record.run_id), name)
        return bundle.read_card(folder).epoch

    assert found() == found(f"runs:/{run.info.run_id}/small") == 2
    store.client.set_tag(record.run_id, "tl.compares", "models")
    with pytest.raises(RunNotFoundError, match="is a comparison and has no model of its own"):
        reader().model_folder(reader().find(record.run_id))
    store.client.delete_tag(record.run_id, "tl.compares")
    assert found(f"models:/{ids[0]}") == 0
    store.client.finalize_logged_model(ids[2], "FAILED")
    assert found() == 1
    store.client.delete_logged_model(ids[1])
    assert found() == 0
    store.client.delete_logged_model(ids[0])
    with pytest.raises(RunNotFoundError, match="has no model"):
        reader().model_folder(run)


def test_a_model_missing_at_its_recorded_location_is_fetched_by_mlflow(workplace: Path) -> None:
    store = open_store(None)
    with recorder(store) as record:
        model_id = log_model(save_small_model(workplace / "best", epoch=1), Naming("small", {}))
    run = reader().find(record.run_id)
    folder = reader().model_folder(run)
    copy = store.state_folder(store.find(record.run_id)) / "best"
    shutil.copytree(folder, copy)
    with sqlite3.connect("mlflow.db") as database:
        database.execute("update logged_models set artifact_location = ? || model_id", (f"{workplace}/gone/",))
    warnings: list[str] = []
    assert reader().model_folder(run, warn=warnings.append) == copy
    assert len(warnings) == 1
    assert "cannot be fetched" in warnings[0]
    assert model_id in str(folder)

import json
import os
import shutil
import socket
import sqlite3
import sys
import threading
from contextlib import closing, suppress
from pathlib import Path

import mlflow
import pytest
from filelock import FileLock

from tests.support.processes import FORKS
from tests.support.recording import recorder, save_small_model
from tl_cli.errors import Interrupted, RunNotFoundError, TrackingError
from tl_cli.models import bundle
from tl_cli.tracking import store as tracking_store
from tl_cli.tracking.logged_model import Naming, log_model
from tl_cli.tracking.store import Store, ending, open_store
from tl_cli.training.config import read_toml
from tl_cli.training.events import LossSampled


def test_a_lock_file_of_another_user_beside_a_database_is_not_needed(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = workplace / "shared"
    elsewhere.mkdir()
    (workplace / "mlflow.db").rename(elsewhere / "mlflow.db")
    lock = elsewhere / ".mlflow.db.lock"
    lock.touch()
    may = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != lock and may(path, mode))
    lock.chmod(0)
    open_store(f"sqlite:///{elsewhere}/mlflow.db")
    assert (workplace / "mlruns" / ".store.lock").exists()


@pytest.mark.parametrize(
    "address",
    ["sqlite:///{folder}", "sqlite:///{folder}/garbage.db", "postgresql+nothing://u:s3cret@h/d", "http://localhost:abc",
     "http://a b", "http://[::1", "http://127.0.0.1:{port}", "http://\x1b[31mh"],
)  # fmt: skip
def test_an_address_that_is_not_a_store_is_a_one_line_error(address: str, workplace: Path) -> None:
    (workplace / "garbage.db").write_bytes(b"no database" * 500)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def greet() -> None:
            with suppress(OSError):
                while True:
                    with listener.accept()[0] as client:
                        client.sendall(b"SSH-2.0-nothing\r\n")

        threading.Thread(target=greet, daemon=True).start()
        uri = address.format(folder=workplace, port=listener.getsockname()[1])
        with pytest.raises(TrackingError) as refused:
            open_store(uri)
    assert len(str(refused.value).splitlines()) == 1
    assert "s3cret" not in str(refused.value)


def test_a_missing_server_is_an_error_without_delay(workplace: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(TrackingError, match=rf"127.0.0.1:{port} does not answer"):
        open_store(f"http://user:secret@127.0.0.1:{port}")


def _first_run(folder: str, number: int) -> None:
    os.chdir(folder)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    mlflow.set_tracking_uri(None)
    # However long the other processes take.
    tracking_store.FileLock = lambda path, timeout: FileLock(path)
    store = open_store(None)
    with recorder(store, run_name=f"run {number}") as made:
        made(LossSampled(1, 1, float(number), 1e-3, 0.0))


@pytest.mark.slow
def test_eight_concurrent_first_runs_on_a_new_store_succeed(tmp_path: Path) -> None:
    processes = [FORKS.Process(target=_first_run, args=(str(tmp_path), number)) for number in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 8
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("tl")
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.info.run_name for run in runs) == [f"run {number}" for number in range(8)]
    assert sorted(run.data.metrics["step/loss"] for run in runs) == list(range(8))
    assert {run.info.status for run in runs} == {"FINISHED"}


@pytest.mark.slow
def test_mlflows_uris_of_models_and_runs_are_accepted(store: Store, tl, train, workplace: Path) -> None:
    assert train("--register", "shelf", "--run-name", "one").code == 0
    assert train("--register", "shelf", "--run-name", "two").code == 0
    one, two = store.find("one"), store.find("two")
    (first,), (second,) = one.model_ids, two.model_ids
    client = mlflow.MlflowClient()
    client.set_registered_model_alias("shelf", "good", "1")
    name = client.get_logged_model(first).name
    expected = {
        "models:/shelf/1": one, "models:/shelf@good": one, "models:/shelf/2": two, "models:/shelf/latest": two,
        f"models:/{first}": one, f"models:/{second}": two, f"runs:/{one.info.run_id}": one,
        f"runs:/{one.info.run_id}/{name}": one, f"runs:/{two.info.run_id[:8]}": two,
    }  # fmt: skip
    for uri, run in expected.items():
        assert store.find(uri).info.run_id == run.info.run_id, uri
        # MLflow's own resolution of the same name, if it accepts it.
        if uri.startswith("models:/"):
            assert mlflow.models.get_model_info(uri).run_id == run.info.run_id
    for uri in ("models:/shelf/9", "models:/shelf@bad", "models:/none/1", "models:/m-0", "runs:/0000", "models:/",
                "runs:/", f"runs:/{one.info.run_id}/other", "models:/a/b/c"):  # fmt: skip
        refused = tl("eval", uri)
        assert refused.code == 2, (uri, refused.err)
        assert len(refused.err.strip().splitlines()) <= 3
    shown = tl("runs", "diff", "models:/shelf/1", f"runs:/{two.info.run_id}")
    assert shown.code == 0, shown.err
    assert tl("eval", "models:/shelf@good").code == 0
    assert train("--weights", "models:/shelf/2", "--run-name", "three").code == 0
    assert second in str(read_toml(store.state_folder(store.find("three")) / "config.toml")["weights"])
    store.client.delete_run(one.info.run_id)
    removed = tl("eval", "models:/shelf/1")
    assert removed.code == 2
    assert "has been removed" in removed.err


def test_the_latest_of_several_models_of_a_run_is_used(store: Store, workplace: Path) -> None:
    with recorder(store) as record:
        folders = [save_small_model(workplace / f"best{number}", epoch=number) for number in range(1, 6)]
        ids = [log_model(folder, Naming("small", {})) for folder in folders]
    run = store.find(record.run_id)
    assert bundle.read_card(store.model_folder(run)).epoch == 5
    for number, model_id in enumerate(ids, 1):
        uri = f"models:/{model_id}"
        assert bundle.read_card(store.model_folder(store.find(uri), uri)).epoch == number


@pytest.mark.slow
def test_a_local_model_is_used_if_its_artifact_store_cannot_be_reached(
    store: Store, tl, train, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train("--run-name", "mine").code == 0
    accuracy = store.find("mine").data.metrics["test/accuracy"]
    with closing(sqlite3.connect("mlflow.db")) as database:
        database.execute("update logged_models set artifact_location = 's3://bucket/' || model_id")
        database.commit()
    for module in ("boto3", "botocore"):
        monkeypatch.setitem(sys.modules, module, None)
    model_id = store.find("mine").model_ids[0]
    for name in ("mine", f"models:/{model_id}"):
        evaluated = tl("eval", name, "--json", "--no-log")
        assert evaluated.code == 0, evaluated.err
        assert "pip install boto3" in evaluated.err
        assert json.loads(evaluated.out)["accuracy"] == pytest.approx(accuracy)
    # Another model of the run is not used instead of the named one.
    with closing(sqlite3.connect("mlflow.db")) as database:
        database.execute("update logged_model_params set param_value = 'other' where param_key = 'weights_sha256'")
        database.commit()
    refused = tl("eval", f"models:/{model_id}")
    assert (refused.code, "pip install boto3" in refused.err) == (1, True), refused.err
    shutil.rmtree(store.state_folder(store.find("mine")) / "best")
    refused = tl("predict", "mine", "x.jpg")
    assert (refused.code, "pip install boto3" in refused.err) == (1, True), refused.err


@pytest.mark.parametrize(
    ("kind", "status"),
    [(None, "FINISHED"), (ValueError, "FAILED"), (KeyboardInterrupt, "KILLED"), (Interrupted, "KILLED")],
)
def test_the_error_that_ended_a_block_gives_the_status(kind: type[BaseException] | None, status: str) -> None:
    assert ending(kind) == status


def test_a_missing_record_is_none_and_other_failures_are_errors(store: Store) -> None:
    assert store.run("0" * 32) is None
    assert store.request(store.client.get_logged_model, "m-0") is None
    with closing(sqlite3.connect("mlflow.db")) as database:
        database.execute("drop table runs")
        database.commit()
    with pytest.raises(TrackingError, match="no such table"):
        store.run("0" * 32)


def test_a_run_is_read_again_until_it_is_removed(store: Store) -> None:
    with recorder(store) as record:
        before = store.find(record.run_id)
    (now,) = store.reload([before])
    assert (before.info.status, now.info.status) == ("RUNNING", "FINISHED")
    store.client.delete_run(record.run_id)
    assert store.find_removed(record.run_id).info.run_id == record.run_id
    with pytest.raises(RunNotFoundError, match="has been removed in the meantime"):
        store.reload([now])


def test_runs_of_an_experiment_are_listed_alone(store: Store) -> None:
    for name in ("one", "two"):
        store.client.create_run(store.experiment(name), run_name=name)
    assert {name: [run.info.run_name for run in store.runs(name)] for name in ("one", "two", "three")} == {
        "one": ["one"], "two": ["two"], "three": [],
    }  # fmt: skip
    assert sorted(run.info.run_name for run in store.runs()) == ["one", "two"]
    assert [run.info.run_name for run in store.runs(matching="attributes.run_name = 'two'")] == ["two"]


def test_a_deleted_experiment_is_not_silently_reused(store: Store) -> None:
    store.client.delete_experiment(store.experiment("gone"))
    with pytest.raises(TrackingError, match="the experiment 'gone' was deleted; restore it"):
        store.experiment("gone")


def test_a_database_that_was_replaced_does_not_have_the_run(store: Store, ready_database: Path) -> None:
    with recorder(store) as record:
        pass
    store.check_has_run(record.run_id)
    Path("mlflow.db").unlink()
    Path("mlflow.db").write_bytes(ready_database.read_bytes())
    with pytest.raises(TrackingError, match="replaced by another"):
        store.check_has_run(record.run_id)


def test_a_lost_run_is_created_again_with_its_id(store: Store) -> None:
    experiment_id = store.experiment("tl")
    store.add_run("ab" * 16, experiment_id, "again", 12_000)
    run = store.find("again")
    assert (run.info.run_id, run.info.start_time, run.info.status) == ("ab" * 16, 12_000, "RUNNING")
    store.client.set_tag(run.info.run_id, "key", "value")
    assert store.find("again").data.tags["key"] == "value"
    store.delete_for_good(run, [])
    store.delete_for_good(run, [])  # as after an interruption
    assert store.run(run.info.run_id) is None


def test_a_missing_artifact_is_none(store: Store) -> None:
    with recorder(store) as record:
        store.client.log_text(record.run_id, "hello", "a/b.txt")
    run = store.find(record.run_id)
    assert store.artifact(run, "a/b.txt").read_text() == "hello"
    assert store.artifact(run, "a/c.txt") is None


def test_a_comparison_has_no_model(store: Store) -> None:
    store.client.create_run(store.experiment("tl"), run_name="both", tags={"tl.compares": "models"})
    with pytest.raises(RunNotFoundError, match="is a comparison and has no model of its own; tl compare "):
        store.model_folder(store.find("both"))

"""Files of a run on the disk: a finished run has no checkpoints, and its weights are stored once."""

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import Metric

from tests.support.commands import Result
from tests.support.recording import recorder, save_small_model, use_project
from tl_cli.errors import StorageError
from tl_cli.models.bundle import WEIGHTS_FILE
from tl_cli.tracking.journal import JOURNAL, Item, Journal
from tl_cli.tracking.logged_model import Naming
from tl_cli.tracking.recorded import Run
from tl_cli.tracking.removal import files_of
from tl_cli.tracking.store import Store, open_store
from tl_cli.tracking.sync import Synced, find_missing, record_items, sync
from tl_cli.training.state import checkpoints

TRAIN = ("train", "timm/test_resnet", "--weights", "none", "--input-size", "32", "--epochs", "2", "--freeze-epochs", "1",
         "--batch-size", "12", "--no-probe", "--quiet", "--data")  # fmt: skip


def state() -> Path:
    (folder,) = Path("mlruns").glob("*/*/state")
    return folder


def on_disk(root: Path) -> int:
    """Return the bytes of all files, counting hard links once."""
    stats = [path.stat() for path in root.rglob("*") if path.is_file()]
    return sum({found.st_ino: found.st_size for found in stats}.values())


@pytest.mark.slow
def test_a_finished_run_keeps_its_model_once_and_no_checkpoint(tl, workplace: Path, colours: Path) -> None:
    assert tl(*TRAIN, colours).code == 0
    assert checkpoints(state()) == []
    own, logged = (next(root.rglob(WEIGHTS_FILE)) for root in (state(), Path("mlruns/1/models")))
    assert own.samefile(logged)
    # Weights, figures and the package in the logged model, without a second copy of the weights.
    weights = own.stat().st_size
    rest = sum(path.stat().st_size for path in Path("mlruns").rglob("*") if path.is_file()) - 2 * weights
    assert on_disk(Path("mlruns")) == weights + rest
    store = open_store(None)
    assert weights < files_of(store, store.find("latest")).size() < 2 * weights + rest
    # Uses of a finished run.
    refused: Result = tl("train", "--resume", "latest")
    assert refused.code == 2
    assert "is complete" in refused.err
    assert tl("eval", "latest", "--json").code == 0
    picture = next((colours / "test" / "red").iterdir())
    by_run = json.loads(tl("predict", "latest", picture, "--format", "jsonl").out)
    # The two hard links of the weights are independent.
    shutil.rmtree("mlruns/1/models")
    by_folder = json.loads(tl("predict", state() / "best", picture, "--format", "jsonl").out)
    assert by_folder == by_run


@pytest.mark.slow
def test_a_run_that_failed_keeps_its_checkpoints_until_it_is_finished(
    tl, workplace: Path, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tl_cli.api import training_run as fitting

    fit = fitting.fit

    def fit_and_fail(*arguments):
        fit(*arguments)
        raise StorageError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(fitting, "fit", fit_and_fail)
        assert tl(*TRAIN, colours).code == 1
    kept = checkpoints(state())
    assert len(kept) == 2
    copies = [(path, path.read_bytes()) for path in kept]
    assert tl("runs", "sync", "latest").code == 0
    assert checkpoints(state()) == kept
    assert tl("train", "--resume", "latest").code == 0
    assert checkpoints(state()) == []
    # Checkpoints left by an earlier version are removed by the next sync.
    for path, data in copies:
        path.write_bytes(data)
    assert tl("runs", "sync", "latest").code == 0
    assert checkpoints(state()) == []


def test_a_copy_of_a_project_shares_no_file_with_its_original(
    tl, workplace: Path, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tl(*TRAIN, colours).code == 0
    copy = workplace.with_name("copy")
    shutil.copytree(Path("mlruns"), copy / "mlruns")
    shutil.copy("mlflow.db", copy)
    use_project(copy, monkeypatch)
    assert tl("runs", "sync", "latest").code == 0
    of_both = [{path.stat().st_ino for path in root.rglob(WEIGHTS_FILE)} for root in (workplace / "mlruns", copy)]
    assert [len(inodes) for inodes in of_both] == [1, 2]
    assert not of_both[0] & of_both[1]


def test_records_that_a_store_refuses_are_reported_once_and_block_nothing(store: Store) -> None:
    with recorder(store) as record:
        store.client.log_param(record.run_id, "epochs", "4")
        with Journal(record.folder / JOURNAL) as journal:
            journal.add_items(
                [
                    Item("param", "epochs", "5"),
                    Item("data", str(record.folder / "card.json"), ""),
                    Item("model", str(record.folder), Naming("m", {}).to_json()),
                    Item("tag", "lone \ud800", "x"),
                    Item("tag", "late", "but there"),
                ]
            )
    found = sync(store, store.client.get_run(record.run_id))
    assert found.pieces == 1
    assert [each.split(" ")[1] for each in found.refused] == ["param", "data", "model", "tag"]
    run = store.client.get_run(record.run_id)
    assert (run.data.tags["late"], run.data.params["epochs"]) == ("but there", "4")
    assert sync(store, run) == Synced(0, 0, None)


@pytest.mark.slow
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
    # New processes, as this one has the old database open.
    from tests.support.processes import run_in

    code, output = run_in(workplace, "runs", "sync")
    assert (code, "recorded again" in output) == (0, True), output
    code, output = run_in(workplace, "runs", "sync")
    assert (code, "nothing left to sync" in output) == (0, True), output
    # Under the original name, MLflow would read the old database.
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
    code, output = run_in(workplace, "eval", "lost")
    assert (code, f"{100 * run.data.metrics['test/accuracy']:.2f}%" in output) == (0, True), output
    # A run that was removed on purpose stays removed.
    assert run_in(workplace, "runs", "rm", "lost", "--yes")[0] == 0
    code, output = run_in(workplace, "runs", "sync")
    assert "recorded again" not in output


@pytest.fixture
def lost(store: Store, tl, colours: Path) -> Run:
    """A finished run that its store has lost."""
    assert tl("train", "timm/test_resnet", "--weights", "none", "--data", colours, "--epochs", "1", "--freeze-epochs", "0",
              "--input-size", "32", "--batch-size", "16", "--no-probe", "--quiet").code == 0  # fmt: skip
    run = store.find("latest")
    store.delete_for_good(run, run.model_ids)
    with closing(sqlite3.connect("mlflow.db")) as database:
        database.execute("delete from inputs")
        database.commit()
    return run


def assert_is_again(run: Run, store: Store) -> None:
    now = store.find(run.info.run_id)
    assert now.info.status == "FINISHED"
    assert now.data.metrics.items() >= {k: v for k, v in run.data.metrics.items() if "system/" not in k}.items()
    assert now.images == run.images
    assert len(now.model_ids) == 1


@pytest.mark.slow
def test_a_run_of_an_earlier_version_is_recorded_again_from_its_card(tl, store: Store, lost: Run) -> None:
    store.state_folder(lost).joinpath("record.jsonl").unlink()
    # No file records that the run was in this store.
    assert "recorded again" not in tl("runs", "sync").out
    synced = tl("runs", "sync", lost.info.run_id)
    assert (synced.code, "recorded again" in synced.out) == (0, True), synced.err
    assert_is_again(lost, store)


@pytest.mark.slow
def test_an_interrupted_sync_is_completed_by_the_next(
    tl, store: Store, lost: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise StorageError("the disk is full")

    for method in ("tl_cli.tracking.journal.Journal.add_items", "tl_cli.tracking.store.Store.add_run"):
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


def test_settings_tags_and_files_are_recorded_and_missing_files_are_skipped(store: Store, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with recorder(store) as record:
        work = [
            Item("param", "lr", "0.1"),
            Item("tag", "key", "value"),
            Item("file", str(tmp_path / "a.txt"), "folder"),
            Item("file", str(tmp_path / "gone.txt"), ""),
            Item("model", str(tmp_path / "gone"), Naming("m", {}).to_json()),
        ]
        assert record_items(store, record.run_id, work) is None
    run = store.find(record.run_id)
    assert (run.data.params["lr"], run.data.tags["key"]) == ("0.1", "value")
    assert [item.path for item in store.client.list_artifacts(run.info.run_id, "folder")] == ["folder/a.txt"]
    assert run.model_ids == ()


@pytest.mark.parametrize("status", ["RUNNING", "FINISHED"])
def test_recording_a_model_later_keeps_the_status_of_its_run(store: Store, tmp_path: Path, status: str) -> None:
    run_id = store.client.create_run(store.experiment("tl")).info.run_id
    store.client.set_terminated(run_id, status)
    folder = save_small_model(tmp_path / "best")
    model_id = record_items(store, run_id, [Item("model", str(folder), Naming("m", {}).to_json())])
    run = store.run(run_id)
    assert (run.info.status, run.model_ids) == (status, (model_id,))


def test_only_points_that_the_store_lacks_are_missing(store: Store) -> None:
    run_id = store.client.create_run(store.experiment("tl")).info.run_id
    known = [Metric("a", 1.0, 100, 1), Metric("b", 1.0, 100, 0)]
    store.client.log_batch(run_id, metrics=known)
    # Points with a step are equal by their step, results by their time.
    later = [Metric("a", 9.0, 900, 1), Metric("a", 1.0, 100, 2), Metric("b", 1.0, 100, 0), Metric("b", 2.0, 200, 0)]
    assert find_missing(store, run_id, later) == [later[1], later[3]]

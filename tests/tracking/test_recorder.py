import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import suppress
from pathlib import Path

import mlflow
import numpy as np
import pytest
from mlflow.exceptions import MlflowException
from mlflow.utils.logging_utils import enable_logging

from tests.support.commands import Result
from tests.support.records import epoch, recorder
from tests.support.training import SMALL, plan_for
from tl_cli.contract import DataSpec, ModelCard
from tl_cli.errors import Interrupted, RunNotFoundError, TrackingError
from tl_cli.models import bundle
from tl_cli.models.zoo import registry
from tl_cli.tracking import recorder as run
from tl_cli.tracking.journal import JOURNAL, Journal, Left, read
from tl_cli.tracking.logged_model import Naming, log_model
from tl_cli.tracking.reader import read_history
from tl_cli.tracking.recorder import Recorder
from tl_cli.tracking.store import Store, open_store
from tl_cli.tracking.sync import Synced, sync
from tl_cli.training.events import LossSampled, notify_all
from tl_cli.training.fit import fit
from tl_cli.training.plan import new_state
from tl_cli.training.state import Every, Saver


@pytest.mark.parametrize(
    ("error", "status"),
    [(None, "FINISHED"), (ValueError("x"), "FAILED"), (Interrupted(15), "KILLED"), (KeyboardInterrupt(), "KILLED")],
)
def test_how_a_run_ended_follows_from_how_its_block_was_left(store: Store, error, status: str) -> None:
    record = recorder(store)
    try:
        with record:
            if error:
                raise error
    except BaseException as caught:
        assert caught is error  # noqa: PT017
    assert store.client.get_run(record.run_id).info.status == status


def test_every_point_is_recorded_under_its_step(store: Store) -> None:
    with recorder(store) as record:
        for step in range(1, 2501):
            record(LossSampled(step, 1, 1 / step, 1e-3, 0.0))
        record(epoch(1, 2500))
    history = read_history(store, store.find(record.run_id))
    assert history.losses == [(step, pytest.approx(1 / step)) for step in range(1, 2501)]
    (point,) = history.epochs
    assert (point.epoch, point.step, point.train_loss, point.val_accuracy, point.lr_backbone) == (1, 2500, 0.5, 0.7, 0)
    assert record.warnings == []


def test_many_points_are_written_to_the_journal_at_once_but_none_waits_long(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "_FLUSH_EVERY_S", 1e6)
    clock = Clock()
    sizes = set()
    with recorder(store, clock=clock) as record:
        journal = record.folder / JOURNAL
        for step in range(1, 20_001):
            clock.now += 0.001
            record(LossSampled(step, 1, 1.0, 1e-3, 0.0))
            sizes.add(journal.stat().st_size)
        # 20 seconds, four times a second.
        assert 70 < len(sizes) < 90
        record.settle()
        clock.now += 0.3
        record(LossSampled(20_001, 1, 1.0, 1e-3, 0.0))
        assert len(read(journal, record.run_id).points) == 20_001


class Clock:
    """Time that stands still between the test's own steps."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


def test_what_a_checkpoint_covers_is_in_the_journal_before_it(
    store: Store, odd_pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No point is written for its age.
    monkeypatch.setattr(run, "_SETTLE_EVERY_S", float("inf"))
    monkeypatch.setattr(run, "_FLUSH_EVERY_S", 1e6)
    plan = plan_for(odd_pictures, model=SMALL, epochs=2, freeze_epochs=1, batch_size=8, log_every=1)
    state = new_state(plan)
    covered: list[tuple[int, set[int], set[int]]] = []
    with recorder(store) as record:

        def settle() -> None:
            record.settle()
            points = read(record.folder / JOURNAL, record.run_id).points
            steps = {key: {point.step for point in points if point.key == key} for key in ("step/loss", "val/loss")}
            covered.append((state.step, steps["step/loss"], steps["val/loss"]))

        saver = Saver(record.folder, state, plan.card(), Every(steps=2), settle)
        fit(plan, state, notify_all(record, saver))
    # Epochs end at steps 6 and 12; one checkpoint is written before an epoch's last step counts as its end, one after.
    assert covered == [
        (2, {1, 2}, set()),
        (4, {1, 2, 3, 4}, set()),
        (6, {1, 2, 3, 4, 5, 6}, set()),
        (6, {1, 2, 3, 4, 5, 6}, {6}),
        (8, set(range(1, 9)), {6}),
        (10, set(range(1, 11)), {6}),
        (12, set(range(1, 13)), {6}),
        (12, set(range(1, 13)), {6, 12}),
    ]


def test_a_resumed_run_records_no_point_twice(store: Store) -> None:
    with recorder(store) as first:
        for step in range(1, 8):
            first(LossSampled(step, 1, float(step), 1e-3, 0.0))
        first(epoch(1, 5))
    with recorder(store, run_id=first.run_id) as second:
        for step in range(6, 11):
            second(LossSampled(step, 2, float(step), 1e-3, 0.0))
        second(epoch(2, 10))
    assert second.run_id == first.run_id
    points = store.client.get_metric_history(first.run_id, "step/loss")
    assert sorted(point.step for point in points) == list(range(1, 11))
    assert [point.epoch for point in read_history(store, store.find(first.run_id)).epochs] == [1, 2]
    assert store.client.get_run(first.run_id).info.status == "FINISHED"


def test_a_store_that_stops_answering_is_a_warning(store: Store, workplace: Path) -> None:
    import sqlite3

    with recorder(store) as record:
        connection = sqlite3.connect(workplace / "mlflow.db")
        connection.execute("DROP TABLE metrics")
        connection.commit()
        record(epoch(1, 5))
    assert any("mlflow.db failed" in warning for warning in record.warnings)
    assert any("tl runs sync" in warning for warning in record.warnings)


def test_a_record_that_cannot_be_opened_can_be_opened_later(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with recorder(store) as first:
        first(LossSampled(1, 1, 0.5, 1e-3, 0.0))

    def away(*arguments: object) -> None:
        raise MlflowException("500")

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "get_metric_history", away)
        with pytest.raises(TrackingError, match="500"):
            recorder(store, run_id=first.run_id).__enter__()
    assert store.client.get_run(first.run_id).info.status == "FAILED"
    with recorder(store, run_id=first.run_id) as again:
        again(LossSampled(2, 1, 0.5, 1e-3, 0.0))
    assert store.client.get_run(first.run_id).info.status == "FINISHED"


def test_what_was_left_is_done_at_the_end_where_the_store_is_back(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_tag = mlflow.MlflowClient.set_tag
    with recorder(store) as record:
        # Whatever a store answers, and whatever error its client makes of that.
        monkeypatch.setattr(mlflow.MlflowClient, "set_tag", lambda *arguments: {}["nonsense"])
        record._set_note("hello")
        monkeypatch.setattr(mlflow.MlflowClient, "set_tag", set_tag)
        assert len(record.warnings) == 1
    assert len(record.warnings) == 1
    assert store.client.get_run(record.run_id).data.tags["mlflow.note.content"] == "hello"
    assert read(record.folder / JOURNAL, record.run_id).left == []


def test_what_a_store_will_never_take_is_said_once_and_holds_nothing_up(store: Store) -> None:
    with recorder(store) as record:
        store.client.log_param(record.run_id, "epochs", "4")
        with Journal(record.folder / JOURNAL) as journal:
            journal.leave(
                [
                    Left("param", "epochs", "5"),
                    Left("data", str(record.folder / "card.json"), ""),
                    Left("model", str(record.folder), Naming("m", {}).to_json()),
                    Left("tag", "lone \ud800", "x"),
                    Left("tag", "late", "but there"),
                ]
            )
    found = sync(store, store.client.get_run(record.run_id))
    assert found.pieces == 1
    assert [each.split(" ")[1] for each in found.refused] == ["param", "data", "model", "tag"]
    run = store.client.get_run(record.run_id)
    assert (run.data.tags["late"], run.data.params["epochs"]) == ("but there", "4")
    assert sync(store, run) == Synced(0, 0, None)


def test_a_model_is_recorded_once_and_again_where_it_was_deleted(
    store: Store, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    enable_logging()  # as MLflow's own autologging does
    made = registry.create("timm/test_resnet", 2, weights="none", input_size=32)
    bundle.save(
        tmp_path / "best",
        made.model,
        ModelCard(
            architecture=made.name, head=made.head, classes=("a", "b"), preprocessing=made.preprocessing,
            weights=made.weights, data=DataSpec(source="/nowhere", layout="classes"), recipe="default", epoch=1,
        ),
    )  # fmt: skip
    naming = Naming("small", {"epochs": "1"}, "shelf")
    with recorder(store) as record:
        first, second = (log_model(tmp_path / "best", naming) for _ in range(2))
        assert first == second
        assert len(store.client.search_model_versions("name='shelf'")) == 1
        store.client.delete_logged_model(first)
        assert log_model(tmp_path / "best", naming) != first
    assert record.warnings == []
    assert "registered model" not in capfd.readouterr().err


def test_anothers_lock_beside_a_database_is_not_needed(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_an_address_that_is_no_store_is_said_in_a_line(address: str, workplace: Path) -> None:
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


def test_runs_are_found_by_what_people_type(store: Store) -> None:
    with recorder(store) as one:
        pass
    with recorder(store) as two:
        pass
    assert store.find("latest").info.run_id == two.run_id
    assert store.find(one.run_id[:6]).info.run_id == one.run_id
    with pytest.raises(RunNotFoundError, match="2 runs are called 'r'"):
        store.find("r")
    with pytest.raises(RunNotFoundError, match="no run is called 'zzzz'"):
        store.find("zzzz")


def test_a_server_that_is_not_there_is_said_at_once(workplace: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(TrackingError, match=rf"127.0.0.1:{port} does not answer"):
        open_store(f"http://user:secret@127.0.0.1:{port}")


def test_secrets_are_neither_said_nor_recorded(tl, colours: Path, workplace: Path) -> None:
    trained = tl("train", "timm/test_resnet", "--weights", "none", "--data", colours, "--epochs", "1", "--freeze-epochs", "1",
                 "--input-size", "32", "--tag", "where=https://me:secret@host/?key=hidden")  # fmt: skip
    assert trained.code == 0, trained.err
    run = open_store(None).find("latest")
    recorded = {key: value for key, value in run.data.tags.items() if key != "where"}
    assert "secret" not in str(recorded)
    assert "hidden" not in str(recorded)
    refused: Result = tl("runs", "--tracking-uri", "http://me:secret@127.0.0.1:9/x?token=hidden")
    assert refused.code == 1
    assert "secret" not in refused.out + refused.err
    assert "hidden" not in refused.out + refused.err


def test_a_recorded_model_works_where_tl_is_not_installed(tl, colours: Path, workplace: Path) -> None:
    trained: Result = tl(
        "train", "shufflenet_v2_x0_5", "--weights", "none", "--data", colours, "--epochs", "2", "--freeze-epochs", "1",
        "--input-size", "32", "--tag", "who=me", "--register", "colours",
    )  # fmt: skip
    assert trained.code == 0, trained.err
    assert "registered model" not in trained.out + trained.err
    run = open_store(None).find("latest")
    model_id = run.outputs.model_outputs[0].model_id
    script = textwrap.dedent(f"""
        import base64, importlib.util, sys
        # The checkout is neither in the path nor found by an editable installation.
        sys.path = [p for p in sys.path if not __import__("os").path.exists(__import__("os").path.join(p or ".", "tl_cli"))]
        assert importlib.util.find_spec("tl_cli") is None
        import mlflow, pandas as pd
        mlflow.set_tracking_uri("sqlite:///{workplace}/mlflow.db")
        model = mlflow.pyfunc.load_model("models:/{model_id}")
        raw = [open("{colours}/test/" + name + "/000.png", "rb").read() for name in ("blue", "red")]
        for column in (raw, [base64.b64encode(data).decode() for data in raw]):
            answer = model.predict(pd.DataFrame({{"image": column}}))
            print(answer.to_json(orient="records"))
        import tl_cli
        assert "site-packages" not in tl_cli.__file__ and "{Path(__file__).parents[2]}" not in tl_cli.__file__
    """)
    environment = {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=workplace, env={**__import__("os").environ, **environment},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    import json

    by_bytes, by_base64 = (json.loads(line) for line in done.stdout.splitlines())
    assert by_bytes == by_base64
    for row in by_bytes:
        shares = {name: row[name] for name in ("blue", "green", "red")}
        assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
        assert row["label"] == max(shares, key=shares.get)
        assert row["probability"] == pytest.approx(max(shares.values()))
    artifacts = Path(mlflow.artifacts.download_artifacts(f"models:/{model_id}"))
    assert not [path for path in artifacts.rglob("*") if path.suffix in (".pkl", ".pth", ".pt", ".cloudpickle")]
    assert mlflow.MlflowClient().get_registered_model("colours").name == "colours"


def test_the_record_tells_the_whole_story(tl, colours: Path, workplace: Path) -> None:
    trained: Result = tl(
        "train", "shufflenet_v2_x0_5", "--weights", "none", "--data", colours, "--epochs", "2", "--freeze-epochs", "1",
        "--input-size", "32", "--experiment", "trees", "--run-name", "first try", "--tag", "who=me", "--quiet",
    )  # fmt: skip
    assert (trained.code, trained.out) == (0, ""), trained.err
    store = open_store(None)
    run = store.find("first try")
    assert run.info.status == "FINISHED"
    params = run.data.params
    expected = {"model": "shufflenet_v2_x0_5", "freeze_epochs": "1", "epochs": "2", "input_size": "32", "seed": "0"}
    assert {key: params[key] for key in expected} == expected
    assert {"lr", "unfreeze_lr", "optimizer", "schedule", "augment", "precision", "layout", "preprocessing"} <= set(
        params
    )
    metrics = run.data.metrics
    for key in ("step/loss", "train/loss", "train/accuracy", "val/loss", "val/accuracy", "epoch", "lr/backbone", "lr/head",
                "time/images_per_second", "best/val_accuracy", "best/epoch", "test/accuracy", "test/loss",
                "clean_train/accuracy"):  # fmt: skip
        assert key in metrics, key
    assert [(d.dataset.name, d.tags[0].value) for d in run.inputs.dataset_inputs] == [
        (f"{colours.name}-train", "training"), (f"{colours.name}-val", "validation"), (f"{colours.name}-test", "testing"),
    ]  # fmt: skip
    assert run.data.tags["who"] == "me"
    note = run.data.tags["mlflow.note.content"]
    assert "tl train shufflenet_v2_x0_5 --weights none" in note
    assert "test accuracy" in note
    names = {
        item.path
        for folder in (None, "curves", "eval")
        for item in store.client.list_artifacts(run.info.run_id, folder)
    }
    assert {"config.toml", "training_batch.png", "curves/loss_by_step.png", "curves/accuracy_and_loss_by_epoch.png",
            "eval/test_logits.npz"} <= names  # fmt: skip
    with np.load(store.artifact(run, "eval/test_logits.npz"), allow_pickle=False) as kept:
        assert kept["logits"].shape == (18, 3)
        assert kept["ids"][0] == "test/blue/000.png"
        assert metrics["test/accuracy"] == pytest.approx((kept["logits"].argmax(1) == kept["labels"]).mean())
    logged = store.client.get_logged_model(run.outputs.model_outputs[0].model_id)
    assert {metric.key for metric in logged.metrics} >= {"test/accuracy", "best/val_accuracy"}
    # One point each: MLflow draws a bar, and the bars of many runs are a leaderboard.
    for key in ("test/accuracy", "best/val_accuracy", "clean_train/accuracy"):
        assert len(store.client.get_metric_history(run.info.run_id, key)) == 1


def _first_run(folder: str, number: int) -> None:
    import os

    from filelock import FileLock

    from tl_cli.tracking import store as opening

    os.chdir(folder)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    mlflow.set_tracking_uri(None)
    # However long the others take.
    opening.FileLock = lambda path, timeout: FileLock(path)
    store = open_store(None)
    with Recorder(store, experiment_id=store.experiment("tl"), run_name=f"run {number}", warn=print) as made:
        made(LossSampled(1, 1, float(number), 1e-3, 0.0))


def test_eight_first_runs_at_once_on_a_new_store_all_come_through(tmp_path: Path) -> None:
    from tests.support.processes import FORKS

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

import sqlite3
import time
from contextlib import closing
from pathlib import Path

import mlflow
import numpy as np
import pytest
from mlflow.exceptions import MlflowException

from tests.support.commands import Result
from tests.support.recording import epoch, recorder
from tests.support.training import SMALL, plan_for
from tl_cli.errors import Interrupted, TrackingError
from tl_cli.tracking.evaluations import NOTE_TAG
from tl_cli.tracking.journal import JOURNAL, Item, read
from tl_cli.tracking.reader import read_history
from tl_cli.tracking.recorder import Pace
from tl_cli.tracking.store import Store, open_store
from tl_cli.training.events import LossSampled, notify_all
from tl_cli.training.fit import fit
from tl_cli.training.plan import new_state
from tl_cli.training.state import Every, Saver


@pytest.mark.parametrize(
    ("error", "status"),
    [(None, "FINISHED"), (ValueError("x"), "FAILED"), (Interrupted(15), "KILLED"), (KeyboardInterrupt(), "KILLED")],
)
def test_the_status_of_a_run_follows_from_the_error_in_its_block(store: Store, error, status: str) -> None:
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


@pytest.mark.slow
def test_points_are_written_to_the_journal_in_batches_without_long_delay(
    store: Store,
) -> None:
    clock = Clock()
    sizes = set()
    with recorder(store, clock=clock, pace=Pace(send_s=1e6)) as record:
        journal = record.folder / JOURNAL
        for step in range(1, 20_001):
            clock.now += 0.001
            record(LossSampled(step, 1, 1.0, 1e-3, 0.0))
            sizes.add(journal.stat().st_size)
        # 20 seconds, four times a second.
        assert 70 < len(sizes) < 90
        record.write_journal()
        clock.now += 0.3
        record(LossSampled(20_001, 1, 1.0, 1e-3, 0.0))
        assert len(read(journal, record.run_id).points) == 20_001


class Clock:
    """A clock that only advances when the test sets it."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


def test_points_before_a_checkpoint_are_in_the_journal_first(store: Store, odd_pictures: Path) -> None:
    plan = plan_for(odd_pictures, model=SMALL, epochs=2, freeze_epochs=1, batch_size=8, log_every=1)
    state = new_state(plan)
    covered: list[tuple[int, set[int], set[int]]] = []
    # No point is written because of its age.
    with recorder(store, pace=Pace(journal_s=float("inf"), send_s=1e6)) as record:

        def settle() -> None:
            record.write_journal()
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


def test_a_store_that_stops_responding_is_a_warning(store: Store, workplace: Path) -> None:
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


def test_failed_writes_are_repeated_at_the_end_if_the_store_is_back(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_tag = mlflow.MlflowClient.set_tag
    with recorder(store) as record:
        # Any response of a store, and any exception of its client.
        monkeypatch.setattr(mlflow.MlflowClient, "set_tag", lambda *arguments: {}["nonsense"])
        record.log(Item("tag", NOTE_TAG, "hello"))
        monkeypatch.setattr(mlflow.MlflowClient, "set_tag", set_tag)
        assert len(record.warnings) == 1
    assert len(record.warnings) == 1
    assert store.client.get_run(record.run_id).data.tags["mlflow.note.content"] == "hello"
    assert read(record.folder / JOURNAL, record.run_id).items == []


def test_secrets_are_neither_printed_nor_recorded(tl, colours: Path, workplace: Path) -> None:
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


@pytest.mark.slow
def test_the_record_of_a_training_is_complete(tl, colours: Path, workplace: Path) -> None:
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
    inputs = store.client.get_run(run.info.run_id).inputs.dataset_inputs
    assert [(d.dataset.name, d.tags[0].value) for d in inputs] == [
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
    logged = store.client.get_logged_model(run.model_ids[0])
    assert {metric.key for metric in logged.metrics} >= {"test/accuracy", "best/val_accuracy"}
    # One point per metric: MLflow draws a bar, and the bars of many runs are a leaderboard.
    for key in ("test/accuracy", "best/val_accuracy", "clean_train/accuracy"):
        assert len(store.client.get_metric_history(run.info.run_id, key)) == 1


def test_no_run_ends_before_it_starts_if_the_clock_was_set_back(store: Store) -> None:
    with recorder(store) as record:
        later = store.client.get_run(record.run_id).info.start_time + 3_600_000
        with closing(sqlite3.connect("mlflow.db")) as database:
            database.execute("update runs set start_time = ? where run_uuid = ?", (later, record.run_id))
            database.commit()
    info = store.client.get_run(record.run_id).info
    assert (info.status, info.start_time, info.end_time) == ("FINISHED", later, later)

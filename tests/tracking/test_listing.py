import time

import pytest

from tests.support.processes import wait_for
from tests.support.recording import epoch, recorder
from tl_cli.errors import Interrupted
from tl_cli.tracking import listing
from tl_cli.tracking.liveness import HEARTBEAT_TAG
from tl_cli.tracking.recorder import Pace
from tl_cli.tracking.store import Store


@pytest.mark.parametrize(
    ("params", "ends"),
    [
        ({"freeze_epochs": 5, "epochs": 15, "unfreeze_stages": 1}, (5, 15)),
        ({"freeze_epochs": 0, "epochs": 3, "unfreeze_stages": 1}, (0, 3)),
        ({"freeze_epochs": 2, "epochs": 9, "unfreeze_stages": 3}, (2, 4, 6, 9)),
        ({"epochs": 9}, ()),
        ({"freeze_epochs": "x", "epochs": 9, "unfreeze_stages": 0}, ()),
        ({"freeze_epochs": 5, "epochs": 15, "unfreeze_stages": 0}, ()),
    ],
)
def test_phases_are_listed_if_their_settings_are_recorded(store: Store, params, ends) -> None:
    run = store.client.create_run(store.experiment("tl"))
    for name, value in params.items():
        store.client.log_param(run.info.run_id, name, value)
    assert facts(store, run.info.run_id).phase_ends == ends


def facts(store: Store, run_id: str):
    runs = [store.find(run_id)]
    return listing.with_curves(store, runs, listing.facts_of(store, runs))[0]


def test_the_status_of_a_run_is_running_until_it_ends(store: Store) -> None:
    with recorder(store, pace=Pace(send_s=0.05, beat_s=0.0)) as record:
        first = float(store.find(record.run_id).data.tags[HEARTBEAT_TAG])
        assert facts(store, record.run_id).status == "running"
        record(epoch(1, 5))
        wait_for(
            lambda: (
                float(store.find(record.run_id).data.tags[HEARTBEAT_TAG]) > first and facts(store, record.run_id).curve
            ),
            "a heartbeat",
            pause_s=0.2,
        )
        listed = facts(store, record.run_id)
        assert (listed.curve, listed.val_accuracy, listed.best_epoch, listed.epochs) == ((0.7,), 0.7, 1, 1)
    assert facts(store, record.run_id).status == "finished"
    try:
        with recorder(store) as record:
            raise Interrupted(15)
    except Interrupted:
        pass
    assert facts(store, record.run_id).status == "killed"


def test_the_best_run_is_marked_among_runs_with_the_same_validation_images(store: Store) -> None:
    from mlflow.entities import DatasetInput, InputTag

    from tl_cli.contract import Split
    from tl_cli.tracking.evaluations import dataset_of

    ids = []
    for digest, accuracy in (("a", 0.8), ("a", 0.9), ("a", 0.9), ("b", 0.5), (None, 0.99)):
        run_id = store.client.create_run(store.experiment("tl"), run_name=f"{digest}{accuracy}").info.run_id
        store.client.log_metric(run_id, "best/val_accuracy", accuracy)
        if digest:
            data = dataset_of("digits-val", "digits", Split(count=1, digest=digest * 64))
            store.client.log_inputs(run_id, [DatasetInput(data, [InputTag("mlflow.data.context", "validation")])])
        store.client.set_terminated(run_id)
        ids.append(run_id)
        time.sleep(0.005)
    best = {each.run_id for each in listing.facts_of(store, store.runs()) if each.is_best}
    assert best == {ids[1], ids[3]}, "of equal ones the earlier"


def test_images_recorded_by_an_earlier_version_are_not_listed_as_different(store: Store) -> None:
    from tl_cli.contract import DataSpec, Split
    from tl_cli.tracking.evaluations import dataset_inputs

    ids = {}
    for name, digest, scheme in (("old", "a", "lengths"), ("new", "b", "contents"), ("other", "c", "contents")):
        ids[name] = store.client.create_run(store.experiment("tl"), run_name=name).info.run_id
        split = Split(count=1200, digest=digest * 64, scheme=scheme)
        inputs = dataset_inputs(DataSpec(source="/photos", layout="train/test", splits={"train": split}))
        if name == "old":
            inputs = [type(each)(each.dataset, each.tags[:1]) for each in inputs]
        store.client.log_inputs(ids[name], inputs)
        store.client.set_terminated(ids[name])

    def shown(*names: str) -> list[str | None]:
        runs = [store.find(ids[name]) for name in names]
        return list(listing.differences(store, runs)[0].made_with["training images"])

    assert shown("new", "other") == ["b" * 16, "c" * 16]
    earlier = "1,200 (contents not comparable: earlier version)"
    assert shown("old", "new") == [earlier, f"1,200 ({'b' * 16})"]


def test_the_best_epoch_of_a_running_run_counts_epochs_that_were_nan(store: Store) -> None:
    run = store.client.create_run(store.experiment("tl"), run_name="nan")
    for step, value in ((10, float("nan")), (20, 0.5)):
        store.client.log_metric(run.info.run_id, "val/accuracy", value, step=step)
    listed = facts(store, run.info.run_id)
    assert (listed.val_accuracy, listed.best_epoch) == (0.5, 2)

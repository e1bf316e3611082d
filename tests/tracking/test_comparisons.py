import time
from pathlib import Path

from tests.support.processes import wait_for
from tl_cli.tracking.comparisons import CONTENDER_TAG, Parent, trainings_of
from tl_cli.tracking.facts import status_of
from tl_cli.tracking.liveness import HEARTBEAT_TAG
from tl_cli.tracking.store import Store, open_store


def test_complete_trainings_are_grouped_by_model_in_the_order_of_their_seeds(workplace: Path) -> None:
    store = open_store(None)
    experiment = store.experiment("tl")
    parent = store.client.create_run(experiment, run_name="both").info.run_id
    other = store.client.create_run(experiment, run_name="another comparison").info.run_id
    for start, (name, model, status, of) in enumerate(
        (
            ("a0", "a", "FINISHED", parent),
            ("b0", "b", "FAILED", parent),
            ("a1", "a", "FINISHED", parent),
            ("b1", "b", "FINISHED", parent),
            ("c0", "c", "FINISHED", other),
        )
    ):
        tags = {"mlflow.parentRunId": of, CONTENDER_TAG: model}
        run = store.client.create_run(experiment, start_time=start + 1, run_name=name, tags=tags)
        store.client.set_terminated(run.info.run_id, status)
    found = {model: [run.info.run_name for run in runs] for model, runs in trainings_of(store, parent).items()}
    assert found == {"a": ["a0", "a1"], "b": ["b1"]}


def test_a_comparison_records_heartbeats(store: Store) -> None:
    began = time.time()
    with Parent(store, store.experiment("tl"), "both", "tl compare", beat_s=0.02) as parent:
        wait_for(lambda: HEARTBEAT_TAG in store.find("both").data.tags, "a heartbeat")
        # In whole seconds.
        assert began - 1 <= float(store.find("both").data.tags[HEARTBEAT_TAG]) <= time.time() + 1
        assert status_of(store.find(parent.run_id)) == "running"

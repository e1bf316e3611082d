import base64
import json
import re
import time
import zlib
from pathlib import Path

import pytest

from tests.support.processes import wait_for
from tests.support.records import dead_run, epoch, recorder, silent_run
from tl_cli.errors import Interrupted, UsageError
from tl_cli.tracking import listing, overview, removal
from tl_cli.tracking.liveness import HEARTBEAT_TAG, identity
from tl_cli.tracking.store import Store
from tl_cli.training.events import LossSampled


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
def test_phases_are_known_where_their_settings_are_recorded(store: Store, params, ends) -> None:
    run = store.client.create_run(store.experiment("tl"))
    for name, value in params.items():
        store.client.log_param(run.info.run_id, name, value)
    assert facts(store, run.info.run_id).phase_ends == ends


def facts(store: Store, run_id: str):
    runs = [store.find(run_id)]
    return listing.with_curves(store, runs, listing.facts_of(store, runs))[0]


def test_a_run_says_that_it_lives_while_it_does_and_how_it_ended(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tl_cli.tracking.recorder.BEAT_EVERY_S", 0.0)
    monkeypatch.setattr("tl_cli.tracking.recorder._FLUSH_EVERY_S", 0.05)
    with recorder(store) as record:
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
        seen = facts(store, record.run_id)
        assert (seen.curve, seen.val_accuracy, seen.best_epoch, seen.epochs[0]) == ((0.7,), 0.7, 1, 1)
    assert facts(store, record.run_id).status == "finished"
    try:
        with recorder(store) as record:
            raise Interrupted(15)
    except Interrupted:
        pass
    assert facts(store, record.run_id).status == "killed"


def test_a_dead_run_is_closed_at_the_time_when_it_was_last_heard_of(store: Store) -> None:
    beat = round(time.time()) + 100_000  # later than its beginning
    run_id = dead_run(store, beat)
    assert facts(store, run_id).status == "dead"
    removal.close(store, store.find(run_id))
    info = store.find(run_id).info
    assert (info.status, info.end_time) == ("KILLED", beat * 1000)
    with pytest.raises(UsageError, match="has ended already: killed"):
        removal.close(store, store.find(run_id))


def test_a_silent_run_can_be_closed_and_a_running_one_cannot(store: Store) -> None:
    run_id = silent_run(store)
    assert facts(store, run_id).status == "silent"
    removal.close(store, store.find(run_id))
    assert facts(store, run_id).status == "killed"
    with recorder(store) as record:
        for refused in (removal.close, removal.remove):
            with pytest.raises(UsageError, match="is running on .*; stop it first"):
                refused(store, store.find(record.run_id))


def test_the_best_is_told_on_the_same_validation_images_alone(store: Store) -> None:
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


def test_images_of_an_earlier_version_are_not_said_to_be_others(store: Store) -> None:
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


def test_what_a_resumed_run_stood_still_is_no_time_of_its_curves(store: Store) -> None:
    from tl_cli.tracking.reader import read_history

    began_at = time.time()
    with recorder(store) as first:
        first(LossSampled(1, 1, 1.0, 1e-3, 0.0))
    # As if it had ended an hour ago.
    run = store.find(first.run_id)
    ended = run.info.end_time
    with recorder(store, run_id=first.run_id) as second:
        tags = store.find(first.run_id).data.tags
        began, over = (int(part) for part in tags["mlflow.tl.pauses"].split("-"))
        assert began == ended
        assert over >= began
        store.client.set_tag(first.run_id, "mlflow.tl.pauses", f"{began - 3_600_000}-{over}")
        second(LossSampled(2, 1, 1.0, 1e-3, 0.0))
    seconds = dict(read_history(store, store.find(first.run_id)).clock)
    # Without the hour it is what the test took.
    assert seconds[2] - seconds[1] <= time.time() - began_at


def test_removing_takes_a_run_out_of_the_lists_and_purging_off_the_disk(
    tl, colours: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tl_cli.tracking import store as store_module
    from tl_cli.tracking.store import open_store

    for name in ("one", "two"):
        done = tl("train", "shufflenet_v2_x0_5", "--weights", "none", "--data", colours, "--epochs", "1", "--freeze-epochs",
                  "1", "--input-size", "32", "--run-name", name, "--quiet")  # fmt: skip
        assert done.code == 0, done.err
    store = open_store(None)
    one, two = store.find("one"), store.find("two")
    assert removal.files_of(store, one).size() > 1_000_000
    asked = tl("runs", "rm", "one")
    assert (asked.code, "--yes" in asked.err) == (2, True)
    removed = tl("runs", "rm", "one", "--yes")
    assert removed.code == 0, removed.err
    assert "mlflow runs restore" in " ".join(removed.out.split())
    assert [run.info.run_name for run in store.runs()] == ["two"]
    assert "the only run" in store.client.get_experiment(two.info.experiment_id).tags["mlflow.note.content"]
    store.client.restore_run(one.info.run_id)
    # With its model, wherever it is asked for.
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(store_module, "STATE_ROOT", Path("elsewhere"))
        assert (store.model_folder(store.find("one")) / "model.json").exists()
    kept = [*store.artifact_places(two, store.models_of(two)), store.state_folder(two)]
    gone = [*store.artifact_places(one, store.models_of(one)), store.state_folder(one)]
    assert len(kept) == 3
    assert tl("runs", "rm", "one", "--yes").code == 0
    # A run that was removed earlier can be purged by its id or name.
    purged = tl("runs", "rm", "one", "--purge", "--yes")
    assert purged.code == 0, purged.err
    assert re.search(r"is deleted, \d+ MB are free", purged.out)
    assert all(path.exists() for path in kept)
    assert not any(path.exists() for path in gone)
    with pytest.raises(Exception, match="not found"):
        store.client.get_run(one.info.run_id)


def test_a_note_that_a_person_wrote_is_left_alone(store: Store) -> None:
    experiment = store.experiment("tl")
    run = store.client.create_run(experiment, run_name="a | b `c`")
    store.client.log_metric(run.info.run_id, "best/val_accuracy", 0.5)
    overview.refresh_overview(store, experiment)
    tags = store.client.get_experiment(experiment).tags
    first, *table = tags["mlflow.note.content"].splitlines()
    assert first.startswith(r"a \| b \`c\` (")
    assert "50.00% on validation images" in first
    assert len({line.replace(r"\|", "").count("|") for line in table if line}) == 1
    assert tags["best"] == f"{run.info.run_id[:8]}, 50.00%"
    store.client.log_metric(run.info.run_id, "best/val_accuracy", 0.6)
    overview.refresh_overview(store, experiment)
    assert "60.00%" in store.client.get_experiment(experiment).tags["mlflow.note.content"]
    store.client.set_experiment_tag(experiment, "mlflow.note.content", "mine")
    overview.refresh_overview(store, experiment)
    assert store.client.get_experiment(experiment).tags["mlflow.note.content"] == "mine"


def test_the_saved_view_is_what_mlflows_own_pages_read(store: Store) -> None:
    experiment = store.experiment("tl")
    overview.refresh_overview(store, experiment)
    view = json.loads(store.client.get_experiment(experiment).tags[f"mlflow.sharedViewState.{overview.VIEW}"])
    state = json.loads(zlib.decompress(base64.b64decode(view["state"].removeprefix("deflate;"))))
    assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`best/val_accuracy`", False)
    assert "metrics.`test/accuracy`" in state["selectedColumns"]
    assert overview.link_to("http://host/", "7").startswith(
        "http://host/#/experiments/7/runs?viewStateShareKey=tl-best"
    )


def test_a_long_list_of_runs_fits_into_a_note(store: Store) -> None:
    experiment = store.experiment("tl")
    for number in range(60):
        run = store.client.create_run(experiment, run_name=f"{number} " + "x" * 200)
        store.client.log_metric(run.info.run_id, "best/val_accuracy", number / 100)
    overview.refresh_overview(store, experiment)
    note = store.client.get_experiment(experiment).tags["mlflow.note.content"]
    assert len(note) <= 5000
    assert "59.00%" in note.splitlines()[0]


def test_purging_one_run_takes_nothing_else_along(tl, workplace: Path) -> None:
    import mlflow

    from tl_cli.tracking.store import open_store

    store = open_store(None)
    client = store.client
    precious = client.create_experiment("precious")
    kept = client.create_run(precious, run_name="kept")
    (workplace / "keep.txt").write_text("keep")
    client.log_artifact(kept.info.run_id, str(workplace / "keep.txt"))
    client.delete_experiment(precious)
    experiment = store.experiment("tl")
    with mlflow.start_run(experiment_id=experiment, run_name="earlier") as earlier:
        model = mlflow.pyfunc.log_model(name="m", python_model=lambda model_input: model_input, pip_requirements=[])
    client.create_run(experiment, run_name="purged")
    client.set_terminated(store.find("purged").info.run_id)
    assert tl("runs", "rm", "earlier", "--yes").code == 0
    purged = tl("runs", "rm", "purged", "--purge", "--yes")
    assert purged.code == 0, purged.err
    client.restore_experiment(precious)
    assert [item.path for item in client.list_artifacts(kept.info.run_id)] == ["keep.txt"]
    client.restore_run(earlier.info.run_id)
    assert all(place.is_dir() for place in store.artifact_places(earlier, [model.model_id])[1:])
    assert client.get_logged_model(model.model_id).name == "m"


def test_a_registered_model_is_not_purged(tl, workplace: Path) -> None:
    import mlflow

    from tl_cli.tracking.store import open_store

    store = open_store(None)
    with mlflow.start_run(experiment_id=store.experiment("tl"), run_name="served"):
        mlflow.pyfunc.log_model(
            name="m", python_model=lambda model_input: model_input, pip_requirements=[], registered_model_name="prod"
        )
    refused = tl("runs", "rm", "served", "--purge", "--yes")
    assert (refused.code, "prod version 1" in refused.err) == (2, True)


def test_a_run_that_began_again_while_the_question_was_open_stays(store: Store) -> None:
    stopped = store.find(dead_run(store))
    store.client.set_terminated(stopped.info.run_id, "KILLED")
    stopped = store.find(stopped.info.run_id)
    store.client.update_run(stopped.info.run_id, status="RUNNING")
    for key, value in identity().items():
        store.client.set_tag(stopped.info.run_id, key, value)
    for refused in (removal.close, removal.remove):
        with pytest.raises(UsageError, match="is running"):
            refused(store, stopped)
    assert store.find(stopped.info.run_id).info.lifecycle_stage == "active"


def test_a_run_that_cannot_be_told_is_closed_when_it_is_named(store: Store) -> None:
    run = store.client.create_run(store.experiment("tl"), run_name="foreign")
    assert listing.status_of(store.find("foreign")) == "running"
    removal.close(store, store.find("foreign"))
    assert store.client.get_run(run.info.run_id).info.status == "KILLED"


def test_a_comparison_says_that_it_lives(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from tl_cli.tracking import comparisons

    monkeypatch.setattr(comparisons, "BEAT_EVERY_S", 0.02)
    began = time.time()
    with comparisons.Parent(store, store.experiment("tl"), "both", "tl compare") as parent:
        wait_for(lambda: HEARTBEAT_TAG in store.find("both").data.tags, "a heartbeat")
        # In whole seconds.
        assert began - 1 <= float(store.find("both").data.tags[HEARTBEAT_TAG]) <= time.time() + 1
        assert listing.status_of(store.find(parent.run_id)) == "running"


def test_the_best_so_far_of_a_run_that_goes_on_counts_epochs_that_were_no_number(store: Store) -> None:
    run = store.client.create_run(store.experiment("tl"), run_name="nan")
    for step, value in ((10, float("nan")), (20, 0.5)):
        store.client.log_metric(run.info.run_id, "val/accuracy", value, step=step)
    seen = facts(store, run.info.run_id)
    assert (seen.val_accuracy, seen.best_epoch) == (0.5, 2)

import base64
import json
import sqlite3
import zlib
from contextlib import closing
from pathlib import Path

import pytest
from mlflow.entities import DatasetInput, InputTag
from mlflow.exceptions import MlflowException

from tl_cli.contract import Split
from tl_cli.tracking import overview
from tl_cli.tracking.evaluations import dataset_of
from tl_cli.tracking.store import Store


def test_a_note_written_by_a_user_is_not_changed(store: Store) -> None:
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


def test_the_saved_view_has_the_format_of_mlflows_ui(store: Store) -> None:
    experiment = store.experiment("tl")
    overview.refresh_overview(store, experiment)
    view = json.loads(store.client.get_experiment(experiment).tags[f"mlflow.sharedViewState.{overview.VIEW}"])
    state = json.loads(zlib.decompress(base64.b64decode(view["state"].removeprefix("deflate;"))))
    assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`best/val_accuracy`", False)
    assert "metrics.`test/accuracy`" in state["selectedColumns"]
    assert overview.view_url("http://host/", "7").startswith(
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


def test_runs_are_ranked_among_those_with_the_same_validation_images(store: Store) -> None:
    experiment = store.experiment("tl")
    for name, digest, accuracy in (("low", "a", 0.5), ("high", "a", 0.75), ("alone", "b", 0.6)):
        run_id = store.client.create_run(experiment, run_name=name).info.run_id
        points = {
            "best/val_accuracy": accuracy,
            "test/accuracy": accuracy - 0.125,
            "time/train_seconds": 90.0,
            "epoch": 3,
        }
        for key, value in points.items():
            store.client.log_metric(run_id, key, value)
        data = dataset_of("digits-val", "digits", Split(count=1, digest=digest * 64))
        store.client.log_inputs(run_id, [DatasetInput(data, [InputTag("mlflow.data.context", "validation")])])
    overview.refresh_overviews(store, [experiment])
    sentences, *tables = store.client.get_experiment(experiment).tags["mlflow.note.content"].split("\n\n")
    both, alone = sorted(sentences.split("  \n"), key=lambda line: line.startswith("alone"))
    assert both.startswith("high (")
    assert "is the best of 2 with this validation digest on " in both
    assert both.endswith("75.00% on validation images, 62.50% on test images")
    assert "is the only run with this validation digest on " in alone
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for table in tables for line in table.splitlines()]
    ranked = {row[0]: row[4:] for row in rows}
    assert [name for name in ranked if name in ("low", "high")] == ["high", "low"]
    assert ranked["high"] == ["75.00%", "62.50%", "3", "1.5"]


def test_the_note_is_not_changed_if_the_store_cannot_be_written(store: Store, workplace: Path) -> None:
    experiment = store.experiment("tl")
    with closing(sqlite3.connect("mlflow.db")) as database:
        database.execute("drop table experiment_tags")
        database.commit()
    overview.refresh_overviews(store, [experiment, "999"])
    with pytest.raises(MlflowException):
        overview.refresh_overview(store, experiment)

"""Lists of runs are those of MLflow's own client, which recorded them."""

import mlflow
import pytest

from tests.api.conftest import Project
from tl_cli import RunFilter, compare_settings, list_runs, show_run
from tl_cli.errors import UsageError


@pytest.fixture
def client(workplace) -> mlflow.MlflowClient:
    """A store with three ended runs of two experiments."""
    client = mlflow.MlflowClient()
    for name, experiment, model, accuracy, status in (
        ("one", "tl", "resnet18", 0.5, "FINISHED"),
        ("two", "tl", "resnet34", 0.75, "FAILED"),
        ("three", "other", "vgg11", None, "KILLED"),
    ):
        known = client.get_experiment_by_name(experiment)
        experiment_id = known.experiment_id if known else client.create_experiment(experiment)
        run = client.create_run(experiment_id, run_name=name, tags={"team": "a" if name == "one" else "b"})
        client.log_param(run.info.run_id, "model", model)
        client.log_param(run.info.run_id, "data", "digits")
        if accuracy is not None:
            client.log_metric(run.info.run_id, "best/val_accuracy", accuracy)
        client.set_terminated(run.info.run_id, status)
    return client


@pytest.mark.parametrize(
    ("request_", "names"),
    [
        (RunFilter(), ["three", "two", "one"]),
        (RunFilter(reverse=True), ["one", "two", "three"]),
        (RunFilter("resnet"), ["two", "one"]),
        (RunFilter("t*"), ["three", "two"]),
        (RunFilter(model="resnet18"), ["one"]),
        (RunFilter(model="resnet"), []),
        (RunFilter(data="DIG", experiment="other"), ["three"]),
        (RunFilter(status="failed"), ["two"]),
        (RunFilter(tags=("team=b",)), ["three", "two"]),
        (RunFilter(tags=("team", "gone")), []),
        (RunFilter(since_s=-60), []),
        (RunFilter(sort="name"), ["one", "three", "two"]),
        # Without an accuracy a run is last in both directions.
        (RunFilter(sort="val"), ["two", "one", "three"]),
        (RunFilter(sort="val", reverse=True), ["one", "two", "three"]),
        (RunFilter(limit=1), ["three"]),
    ],
)
def test_filters_and_orders(client: mlflow.MlflowClient, request_: RunFilter, names: list[str]) -> None:
    listed = list_runs(request_)
    assert [run.name for run in listed.runs] == names
    assert listed.total == (3 if request_.limit else len(names))
    assert listed.filtered == (listed.total < 3)
    assert [row["name"] for row in listed.to_list()] == names


def test_facts_equal_the_logged_values(client: mlflow.MlflowClient) -> None:
    for facts in list_runs(RunFilter()).runs:
        run = client.get_run(facts.run_id)
        assert facts.status == run.info.status.lower()
        assert facts.started == pytest.approx(run.info.start_time / 1000)
        # Seconds since 1970 as float64 have seven decimals.
        assert facts.seconds == pytest.approx((run.info.end_time - run.info.start_time) / 1000, abs=1e-5)
        assert facts.val_accuracy == run.data.metrics.get("best/val_accuracy")
        assert facts.model == run.data.params["model"]


def test_settings_and_results_that_differ_are_found(client: mlflow.MlflowClient) -> None:
    data = compare_settings(["one", "two"], equal=True).to_dict()
    assert data["settings"] == {"model": ["resnet18", "resnet34"]}
    assert data["results"] == {"best/val_accuracy": [0.5, 0.75]}
    assert data["alike"] == {"data": "digits"}
    assert "alike" not in compare_settings(["one", "two"]).to_dict()


def test_an_unknown_experiment_and_a_single_run_are_refused(client: mlflow.MlflowClient) -> None:
    with pytest.raises(UsageError, match="no experiment is called 'othr'.*Did you mean other"):
        list_runs(RunFilter(experiment="othr"))
    with pytest.raises(UsageError, match="one and one are the run.*tl runs diff"):
        compare_settings(["one", "one"])


def test_a_run_is_shown_with_its_epochs(project: Project) -> None:
    data = show_run("first").to_dict()
    client = mlflow.MlflowClient()
    recorded = client.get_metric_history(project.runs[0].run_id, "val/accuracy")
    assert [epoch["epoch"] for epoch in data["by_epoch"]] == [1, 2]
    assert [epoch["val_accuracy"] for epoch in data["by_epoch"]] == [point.value for point in recorded]
    assert (data["name"], data["epochs"], data["epochs_wanted"]) == ("first", 2, 2)
    parent = client.create_run(client.get_run(project.runs[0].run_id).info.experiment_id, tags={"tl.compares": "x"})
    try:
        with pytest.raises(UsageError, match="is a comparison"):
            show_run(parent.info.run_id)
    finally:
        client.delete_run(parent.info.run_id)

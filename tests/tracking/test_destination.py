"""MLflow's environment variables and URIs: where a new run is recorded, and how runs and models are named."""

import sys
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import Run

from tests.support.recording import TRAIN_SMALL
from tl_cli.tracking.store import Store


def runs_by_experiment(store: Store) -> dict[str, list[Run]]:
    """Return the runs that MLflow's client finds, by experiment."""
    client = mlflow.MlflowClient()
    found = {each.name: client.search_runs([each.experiment_id]) for each in client.search_experiments()}
    return {name: list(runs) for name, runs in found.items() if runs}


@pytest.mark.slow
@pytest.mark.parametrize("variable", ["MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"])
def test_the_experiment_of_the_environment_is_used_unless_a_flag_names_one(
    variable: str, store: Store, train, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = store.client.create_experiment("theirs")
    monkeypatch.setenv(variable, "theirs" if variable.endswith("NAME") else made)
    assert train().code == 0
    assert train("--experiment", "mine").code == 0
    runs_found = runs_by_experiment(store)
    assert {name: len(runs) for name, runs in runs_found.items()} == {"theirs": 1, "mine": 1}
    (run,) = runs_found["theirs"]
    assert (Path("mlruns") / made / run.info.run_id / "state").is_dir()


def test_variables_that_contradict_each_other_are_refused_with_both_values(
    store: Store, train, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = store.client.create_experiment("theirs")
    for name, experiment_id, text in (
        ("others", made, "'others'"),
        (None, "4711", "'4711'"),
    ):
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", name or "")
        monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", experiment_id)
        refused = train()
        assert refused.code == 2
        assert text in refused.err
        assert "unset" in refused.err
    assert runs_by_experiment(store) == {}


def test_a_prepared_run_is_used_by_one_training_only(store: Store, train, monkeypatch: pytest.MonkeyPatch) -> None:
    described = {"mlflow.note.content": "what it is for"}
    experiment = store.client.create_experiment("theirs")
    prepared = store.client.create_run(experiment, run_name="prepared", tags=described).info
    monkeypatch.setenv("MLFLOW_RUN_ID", prepared.run_id)
    refused = train("--experiment", "mine")
    assert refused.code == 2
    assert "'theirs'" in refused.err
    assert "'mine'" in refused.err
    monkeypatch.setenv("MLFLOW_RUN_ID", prepared.run_id)
    assert train().code == 0
    run = store.client.get_run(prepared.run_id)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "prepared")
    assert (run.data.params["model"], run.data.params["epochs"]) == ("timm/test_resnet", "1")
    # The user's description is kept, once, below tl's.
    description = run.data.tags["mlflow.note.content"]
    assert description.startswith("**")
    assert description.count("what it is for") == 1
    assert description.endswith("\n\nwhat it is for")
    assert len(run.inputs.dataset_inputs) == 3
    assert (Path("mlruns") / run.info.experiment_id / run.info.run_id / "state").is_dir()
    # Another training is not merged into it.
    monkeypatch.setenv("MLFLOW_RUN_ID", prepared.run_id)
    refused = train("--seed", "3")
    assert refused.code == 2
    assert "holds a training already" in refused.err
    assert store.client.get_run(prepared.run_id).data.params == run.data.params
    assert len(runs_by_experiment(store)["theirs"]) == 1


@pytest.mark.parametrize("run_id", ["no-id", "f" * 32, "ended", "removed"])
def test_a_run_that_cannot_be_used_is_refused_before_anything_is_trained(
    run_id: str, store: Store, train, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = store.client.create_run("0").info.run_id
    if run_id == "ended":
        store.client.set_terminated(made)
    elif run_id == "removed":
        store.client.delete_run(made)
    monkeypatch.setenv("MLFLOW_RUN_ID", made if run_id in ("ended", "removed") else run_id)
    refused = train()
    assert refused.code == 2
    assert "unset MLFLOW_RUN_ID" in refused.err
    assert all("tl.version" not in run.data.tags for run in store.runs())


def test_a_comparison_uses_the_prepared_run_itself_and_no_training_does(
    store: Store, tl, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tl_cli.tracking.comparisons import Parent
    from tl_cli.tracking.destination import find_destination

    prepared = store.client.create_run(store.client.create_experiment("theirs")).info
    monkeypatch.setenv("MLFLOW_RUN_ID", prepared.run_id)
    destination = find_destination(store, None)
    assert (destination.experiment_id, destination.experiment) == (prepared.experiment_id, "theirs")
    with Parent(store, destination.experiment_id, "both", "tl compare", destination.run) as parent:
        assert parent.run_id == prepared.run_id
        # The trainings are processes that inherit the environment.
        assert find_destination(store, destination.experiment).run is None
    assert store.client.get_run(prepared.run_id).data.tags["tl.compares"] == "models"


def test_resuming_a_run_while_the_environment_names_another_is_refused(
    store: Store, tl, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = store.client.create_run("0", run_name="made").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", "f" * 32)
    refused = tl("train", "--resume", "made")
    assert refused.code == 2
    assert "unset MLFLOW_RUN_ID" in refused.err
    assert store.client.get_run(made).info.status == "RUNNING"


@pytest.mark.slow
def test_mlflow_run_records_in_the_run_that_it_made(store: Store, colours: Path, workplace: Path) -> None:
    command = " ".join([sys.executable, "-m", "tl_cli", *TRAIN_SMALL, "--data", str(colours)])
    (workplace / "MLproject").write_text(f'name: tl\nentry_points:\n  main:\n    command: "{command}"\n')
    submitted = mlflow.projects.run(".", experiment_name="project", env_manager="local")
    run = store.client.get_run(submitted.run_id)
    assert run.info.status == "FINISHED"
    assert {"val/accuracy", "test/accuracy"} <= run.data.metrics.keys()
    assert len(runs_by_experiment(store)["project"]) == 1
    state = Path("mlruns") / run.info.experiment_id / run.info.run_id / "state"
    assert (state / "best" / "model.json").exists()


@pytest.mark.parametrize(("value", "is_recorded"), [("false", False), (None, True)])
def test_system_metrics_are_recorded_unless_disabled_by_mlflows_variable(
    value: str | None, is_recorded: bool, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.support.recording import recorder

    if value is not None:
        monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", value)
    with recorder(store) as record:
        monitors = mlflow.tracking.fluent.run_id_to_system_metrics_monitor
        assert (record.run_id in monitors) == is_recorded

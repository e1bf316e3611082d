"""The experiment or prepared run of a new recording: from the command line, otherwise from MLflow's variables."""

import os
from dataclasses import dataclass

from mlflow.entities import Experiment, LifecycleStage

from tl_cli.errors import UsageError
from tl_cli.tracking.recorded import PARENT_TAG, Run, describe_run, short_id
from tl_cli.tracking.store import DEFAULT_EXPERIMENT, Store

RUN_ID = "MLFLOW_RUN_ID"
_NAME, _ID = "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"


@dataclass(frozen=True, slots=True)
class Destination:
    """The experiment of a new run.

    Attributes:
        experiment: its name.
        run: the run that ``MLFLOW_RUN_ID`` names, prepared by ``mlflow run`` or another program; None for a new one.
    """

    experiment_id: str
    experiment: str
    run: Run | None = None


def find_destination(store: Store, experiment: str | None) -> Destination:
    """Return where a new run is recorded; an experiment that does not exist yet is created.

    ``MLFLOW_RUN_ID`` is removed from the environment, as MLflow would use it for the next run that starts.

    Args:
        experiment: name from the command line, or None.

    Raises:
        UsageError: the variables contradict the command line or each other, or name a run that cannot be used.
        TrackingError: the experiment was deleted, its files are another project's, or the store cannot be used.
    """
    run_id = os.environ.pop(RUN_ID, None)
    if run_id:
        run = _prepared_run(store, run_id)
        recorded = _experiment_with_id(store, run.info.experiment_id, RUN_ID)
        if experiment not in (None, recorded.name):
            raise UsageError(
                f"{RUN_ID} names the run {describe_run(run)} of the experiment {recorded.name!r}, and --experiment "
                f"{experiment!r}; leave out --experiment, or unset {RUN_ID}"
            )
        store.check_place(run)
        return Destination(recorded.experiment_id, recorded.name, run)
    name, experiment_id = experiment or os.environ.get(_NAME), os.environ.get(_ID)
    if experiment is None and experiment_id:
        recorded = _experiment_with_id(store, experiment_id, _ID)
        if name and name != recorded.name:
            raise UsageError(
                f"{_ID}={experiment_id} is the experiment {recorded.name!r}, and {_NAME} is {name!r}; unset one of them"
            )
        name = recorded.name
    name = name or DEFAULT_EXPERIMENT
    return Destination(store.experiment(name), name)


def check_resumable(run: Run) -> None:
    """Check that ``MLFLOW_RUN_ID`` does not name another run than the one to resume.

    Raises:
        UsageError: it names another run.
    """
    run_id = os.environ.pop(RUN_ID, None)
    if run_id not in (None, "", run.info.run_id):
        raise UsageError(f"--resume names the run {describe_run(run)}, and {RUN_ID} names {run_id}; unset {RUN_ID}")


def _prepared_run(store: Store, run_id: str) -> Run:
    """Return a run in which nothing has been trained yet.

    Raises:
        UsageError: no run has that id, it has ended, or a training of tl is recorded in it.
    """
    run = store.run(run_id)
    if run is None:
        raise UsageError(f"{RUN_ID} is {run_id!r}, and {store.uri} has no such run; unset {RUN_ID}")
    if problem := _find_problem(run):
        raise UsageError(f"{RUN_ID} names the run {describe_run(run)}, which {problem}; for a new run unset {RUN_ID}")
    return run


def _find_problem(run: Run) -> str:
    """Return why a new training cannot be recorded in a run; "" if it can."""
    if run.info.lifecycle_stage == LifecycleStage.DELETED:
        return "was removed"
    if run.data.tags.keys() & {"tl.version", PARENT_TAG}:
        resume = f" (to resume it: env -u {RUN_ID} tl train --resume {short_id(run)})"
        return "holds a training already" + (resume if run.info.status != "FINISHED" else "")
    return "" if run.info.status in ("RUNNING", "SCHEDULED") else f"has ended ({run.info.status})"


def _experiment_with_id(store: Store, experiment_id: str, variable: str) -> Experiment:
    experiment = store.request(store.client.get_experiment, experiment_id)
    if experiment is None:
        raise UsageError(
            f"{variable} names the experiment {experiment_id!r}, which {store.uri} does not have; unset {variable}"
        )
    return experiment

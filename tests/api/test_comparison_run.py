"""``compare`` tests the difference of two models as SciPy does, on the images that both were evaluated on."""

import numpy as np
import pytest
from scipy.stats import binomtest

from tests.api.conftest import Project, Silent
from tl_cli import CompareRequest, compare
from tl_cli.api.comparison_run import CompareObserver, CompareResult, Report
from tl_cli.errors import RunNotFoundError, UsageError
from tl_cli.tracking.store import open_store


class Listening(CompareObserver, Silent):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[CompareResult] = []

    def compared(self, result: CompareResult) -> Report:
        self.seen.append(result)
        return super().compared(result)


def correct(project: Project) -> list[np.ndarray]:
    """Return which test images each run classifies correctly."""
    files, labels = project.list_test_files(), project.labels()
    return [project.probabilities(run, files).argmax(1) == labels for run in project.runs]


@pytest.mark.slow
def test_the_difference_of_two_runs_is_tested_by_mcnemars_exact_test(project: Project) -> None:
    first, second = correct(project)
    observer = Listening()
    result = compare(CompareRequest(("first", "second"), measure_speed=False), observer)
    assert observer.seen == [result]
    data = result.to_dict()
    accuracies = {"first": first.mean(), "second": second.mean()}
    assert {row["model"]: row["accuracy"] for row in data["models"]} == pytest.approx(accuracies)
    assert [row["accuracy"] for row in data["models"]] == sorted(accuracies.values(), reverse=True)
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    (pair,) = data["pairs"]
    assert {pair["only_better_right"], pair["only_worse_right"]} == {only_first, only_second}
    if only_first + only_second:
        assert pair["p"] == pytest.approx(binomtest(only_first, only_first + only_second).pvalue)
    assert [len(curves) for curves in result.curves] == [1, 1]
    assert [point.epoch for point in result.curves[0][0].epochs] == [1, 2]


@pytest.mark.slow
def test_without_recorded_logits_the_models_are_evaluated_again(project: Project) -> None:
    folders = tuple(str(run.model) for run in project.runs)
    data = str(project.pictures)
    result = compare(CompareRequest(folders, data=data, split="test", measure_speed=False), Listening())
    found = sorted(row["accuracy"] for row in result.to_dict()["models"])
    assert found == pytest.approx(sorted(each.mean() for each in correct(project)))
    # A folder has no recorded training.
    assert result.curves == ((), ())


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        (("first",), UsageError, "first is one run; give two or more"),
        (("first", "latest", "second"), UsageError, "latest and second are the same model"),
        (("resnet18", "resnet34"), UsageError, "tl compare --models resnet18 resnet34"),
        (("first", "nothing-of-this-name"), RunNotFoundError, "nothing-of-this-name"),
    ],
)
def test_names_that_are_not_several_models_are_refused(
    project: Project, names: tuple[str, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        compare(CompareRequest(names), Listening())


def test_a_recorded_comparison_is_compared_again_from_its_trainings(project: Project) -> None:
    store = open_store(None)
    client, experiment = store.client, store.find("first").info.experiment_id
    parent = client.create_run(experiment, run_name="both", tags={"tl.compares": "models"})
    for run in project.runs:
        client.set_tag(run.run_id, "mlflow.parentRunId", parent.info.run_id)
        client.set_tag(run.run_id, "tl.contender", f"model {run.run_name}")
    try:
        result = compare(CompareRequest((parent.info.run_id,), measure_speed=False), Listening())
        names = {contender.name for contender in result.comparison.contenders}
        assert names == {"model first", "model second"}
    finally:
        client.delete_run(parent.info.run_id)
        for run in project.runs:
            client.delete_tag(run.run_id, "mlflow.parentRunId")
            client.delete_tag(run.run_id, "tl.contender")

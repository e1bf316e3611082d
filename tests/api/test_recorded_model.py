"""The model of a run is found by every name of the run; other names are explained."""

import pytest

from tests.api.conftest import Project
from tl_cli.api.recorded_model import find_recorded, model_of
from tl_cli.errors import RunNotFoundError
from tl_cli.tracking.store import open_store


def test_a_run_is_found_by_its_name_its_id_and_the_beginning_of_it(project: Project) -> None:
    run_id = project.runs[1].run_id
    for name in ("second", run_id, run_id[:8], "latest", f"runs:/{run_id}"):
        recorded = find_recorded(name, None, pytest.fail)
        assert recorded.run.info.run_id == run_id
        assert recorded.name == f"second ({run_id[:8]})"


def test_a_name_that_is_no_run_is_explained(project: Project) -> None:
    with pytest.raises(RunNotFoundError, match="resnet18 is an architecture, not a run; to train one: tl train resn"):
        find_recorded("resnet18", None, pytest.fail)
    with pytest.raises(RunNotFoundError, match=r"tl train MODEL --weights 'my weights\.pth' fine-tunes from it"):
        find_recorded("my weights.pth", None, pytest.fail)
    with pytest.raises(RunNotFoundError):
        find_recorded("nothing-of-this-name", None, pytest.fail)


def test_a_run_without_a_model_is_refused(workplace) -> None:
    store = open_store(None)
    store.client.create_run(store.experiment("tl"), run_name="empty")
    with pytest.raises(RunNotFoundError):
        model_of(store, store.find("empty"), pytest.fail)

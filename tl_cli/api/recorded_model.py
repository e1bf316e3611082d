"""The saved models of recorded runs."""

from collections.abc import Callable
from dataclasses import dataclass

from tl_cli.api.model_lookup import Target, display_name, find_run_by_name
from tl_cli.tracking.recorded import Run
from tl_cli.tracking.store import Store, open_store


@dataclass(frozen=True, slots=True)
class RecordedModel(Target):
    """The saved model of a run.

    Attributes:
        store: where the run is recorded.
        run: the run.
    """

    store: Store
    run: Run


def find_recorded(name: str, tracking_uri: str | None, warn: Callable[[str], None]) -> RecordedModel:
    """Return the model of a run, as ``find_model`` does."""
    store = open_store(tracking_uri)
    return model_of(store, find_run_by_name(store, name), warn, name)


def model_of(store: Store, run: Run, warn: Callable[[str], None], name: str = "") -> RecordedModel:
    """Return the model of a run.

    Args:
        warn: as for ``find_model``.
        name: the name by which the run was found.

    Raises:
        RunNotFoundError: the run has no model.
        TrackingError: the model cannot be accessed.
    """
    folder = store.model_folder(run, name, warn)
    return RecordedModel(folder, display_name(run), store, run)

"""The saved models of recorded runs."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tl_cli.api.model_lookup import Target
from tl_cli.errors import RunNotFoundError
from tl_cli.habits import WEIGHTS_ENDINGS
from tl_cli.models.list.completion import is_architecture
from tl_cli.tracking.recorded import Run, short_id
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
    try:
        run = store.find(name)
    except RunNotFoundError as error:
        if is_architecture(name):
            raise RunNotFoundError(f"{name} is an architecture, not a run; to train one: tl train {name}") from error
        if Path(name).suffix.lower() not in WEIGHTS_ENDINGS:
            raise
        raise RunNotFoundError(
            f"{name} is a file of weights, without classes or preprocessing; give a run or a saved-model folder. "
            f"tl train MODEL --weights {shlex.quote(name)} fine-tunes from it"
        ) from error
    return model_of(store, run, warn, name)


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
    return RecordedModel(folder, f"{run.info.run_name} ({short_id(run)})", store, run)

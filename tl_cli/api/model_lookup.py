"""Finds the saved model of a run, of a folder, or of one of its files."""

import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tl_cli.errors import RunNotFoundError
from tl_cli.habits import WEIGHTS_ENDINGS
from tl_cli.models.list.completion import is_architecture
from tl_cli.tracking.recorded import Run, RunReader, short_id
from tl_cli.tracking.sqlite_reader import open_to_read

# Named as in models.bundle, which imports torch.
CARD_FILE, WEIGHTS_FILE = "model.json", "model.safetensors"


@dataclass(frozen=True, slots=True)
class Target:
    """A saved model; that of a run is a ``RecordedModel``.

    Attributes:
        folder: contains ``model.json`` and ``model.safetensors``.
        name: for display.
    """

    folder: Path
    name: str


def find_model(name: str, tracking_uri: str | None, warn: Callable[[str], None]) -> Target:
    """Return the model of a run, of a saved-model folder, or of one of its files, with its run and store if it has one.

    Args:
        warn: called with a message if the model was not in the recorded folder but in another one.

    Raises:
        RunNotFoundError: no run or several runs match the name, or the run has no model.
        TrackingError: the store cannot be used.
    """
    if (target := _find_in_folder(name)) is not None:
        return target
    # Imports MLflow, which takes seconds and which a saved-model folder does not need.
    from tl_cli.api.recorded_model import find_recorded

    return find_recorded(name, tracking_uri, warn)


def find_to_read(name: str, tracking_uri: str | None, warn: Callable[[str], None]) -> Target:
    """Return the folder of a model as ``find_model`` finds it, without its run, and if possible without MLflow."""
    if (target := _find_in_folder(name)) is not None:
        return target
    store = open_to_read(tracking_uri)
    run = find_run_by_name(store, name)
    return Target(store.model_folder(run, name, warn), display_name(run))


def find_run_by_name(store: RunReader, name: str) -> Run:
    """Return the run that the store finds by a name.

    Raises:
        RunNotFoundError: there is none; the message explains if the name is an architecture or a file of weights.
    """
    try:
        return store.find(name)
    except RunNotFoundError as error:
        if is_architecture(name):
            raise RunNotFoundError(f"{name} is an architecture, not a run; to train one: tl train {name}") from error
        if Path(name).suffix.lower() not in WEIGHTS_ENDINGS:
            raise
        raise RunNotFoundError(
            f"{name} is a file of weights, without classes or preprocessing; give a run or a saved-model folder. "
            f"tl train MODEL --weights {shlex.quote(name)} fine-tunes from it"
        ) from error


def display_name(run: Run) -> str:
    """Return the name of a run's model for display."""
    return f"{run.info.run_name} ({short_id(run)})"


def _find_in_folder(name: str) -> Target | None:
    folder = find_model_folder(name)
    return Target(folder, str(folder.resolve())) if folder is not None else None


def find_model_folder(name: str) -> Path | None:
    """Return the saved-model folder with this name, or the one that contains the file with this name."""
    path = Path(name).expanduser()
    for folder in (path, path.parent) if path.name in (CARD_FILE, WEIGHTS_FILE) else (path,):
        # os.path accepts names of any length.
        if os.path.isfile(folder / CARD_FILE):  # noqa: PTH113
            return folder
    return None

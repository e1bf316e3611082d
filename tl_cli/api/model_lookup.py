"""Finds the saved model of a run, of a folder, or of one of its files."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# Named as in models.bundle, which imports torch.
CARD_FILE, WEIGHTS_FILE = "model.json", "model.safetensors"


@dataclass(frozen=True, slots=True)
class Target:
    """A saved model; that of a run is a ``RecordedModel``.

    Attributes:
        folder: contains ``model.json`` and ``model.safetensors``.
        name: shown to people.
    """

    folder: Path
    name: str


def find_model(name: str, tracking_uri: str | None, warn: Callable[[str], None]) -> Target:
    """Return the model of a run, of a saved-model folder, or of one of its files.

    Args:
        warn: called with a message if the model is not where its run recorded it, but was found elsewhere.

    Raises:
        RunNotFoundError: no run or several runs match the name, or the run has no model.
        TrackingError: the store cannot be used.
    """
    folder = saved_model(name)
    if folder is not None:
        return Target(folder, str(folder.resolve()))
    # Imports MLflow, which takes seconds and which a saved-model folder does not need.
    from tl_cli.api.recorded_model import find_recorded

    return find_recorded(name, tracking_uri, warn)


def saved_model(name: str) -> Path | None:
    """Return the saved-model folder with this name, or the one that contains the file with this name."""
    path = Path(name).expanduser()
    for folder in (path, path.parent) if path.name in (CARD_FILE, WEIGHTS_FILE) else (path,):
        # os.path accepts names of any length.
        if os.path.isfile(folder / CARD_FILE):  # noqa: PTH113
            return folder
    return None

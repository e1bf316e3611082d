"""Finds the saved model of a run, of a folder, or of one of its files.

A saved-model folder is found without MLflow, whose import takes seconds: what needs a store is imported where it is
used.
"""

import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tl_cli.errors import RunNotFoundError
from tl_cli.habits import WEIGHTS_ENDINGS
from tl_cli.models.list.completion import is_architecture

if TYPE_CHECKING:
    # Types only: a saved-model folder needs no MLflow.
    from tl_cli.tracking.recorded import Run
    from tl_cli.tracking.store import Store

# Named as in models.bundle, which imports torch.
CARD_FILE, WEIGHTS_FILE = "model.json", "model.safetensors"
_FORMER_CALIBRATION = "calibration.json"


@dataclass(frozen=True, slots=True)
class Target:
    """A saved model.

    Attributes:
        folder: contains ``model.json`` and ``model.safetensors``.
        name: shown to people.
        store: where its run is recorded; None for a folder without a run.
        run: its run; None for a folder without one.
    """

    folder: Path
    name: str
    store: "Store | None" = None
    run: "Run | None" = None

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep other processes from deleting the run while the block runs."""
        if self.store is None or self.run is None:
            yield
            return
        from tl_cli.tracking.ownership import reading

        with reading(self.store, self.run):
            yield


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
    from tl_cli.tracking.store import open_store

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
    return target_of(store, run, warn, name)


def target_of(store: "Store", run: "Run", warn: Callable[[str], None], name: str = "") -> Target:
    """Return the model of a run.

    Args:
        warn: as for ``find_model``.
        name: the name by which the run was found.

    Raises:
        RunNotFoundError: the run has no model.
        TrackingError: the model cannot be accessed.
    """
    from tl_cli.tracking.recorded import short_id

    folder = store.model_folder(run, name, warn)
    return Target(folder, f"{run.info.run_name} ({short_id(run)})", store, run)


def saved_model(name: str) -> Path | None:
    """Return the saved-model folder with this name, or the one that contains the file with this name."""
    path = Path(name).expanduser()
    for folder in (path, path.parent) if path.name in (CARD_FILE, WEIGHTS_FILE) else (path,):
        # os.path accepts names of any length.
        if os.path.isfile(folder / CARD_FILE):  # noqa: PTH113
            return folder
    return None


def has_former_calibration(target: Target) -> bool:
    """Whether ``tl eval`` of an earlier version left a temperature beside the model, which is no longer used."""
    if target.store is not None and target.run is not None:
        return target.store.artifact(target.run, f"eval/{_FORMER_CALIBRATION}") is not None
    return (target.folder / _FORMER_CALIBRATION).exists()

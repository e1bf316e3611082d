"""From what a person calls RUN to the model that is meant."""

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
    from mlflow.entities import Run  # noqa: TID251 (a type)

    from tl_cli.tracking.store import Store

# As models.bundle writes them, which imports torch.
CARD_FILE, WEIGHTS_FILE = "model.json", "model.safetensors"
_FORMER_CALIBRATION = "calibration.json"


@dataclass(frozen=True, slots=True)
class Target:
    """A saved model.

    Attributes:
        folder: with ``model.json`` and ``model.safetensors``.
        name: for people.
        store: where its run is recorded; None for a bare folder.
        run: the same.
    """

    folder: Path
    name: str
    store: "Store | None" = None
    run: "Run | None" = None

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep other processes from deleting the run meanwhile."""
        if self.store is None or self.run is None:
            yield
            return
        from tl_cli.tracking.ownership import reading

        with reading(self.store, self.run):
            yield


def find_model(name: str, tracking_uri: str | None, warn: Callable[[str], None]) -> Target:
    """Return the model of a run, of a saved-model folder, or of one of its files.

    Args:
        warn: called with what is worth knowing where it is found, but not where it should be.

    Raises:
        RunNotFoundError: no run, or several, answer to the name; or it has no model.
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
            raise RunNotFoundError(f"{name} is an architecture and no run; to train one: tl train {name}") from error
        if Path(name).suffix.lower() not in WEIGHTS_ENDINGS:
            raise
        raise RunNotFoundError(
            f"{name} is a file of weights; a model here is a run or a saved-model folder, which has its classes and "
            f"preprocessing too. tl train MODEL --weights {shlex.quote(name)} fine-tunes from it"
        ) from error
    return target_of(store, run, warn, name)


def target_of(store: "Store", run: "Run", warn: Callable[[str], None], name: str = "") -> Target:
    """Return the model of a run.

    Args:
        warn: as of ``find_model``.
        name: by which the run was found.

    Raises:
        RunNotFoundError: it has no model.
        TrackingError: the model is out of reach.
    """
    from tl_cli.tracking.recorded import short_id

    folder = store.model_folder(run, name, warn)
    return Target(folder, f"{run.info.run_name} ({short_id(run)})", store, run)


def saved_model(name: str) -> Path | None:
    """Return the saved-model folder of that name, or that a file of that name lies in."""
    path = Path(name).expanduser()
    for folder in (path, path.parent) if path.name in (CARD_FILE, WEIGHTS_FILE) else (path,):
        # os.path takes any name, as long as it may be.
        if os.path.isfile(folder / CARD_FILE):  # noqa: PTH113
            return folder
    return None


def has_former_calibration(target: Target) -> bool:
    """Whether ``tl eval`` of an earlier version has left a temperature beside the model, which nothing uses now."""
    if target.store is not None and target.run is not None:
        return target.store.artifact(target.run, f"eval/{_FORMER_CALIBRATION}") is not None
    return (target.folder / _FORMER_CALIBRATION).exists()

"""From what a person calls RUN to the model that is meant."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow.entities import Run  # noqa: TID251 (a type)

    from tl_cli.evaluation.calibration import Calibration
    from tl_cli.tracking.store import Store


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


def find_model(name: str, tracking_uri: str | None) -> Target:
    """Return the model of a run or of a saved-model folder.

    Raises:
        RunNotFoundError: no run, or several, answer to the name; or it has no model.
        TrackingError: the store cannot be used.
    """
    folder = Path(name).expanduser()
    # os.path takes any name, as long as it may be.
    if os.path.isfile(folder / "model.json"):  # noqa: PTH113
        return Target(folder, str(folder.resolve()))
    from tl_cli.tracking.store import open_store, short_id

    store = open_store(tracking_uri)
    run = store.find(name)
    return Target(store.model_folder(run), f"{run.info.run_name} ({short_id(run)})", store, run)


def kept_calibration(target: Target) -> "Calibration | None":
    """Return the temperature that ``tl eval`` has fitted for these weights, if it has."""
    from tl_cli.evaluation import calibration
    from tl_cli.fetch import digest
    from tl_cli.models.bundle import WEIGHTS_FILE
    from tl_cli.tracking.evaluations import recorded_calibration

    path: Path | None = target.folder / calibration.FILE
    if target.store is not None and target.run is not None:
        path = recorded_calibration(target.store, target.run)
    return calibration.read(path, digest(target.folder / WEIGHTS_FILE)) if path else None

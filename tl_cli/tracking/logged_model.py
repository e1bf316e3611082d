"""Logs a saved model with MLflow, which can load and serve it and shows it on its Models tab."""

import filecmp
import json
import re
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import mlflow
from mlflow.entities import LoggedModelStatus
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema
from mlflow.utils.logging_utils import disable_logging
from pydantic import TypeAdapter, ValidationError

import tl_cli
from tl_cli.contract import problems_in
from tl_cli.errors import TrackingError
from tl_cli.models import bundle
from tl_cli.tracking import served
from tl_cli.tracking.recorded import MODELS, Run
from tl_cli.tracking.store import WEIGHTS_PARAM, Store, registered_versions

_REQUIRED = (
    "mlflow",
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "pillow",
    "safetensors",
    "pydantic",
    "pandas",
    "filelock",
)


@dataclass(frozen=True, slots=True)
class Naming:
    """How a model is recorded.

    Attributes:
        name: shown in MLflow.
        params: settings that distinguish models.
        register: name in the model registry, or None.
    """

    name: str
    params: dict[str, str]
    register: str | None = None

    def to_json(self) -> str:
        """Return it as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Naming":
        """Return the inverse of ``to_json``.

        Raises:
            TrackingError: the text is something else.
        """
        try:
            naming: Naming = TypeAdapter(cls).validate_json(text)
        except ValidationError as error:
            raise TrackingError(f"the journal's record of the model is damaged: {problems_in(error)}") from error
        return naming


def log_model(folder: Path, naming: Naming) -> str:
    """Record a saved-model folder with the active run, once: code as text, weights as safetensors, no pickle.

    Returns:
        The model's id.
    """
    weights = bundle.read_card(folder).weights_sha256 or ""
    active = mlflow.active_run()
    model_id = _find_logged(active.info.run_id, weights) if active is not None else None
    if model_id is None:
        try:
            model_id = _log(folder, naming, weights)
        except BaseException:
            if active is not None:
                with suppress(
                    Exception
                ):  # if the store does not respond, the next attempt deletes the incomplete upload
                    _find_logged(active.info.run_id, weights)
            raise
    if naming.register is not None:
        source = f"{MODELS}{model_id}"
        if all(version.source != source for version in registered_versions(mlflow.MlflowClient(), naming.register)):
            disable_logging()  # MLflow's autologging enables it again
            mlflow.register_model(source, naming.register)
    return model_id


def share_weights(store: Store, run: Run, saved_model: Path) -> None:
    """Make a saved model's weights and their logged copy one file on disk, if both are on one file system.

    Neither file is ever changed in place, and removing one keeps the other.
    """
    own = saved_model / bundle.WEIGHTS_FILE
    folders = store.artifact_folders(run, run.model_ids)
    for logged in (path for folder in folders for path in folder.rglob(bundle.WEIGHTS_FILE)):
        temporary = own.with_name(f".{own.name}.link")
        with suppress(OSError):  # another file system, or no hard links: keep both copies
            if not own.samefile(logged) and filecmp.cmp(own, logged, shallow=False):
                temporary.unlink(missing_ok=True)
                temporary.hardlink_to(logged)
                temporary.replace(own)


def _find_logged(run_id: str, weights: str) -> str | None:
    """Return the id of a run's model with these weights: an interrupted run may have logged it already; else None.

    Incomplete uploads are deleted.
    """
    client = mlflow.MlflowClient()
    outputs = client.get_run(run_id).outputs
    for output in outputs.model_outputs if outputs else []:
        try:
            model = client.get_logged_model(output.model_id)
        except MlflowException:  # deleted
            continue
        if model.status != LoggedModelStatus.READY:
            client.delete_logged_model(model.model_id)
        elif model.params.get(WEIGHTS_PARAM) == weights:
            return str(model.model_id)
    return None


def _log(folder: Path, naming: Naming, weights: str) -> str:
    logged = mlflow.pyfunc.log_model(
        name=re.sub(r"[/:.%\"']", "-", naming.name),  # characters that MLflow does not allow in a name
        python_model=str(served.__file__),
        artifacts={"model": str(folder)},
        # The package is logged with the model, so that preprocessing is the same everywhere.
        code_paths=[str(Path(str(tl_cli.__file__)).parent)],
        pip_requirements=[f"{name}=={version(name)}" for name in _REQUIRED],
        signature=ModelSignature(inputs=Schema([ColSpec(DataType.string, "image")])),
        params={**naming.params, WEIGHTS_PARAM: weights},
    )
    return str(logged.model_id)

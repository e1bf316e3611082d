"""A saved model in the record: what MLflow can load and serve, and shows on its Models tab."""

import json
import re
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import mlflow
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema
from mlflow.types.schema import AnyType

import tl_cli
from tl_cli.tracking import served

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
    """What is said of a model in the record.

    Attributes:
        name: for people.
        params: settings that tell models apart.
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
        """Return what ``to_json`` gave."""
        return cls(**json.loads(text))


def log_model(folder: Path, naming: Naming) -> str:
    """Record a saved-model folder with the active run: code as text, weights as safetensors, no pickle.

    Returns:
        The model's id.
    """
    logged = mlflow.pyfunc.log_model(
        name=re.sub(r"[/:.%\"']", "-", naming.name),  # what MLflow refuses in a name
        python_model=str(served.__file__),
        artifacts={"model": str(folder)},
        # The package itself travels with the model, so that one preprocessing serves everywhere.
        code_paths=[str(Path(str(tl_cli.__file__)).parent)],
        pip_requirements=[f"{name}=={version(name)}" for name in _REQUIRED],
        signature=ModelSignature(inputs=Schema([ColSpec(AnyType(), "image")])),
        params=naming.params,
    )
    if naming.register is not None:
        mlflow.register_model(f"models:/{logged.model_id}", naming.register)
    return str(logged.model_id)

"""Modules that the forkserver preloads: slow imports and look-ups, without any computation."""

import pkgutil
from importlib import import_module

from mlflow.utils.requirements_utils import warn_dependency_requirement_mismatches
from PIL import Image

import tl_cli

for name in (
    "alembic.command",
    "git",
    "matplotlib.backends.backend_agg",
    "matplotlib.pyplot",
    "mlflow.models.display_utils",
    "mlflow.pyfunc",
    "mlflow.store.tracking.sqlalchemy_workspace_store",
    "mlflow.system_metrics.system_metrics_monitor",
    "plotext",
    "sklearn.metrics",
    "sqlalchemy.dialects.sqlite",
    "timm",
    "torch",
    "torch.utils.serialization",
    "torchvision.transforms.v2",
    *(module.name for module in pkgutil.walk_packages(tl_cli.__path__, "tl_cli.")),
):
    if not name.endswith("__main__"):
        import_module(name)
Image.init()
# MLflow caches which package each module belongs to: saves two seconds per run that records a model.
warn_dependency_requirement_mismatches(["numpy"])

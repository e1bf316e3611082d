"""One function per use case; each is imported when it is first used, so that this imports neither torch nor MLflow."""

from importlib import import_module
from typing import Any

_MODULES = {
    "evaluation_run": ("evaluate", "EvaluateRequest", "Evaluation"),
    "export_run": ("export", "ExportRequest", "Exported"),
    "loaded_model": ("load", "LoadedModel", "Predictions"),
    "observer": ("Observer",),
    "prediction": ("predict", "PredictRequest", "Prediction"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}
__all__ = [*_MODULE_OF]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__

"""One function per use case; each is imported when it is first used, so that this imports neither torch nor MLflow."""

from importlib import import_module
from typing import Any

_MODULES = {
    "comparison_run": ("compare", "CompareRequest", "CompareResult", "Trainings"),
    "data_check": ("check_data", "CheckRequest", "DataReport"),
    "data_list": ("list_data", "DataList"),
    "evaluation_run": ("evaluate", "EvaluateRequest", "Evaluation"),
    "export_run": ("export", "ExportRequest", "Exported"),
    "inspection_results": (
        "CamView", "DriftView", "FeaturesView", "FreezePlanView", "InspectionRequest", "ResidualsView", "TreeView",
        "WorstView",
    ),
    "inspection_view": ("inspect",),
    "loaded_model": ("load", "LoadedModel", "Predictions"),
    "model_list": ("list_architectures", "pull_weights"),
    "observer": ("Observer",),
    "prediction": ("predict", "PredictRequest", "Prediction"),
    "run_curves": ("read_curves", "CurvesRequest", "CurvesResult"),
    "run_store": ("list_runs", "show_run", "compare_settings", "RunFilter"),
    "soup_run": ("soup", "SoupRequest", "SoupResult"),
    "training_run": ("train", "dry_run", "Settings", "TrainRequest", "TrainResult", "TrainObserver"),
}  # fmt: skip
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}
__all__ = [*_MODULE_OF]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__

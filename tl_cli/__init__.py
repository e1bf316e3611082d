"""Fine-tunes image classifiers: ``from tl_cli import load, predict``. The functions are those of ``tl_cli.api``."""

from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    # Not imported above, since every module of the package imports this file.
    api = import_module("tl_cli.api")
    if name not in api.__all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(api, name)


def __dir__() -> list[str]:
    return [*import_module("tl_cli.api").__all__]

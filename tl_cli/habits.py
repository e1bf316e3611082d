"""Names that other tools use, and the names in ``tl``: look-ups in ``habits.toml``, without any parsing."""

import tomllib
from functools import cache
from pathlib import Path, PurePath

# Meanings of options that are no option here; see the table.
FIRST, LATER, DEFAULT, UNUSED = "FIRST", "LATER", "", "UNUSED"
# Commands for what MLflow shows, not tl.
SCREENS = ("ui", "dashboard", "tensorboard", "board", "mlflow", "server", "web", "gui")

WEIGHTS_ENDINGS = (".pt", ".pth", ".ckpt", ".safetensors", ".bin", ".onnx", ".h5", ".keras", ".pkl")
_RUNS = {"best": "best", "last": "latest", "latest": "latest"}


@cache
def options() -> dict[str, str]:
    """Return the meanings of options by the names in other tools, without dashes."""
    return _by_name("options")


@cache
def commands() -> dict[str, str]:
    """Return commands of ``tl``, with their options, by the names in other tools."""
    return _by_name("commands")


def _by_name(table: str) -> dict[str, str]:
    meanings = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))[table]
    return {name: meaning for meaning, names in meanings.items() for name in names.split()}


def setting(name: str) -> str | None:
    """Return the line of a config file for a name of another tool: "" if it is the default, None if unknown."""
    meaning = options().get(name.replace("_", "-").lower())
    if meaning == FIRST:
        return "model"
    if meaning == DEFAULT:
        return ""
    if meaning is None or not meaning.startswith("--"):
        return None
    flag, _, value = meaning.removeprefix("--").partition(" ")
    return flag.replace("-", "_") + (f' = "{value}"' if value else "")


def kept_run(name: str) -> str | None:
    """Return the name of the run for a file of another tool, such as ``best.pt``."""
    path = PurePath(name)
    return _RUNS.get(path.stem.lower()) if path.suffix.lower() in WEIGHTS_ENDINGS else None

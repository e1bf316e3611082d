"""Options that several commands share. Imports nothing slow: completion and ``--help`` use it."""

import os
import re
import shlex
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol, TypeVar

import typer

from tl_cli.choices import DeviceName, TtaName
from tl_cli.choices import Precision as PrecisionName
from tl_cli.cli.settings import option
from tl_cli.errors import DataError, UsageError, suggest, without_secrets
from tl_cli.text import json_text

if TYPE_CHECKING:
    from tl_cli.ui.terminal.console import Console


class Result(Protocol):
    """What a function of the API returns."""

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON types."""


R = TypeVar("R", bound=Result)
# Endings of the files that --data takes.
_SOURCES = (".csv", ".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz")


def complete_model(incomplete: str) -> list[str]:
    """Return the architectures whose names begin with the text, for the shell."""
    from tl_cli.models.list.completion import complete

    return complete(incomplete)


def complete_run(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Return the names of runs, for the shell."""
    from tl_cli.tracking.completion import complete_run as complete

    return complete(incomplete, ctx.params.get("tracking_uri"))


def complete_stopped_run(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Return the names of incomplete runs, for the shell."""
    from tl_cli.tracking.completion import complete_run as complete

    return complete(incomplete, ctx.params.get("tracking_uri"), unfinished=True)


def complete_weights(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Return ``none`` and the names of runs, for the shell."""
    none = [("none", "random weights")] if "none".startswith(incomplete) else []
    return [*none, *complete_run(ctx, incomplete)]


def complete_data(incomplete: str) -> list[tuple[str, str]]:
    """Return data sets, folders, CSV files and archives whose names begin with the text, for the shell."""
    from tl_cli.data.sources.catalogue import SETS

    sources = [(name, row.title) for name, row in SETS.items() if name.startswith(incomplete)]
    folder, start = os.path.split(incomplete)
    with suppress(OSError):
        for entry in sorted(os.scandir(os.path.expanduser(folder) or "."), key=lambda entry: entry.name):  # noqa: PTH111 (as typed)
            is_source = entry.is_dir() or Path(entry.name).suffix in _SOURCES
            # Shells evaluate completed text.
            is_plain = re.fullmatch(r"\.?\w[\w .,@+=-]*", entry.name) is not None
            if is_source and is_plain and entry.name.startswith(start) and (start or not entry.name.startswith(".")):
                sources.append((os.path.join(folder, entry.name), "a folder" if entry.is_dir() else "a file"))
    return sources


def complete_contender(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Return architectures after ``--models``, else the names of runs, for the shell."""
    if ctx.params.get("models"):
        return [(name, "") for name in complete_model(incomplete)]
    return complete_run(ctx, incomplete)


def complete_model_or_run(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Return architectures and the names of runs, for the shell."""
    return [*((name, "") for name in complete_model(incomplete)), *complete_run(ctx, incomplete)]


def command_line() -> str:
    """Return the typed command without secrets in addresses, for the record."""
    return shlex.join(["tl", *map(without_secrets, sys.argv[1:])])


def print_json(data: object, *, indent: int | None = 2) -> None:
    """Print plain data as JSON on stdout, with null for NaN and infinity."""
    typer.echo(json_text(data, indent=indent))


def print_result(result: R, print_text: Callable[["Console", R], None], *, as_json: bool) -> None:
    """Print a result on stdout, as JSON or as text."""
    from tl_cli.ui.terminal.console import make_console

    if as_json:
        print_json(result.to_dict())
    else:
        print_text(make_console(), result)


def parse_age(text: str, flag: str) -> float:
    """Return the seconds of an age such as 30m, 12h, 2d or 3w.

    Raises:
        typer.BadParameter: it is not an age.
    """
    match = re.fullmatch(r"\s*(\d{1,9}(?:\.\d*)?)\s*([smhdw])\s*", text.lower())
    if match is None:
        raise typer.BadParameter(f"{text!r} is not an age such as 30m, 12h, 2d or 4w", param_hint=flag)
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}[match[2]]


def refuse_question(is_refused: bool) -> None:
    """Refuse ``--json`` without ``--yes`` for a command that asks.

    Raises:
        typer.BadParameter: the command would have to ask.
    """
    if is_refused:
        raise typer.BadParameter("--json cannot ask; add --yes", param_hint="--json")


def refuse_silence(is_silent: bool, otherwise: str = "") -> None:
    """Refuse ``--quiet`` if a command would print and keep nothing.

    Args:
        otherwise: an option that keeps the results.

    Raises:
        UsageError: nothing would be printed or kept.
    """
    if is_silent:
        loud = shlex.join(word for word in shlex.split(command_line()) if word not in ("--quiet", "-q"))
        also = f", or add {otherwise}" if otherwise else ""
        raise UsageError(f"--quiet hides the whole result; leave it out{also}: {loud}")


def check_source_exists(source: str) -> None:
    """Refuse data that do not exist, without importing what reads them.

    Raises:
        DataError: the source is neither a published set nor a file or folder.
    """
    from tl_cli.data.sources.catalogue import LEFT_OUT, SETS, canonical

    path, name = os.path.expanduser(source), canonical(source)  # noqa: PTH111 (as typed)
    if name in SETS or name in LEFT_OUT or os.path.exists(path):  # noqa: PTH110 (accepts names of any length)
        return
    if "/" not in source and not Path(source).suffix:
        raise DataError(
            f"--data {source!r} is no built-in set, and no file or folder here has that name.{suggest(name, SETS)} "
            "tl data lists the sets, and how to give your own images"
        )
    parent = next(folder for folder in Path(path).absolute().parents if os.path.isdir(folder))  # noqa: PTH112
    raise DataError(f"no file or folder at {path}; the nearest existing folder is {parent}")


in_output = partial(typer.Option, rich_help_panel="Output")
in_record = partial(typer.Option, rich_help_panel="Record")

_RUN_HELP = "Run id or its beginning, run name, latest, best, runs:/..., models:/..., or a saved-model folder."
_URI_HELP = "MLflow store or server. Default: MLFLOW_TRACKING_URI or ./mlflow.db."
_PRECISION_HELP = "fp32, or bf16 or fp16 (on a GPU): faster on some machines, and rounded."
_TTA_HELP = "Test-time augmentation: none, or flip (average each image and its mirror image). Default: as in training."
EXPERIMENT_HELP = "MLflow experiment. Default: MLFLOW_EXPERIMENT_NAME or _ID, else tl."
_PLAIN_HELP = "Print plain lines, such as one per epoch, instead of a live screen."
RunName = Annotated[str, typer.Argument(metavar="RUN", help=_RUN_HELP, autocompletion=complete_run)]
TrackingUri = Annotated[str | None, in_record("--tracking-uri", metavar="URI", help=_URI_HELP)]
DataDir = Annotated[Path | None, option("data_dir")]
PathColumn = Annotated[str | None, option("path_column")]
LabelColumn = Annotated[str | None, option("label_column")]
SplitColumn = Annotated[str | None, option("split_column")]
MaxPixels = Annotated[int | None, option("max_pixels")]
Device = Annotated[DeviceName | None, option("device")]
Workers = Annotated[int | None, option("workers")]
Precision = Annotated[PrecisionName, typer.Option(help=_PRECISION_HELP)]
Tta = Annotated[TtaName | None, typer.Option(help=_TTA_HELP)]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
AsJsonOutput = Annotated[bool, in_output("--json", help="Print the result as JSON.")]
AsJsonYes = Annotated[bool, typer.Option("--json", help="Print the result as JSON; needs --yes.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only warnings and errors.")]
Plain = Annotated[bool, typer.Option("--plain", help=_PLAIN_HELP)]

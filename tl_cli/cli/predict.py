"""``tl predict``: predicts the classes of images with a recorded model."""

import io
import sys
from typing import Annotated, Literal

import typer

from tl_cli.cli.params import (
    Device,
    MaxPixels,
    Precision,
    Quiet,
    TrackingUri,
    Tta,
    Workers,
    complete_run,
    refuse_silence,
)

EXAMPLES = """Examples:

tl predict photo.jpg --show

tl predict best holiday/ --top 1 --format csv > labels.csv

find . -name '*.jpg' | tl predict 3f2a91c0 - --format jsonl"""

_NAMES_HELP = (
    "A run or saved-model folder (default: latest), then pictures, folders, patterns, or - for a list on stdin."
)
_FORMAT_HELP = "Default: table in a terminal, jsonl in a pipe."
Names = Annotated[list[str], typer.Argument(metavar="[RUN] PATH", help=_NAMES_HELP, autocompletion=complete_run)]
Top = Annotated[int, typer.Option(help="Number of most likely classes to show.", min=1)]
Form = Literal["table", "jsonl", "csv"]
Format = Annotated[Form | None, typer.Option("--format", help=_FORMAT_HELP, show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object per line: --format jsonl.")]
Show = Annotated[bool, typer.Option("--show", help="Show a small picture of each image in the terminal.")]
Calibrated = Annotated[bool, typer.Option("--calibrated/--raw", help="Divide the logits by the model's temperature.")]
BatchSize = Annotated[int | None, typer.Option(help="Images per batch.", min=1)]

app = typer.Typer(add_completion=False)


@app.command(epilog=EXAMPLES)
def predict(
    names: Names,
    top: Top = 3,
    form: Format = None,
    as_json: AsJson = False,
    show: Show = False,
    calibrated: Calibrated = True,
    batch_size: BatchSize = None,
    tta: Tta = None,
    precision: Precision = "fp32",
    max_pixels: MaxPixels = None,
    device: Device = None,
    workers: Workers = None,
    tracking_uri: TrackingUri = None,
    quiet: Quiet = False,
) -> None:
    """Classify images: the most likely classes with their probabilities."""
    form = _form(form, as_json=as_json, show=show)
    refuse_silence(quiet and form == "table", "--format jsonl")
    from tl_cli.api import prediction as api
    from tl_cli.ui.terminal.console import make_console
    from tl_cli.ui.terminal.observer import TerminalObserver
    from tl_cli.ui.terminal.prediction_lines import show_predictions

    if isinstance(sys.stdin, io.TextIOWrapper):
        # The name of a file may not be valid text.
        sys.stdin.reconfigure(errors="surrogateescape")
    request = api.PredictRequest(
        names, lines=sys.stdin, calibrated=calibrated, batch_size=batch_size, tta=tta, precision=precision,
        max_pixels=max_pixels, device=device or "auto", workers=workers, tracking_uri=tracking_uri,
    )  # fmt: skip
    observer = TerminalObserver(make_console(quiet=quiet, stderr=form != "table"))
    predictions = api.predict(request, observer)
    if not show_predictions(predictions, observer, form, top=top, show=show, quiet=quiet):
        raise typer.Exit(1)


def _form(form: Form | None, *, as_json: bool, show: bool) -> Form:
    """Return the form of the output.

    Raises:
        typer.BadParameter: options contradict each other.
    """
    if as_json and form not in (None, "jsonl"):
        raise typer.BadParameter(f"--json is --format jsonl; leave out --format {form}", param_hint="--json")
    if show and (as_json or form in ("jsonl", "csv")):
        raise typer.BadParameter("pictures are shown in a table only", param_hint="--show")
    return form or ("jsonl" if as_json or not (show or sys.stdout.isatty()) else "table")

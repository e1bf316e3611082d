"""``tl predict``: predicts the classes of images with a recorded model."""

import io
import sys
from typing import Annotated, Literal

import typer

from tl_cli.cli.params import Device, MaxPixels, Quiet, TrackingUri, Workers, complete_run, refuse_silence

EXAMPLES = """Examples:

tl predict photo.jpg --show

tl predict best holiday/ --top 1 --format csv > labels.csv

find . -name '*.jpg' | tl predict 3f2a91c0 - --format jsonl"""


def predict(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="[RUN] PATH",
            help="A run or saved-model folder (default: latest), then pictures, folders, patterns, or - for a list on "
            "stdin.",
            autocompletion=complete_run,
        ),
    ],
    top: Annotated[int, typer.Option(help="Number of most likely classes to show.", min=1)] = 3,
    form: Annotated[
        Literal["table", "jsonl", "csv"] | None,
        typer.Option("--format", help="Default: table in a terminal, jsonl in a pipe.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line: --format jsonl.")] = False,
    show: Annotated[bool, typer.Option("--show", help="Show a small picture of each image in the terminal.")] = False,
    calibrated: Annotated[
        bool, typer.Option("--calibrated/--raw", help="Divide the logits by the model's temperature.")
    ] = True,
    batch_size: Annotated[int | None, typer.Option(help="Images per batch.", min=1)] = None,
    max_pixels: MaxPixels = None,
    device: Device = None,
    workers: Workers = None,
    tracking_uri: TrackingUri = None,
    quiet: Quiet = False,
) -> None:
    """Classify images: the most likely classes with their probabilities."""
    if show and form in ("jsonl", "csv"):
        raise typer.BadParameter("pictures are shown in a table only", param_hint="--show")
    if as_json and form not in (None, "jsonl"):
        raise typer.BadParameter(f"--json is --format jsonl; leave out --format {form}", param_hint="--json")
    if show and as_json:
        raise typer.BadParameter("pictures are shown in a table only", param_hint="--show")
    form = form or ("jsonl" if as_json or not (show or sys.stdout.isatty()) else "table")
    refuse_silence(quiet and form == "table", "--format jsonl")
    from tl_cli.api.prediction import PredictRequest
    from tl_cli.api.prediction import predict as predict_images
    from tl_cli.ui.terminal.console import make_console
    from tl_cli.ui.terminal.observer import TerminalObserver
    from tl_cli.ui.terminal.prediction_lines import show_predictions

    if isinstance(sys.stdin, io.TextIOWrapper):
        # The name of a file may not be valid text.
        sys.stdin.reconfigure(errors="surrogateescape")
    request = PredictRequest(
        names,
        lines=sys.stdin,
        calibrated=calibrated,
        batch_size=batch_size,
        max_pixels=max_pixels,
        device=device or "auto",
        workers=workers,
        tracking_uri=tracking_uri,
    )
    console = make_console(quiet=quiet, stderr=form != "table")
    observer = TerminalObserver(console)
    predictions = predict_images(request, observer)
    if not show_predictions(predictions, observer, form, top=top, show=show, quiet=quiet):
        raise typer.Exit(1)

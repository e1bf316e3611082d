"""``tl eval``: evaluates a recorded model on images that it was not trained on."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from tl_cli.cli.params import (
    DataDir,
    Device,
    LabelColumn,
    MaxPixels,
    PathColumn,
    Quiet,
    RunName,
    SplitColumn,
    TrackingUri,
    Workers,
    complete_data,
    refuse_silence,
)

EXAMPLES = """Examples:

tl eval

tl eval best --data ~/new-photos

tl eval 3f2a91c0 --split val --json

tl eval mlruns/1/3f2a91c0.../state/best --output report"""

_OUTPUT = "Output"


def evaluate(
    run: RunName = "latest",
    split: Annotated[
        Literal["test", "val", "train", "all"] | None,
        typer.Option(
            help="Which images. Default: test; val if there are no test images; all images of a folder without splits.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|PATH",
            autocompletion=complete_data,
            help="Other images, with classes of the same names; or the new location of the model's own images.",
        ),
    ] = None,
    path_column: PathColumn = None,
    label_column: LabelColumn = None,
    split_column: SplitColumn = None,
    data_dir: DataDir = None,
    on_bad_image: Annotated[
        Literal["error", "skip"] | None,
        typer.Option(
            help="error, or skip files that cannot be decoded. Default: as in training.",
            show_default=False,
        ),
    ] = None,
    max_pixels: MaxPixels = None,
    batch_size: Annotated[int | None, typer.Option(help="Images in memory at a time.", min=1)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.", rich_help_panel=_OUTPUT)] = False,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Print the table of classes as CSV.", rich_help_panel=_OUTPUT)
    ] = False,
    pictures: Annotated[
        int, typer.Option(help="Number of worst mistakes to show.", min=0, max=24, rich_help_panel=_OUTPUT)
    ] = 8,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Also write report, predictions and pictures to this folder.", rich_help_panel=_OUTPUT
        ),
    ] = None,
    log: Annotated[
        bool, typer.Option("--log/--no-log", help="Record the results with the run.", rich_help_panel=_OUTPUT)
    ] = True,
    device: Device = None,
    workers: Workers = None,
    tracking_uri: TrackingUri = None,
    quiet: Quiet = False,
) -> None:
    """Evaluate a model on its own test images, or on others: metrics with intervals, calibration, mistakes."""
    if as_json and as_csv:
        raise typer.BadParameter("give one of --json and --csv", param_hint="--csv")
    refuse_silence(quiet and not (as_json or as_csv or output or log), "--output DIR")
    from tl_cli.api.evaluation_run import EvaluateRequest
    from tl_cli.api.evaluation_run import evaluate as evaluate_model
    from tl_cli.contract import Columns
    from tl_cli.ui.evaluation_view import EvaluationView

    request = EvaluateRequest(
        run,
        split,
        data,
        str(data_dir) if data_dir else None,
        Columns(path=path_column, label=label_column, split=split_column),
        on_bad_image,
        max_pixels,
        batch_size,
        device or "auto",
        workers,
        tracking_uri,
        output,
        log,
    )
    form: Literal["report", "json", "csv"] = "json" if as_json else "csv" if as_csv else "report"
    with EvaluationView(form, pictures=pictures, quiet=quiet) as view:
        evaluation = evaluate_model(request, view, show=view.show, draw=view.draw)
    view.finish(evaluation)

"""``tl eval``: evaluates a recorded model on images that it was not trained on."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from tl_cli.choices import OnBadImage
from tl_cli.cli import params
from tl_cli.cli.params import in_output

EXAMPLES = """Examples:

tl eval

tl eval best --data ~/new-photos

tl eval 3f2a91c0 --split val --json

tl eval mlruns/1/3f2a91c0.../state/best --output report"""

_SPLIT_HELP = "Which images. Default: test; val if there are no test images; all images of a folder without splits."
_DATA_HELP = "Other images, with classes of the same names; or the new location of the model's own images."
_BAD_HELP = "error, or skip files that cannot be decoded. Default: as in training."
Part = Annotated[
    Literal["test", "val", "train", "all"] | None, typer.Option("--split", help=_SPLIT_HELP, show_default=False)
]
Data = Annotated[str | None, typer.Option(metavar="NAME|PATH", autocompletion=params.complete_data, help=_DATA_HELP)]
BadImage = Annotated[OnBadImage | None, typer.Option(help=_BAD_HELP, show_default=False)]
BatchSize = Annotated[int | None, typer.Option(help="Images in memory at a time.", min=1)]
AsCsv = Annotated[bool, in_output("--csv", help="Print the table of classes as CSV.")]
Pictures = Annotated[int, in_output(help="Number of worst mistakes to show.", min=0, max=24)]
Output = Annotated[
    Path | None, in_output(metavar="DIR", help="Also write report, predictions and pictures to this folder.")
]
Log = Annotated[bool, in_output("--log/--no-log", help="Record the results with the run.")]

app = typer.Typer(add_completion=False)


@app.command(epilog=EXAMPLES)
def evaluate(
    run: params.RunName = "latest",
    split: Part = None,
    data: Data = None,
    path_column: params.PathColumn = None,
    label_column: params.LabelColumn = None,
    split_column: params.SplitColumn = None,
    data_dir: params.DataDir = None,
    on_bad_image: BadImage = None,
    max_pixels: params.MaxPixels = None,
    batch_size: BatchSize = None,
    tta: params.Tta = None,
    precision: params.Precision = "fp32",
    as_json: params.AsJsonOutput = False,
    as_csv: AsCsv = False,
    pictures: Pictures = 8,
    output: Output = None,
    log: Log = True,
    device: params.Device = None,
    workers: params.Workers = None,
    tracking_uri: params.TrackingUri = None,
    quiet: params.Quiet = False,
) -> None:
    """Evaluate a model on its own test images, or on others: metrics with intervals, calibration, mistakes."""
    if as_json and as_csv:
        raise typer.BadParameter("give one of --json and --csv", param_hint="--csv")
    params.refuse_silence(quiet and not (as_json or as_csv or output or log), "--output DIR")
    from tl_cli.api import evaluation_run as api
    from tl_cli.contract import Columns
    from tl_cli.ui.evaluation_view import EvaluationView

    columns = Columns(path=path_column, label=label_column, split=split_column)
    folder = str(data_dir) if data_dir else None
    request = api.EvaluateRequest(
        run, split, data, folder, columns, on_bad_image, max_pixels, batch_size, tta, precision, device or "auto",
        workers, tracking_uri, output, log,
    )  # fmt: skip
    with EvaluationView("json" if as_json else "csv" if as_csv else "report", pictures=pictures, quiet=quiet) as view:
        evaluation = api.evaluate(request, view, show=view.show, draw=view.draw)
    view.finish(evaluation)

"""``tl data``: lists the published data sets, and examines a data set."""

from typing import Annotated

import typer

from tl_cli.cli import params
from tl_cli.cli.groups import ListsByDefault
from tl_cli.cli.params import AsJson, complete_data, complete_model, print_json

_SOURCE_HELP = "What --data takes: a folder, a CSV, an archive, a known set."
_LABELS_HELP = "Find probably wrong labels with a pretrained network."
_MODEL_HELP = "The network. Default: the bundled one."
_STRICT_HELP = "Exit 1 if files do not decode, or if splits or classes share an image."
Pattern = Annotated[
    str | None, typer.Argument(metavar="[PATTERN]", help="Part of a name or title.", autocompletion=complete_data)
]
Source = Annotated[str, typer.Argument(metavar="NAME|PATH", help=_SOURCE_HELP, autocompletion=complete_data)]
Labels = Annotated[bool, typer.Option("--labels/--no-labels", help=_LABELS_HELP)]
Model = Annotated[str | None, typer.Option(metavar="MODEL", help=_MODEL_HELP, autocompletion=complete_model)]
Most = Annotated[int, typer.Option("--most", help="Maximum images whose labels are compared.", min=10)]
Strict = Annotated[bool, typer.Option("--strict", help=_STRICT_HELP)]

app = typer.Typer(
    cls=ListsByDefault,
    add_completion=False,
    help="List the published data sets; examine a data set.",
    epilog="Examples:\n\ntl data\n\ntl data check ~/photos",
)


@app.command("list", epilog="Examples:\n\ntl data\n\ntl data cifar\n\ntl data list --json")
def list_(pattern: Pattern = None, as_json: AsJson = False) -> None:
    """List the data sets that --data takes by name, with classes, images and download size."""
    from tl_cli.api.data_list import list_data
    from tl_cli.ui.terminal.console import make_console
    from tl_cli.ui.terminal.listings import print_sets

    listed = list_data(pattern)
    if as_json:
        print_json(listed.to_list())
    else:
        print_sets(make_console(), listed.sets)


@app.command("check", epilog="Examples:\n\ntl data check ~/photos\n\ntl data check photos.csv --no-labels --json")
def check(
    source: Source,
    labels: Labels = True,
    model: Model = None,
    most: Most = 20_000,
    as_json: AsJson = False,
    strict: Strict = False,
    path_column: params.PathColumn = None,
    label_column: params.LabelColumn = None,
    split_column: params.SplitColumn = None,
    max_pixels: params.MaxPixels = None,
    data_dir: params.DataDir = None,
    device: params.Device = None,
    workers: params.Workers = None,
) -> None:
    """Examine a data set: balance, sizes, files that do not decode, duplicates, doubtful labels. Changes nothing."""
    from tl_cli.api.data_check import CheckRequest, check_data
    from tl_cli.contract import Columns
    from tl_cli.ui.terminal.console import make_console
    from tl_cli.ui.terminal.data_report import print_findings
    from tl_cli.ui.terminal.observer import TerminalObserver

    columns = Columns(path=path_column, label=label_column, split=split_column)
    request = CheckRequest(source, columns, labels, model, most, max_pixels, data_dir, device or "auto", workers)
    with TerminalObserver(make_console(stderr=True)) as observer:
        report = check_data(request, observer)
    if as_json:
        print_json(report.to_dict())
    else:
        print_findings(make_console(), report.findings, report.doubts)
    if strict and not report.is_clean:
        raise typer.Exit(1)

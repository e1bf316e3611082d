"""``tl data``: lists the published data sets, and examines a data set."""

from typing import Annotated

import typer

from tl_cli.cli.params import (
    DataDir,
    Device,
    LabelColumn,
    ListsByDefault,
    MaxPixels,
    PathColumn,
    SplitColumn,
    Workers,
    complete_data,
    complete_model,
)

EXAMPLES = """Examples:

tl data

tl data cifar

tl data list --json"""

app = typer.Typer(
    cls=ListsByDefault,
    help="List the published data sets; examine a data set.",
    epilog="Examples:\n\ntl data\n\ntl data check ~/photos",
    rich_markup_mode="rich",
)


@app.command("list", epilog=EXAMPLES)
def list_(
    pattern: Annotated[
        str | None,
        typer.Argument(
            metavar="[PATTERN]",
            help="Part of a name or title.",
            autocompletion=complete_data,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the sets as JSON.")] = False,
) -> None:
    """List the data sets that --data takes by name, with classes, images and download size."""
    from tl_cli.api.data_list import list_data
    from tl_cli.text import json_text
    from tl_cli.ui.terminal.console import make_console
    from tl_cli.ui.terminal.listings import print_sets

    found = list_data(pattern)
    if as_json:
        typer.echo(json_text(found.to_list(), indent=2))
    else:
        print_sets(make_console(), found.sets)


@app.command("check", epilog="Examples:\n\ntl data check ~/photos\n\ntl data check photos.csv --no-labels --json")
def check(
    source: Annotated[
        str,
        typer.Argument(
            metavar="NAME|PATH",
            autocompletion=complete_data,
            help="What --data takes: a folder, a CSV, an archive, a known set.",
        ),
    ],
    labels: Annotated[
        bool, typer.Option("--labels/--no-labels", help="Find probably wrong labels with a pretrained network.")
    ] = True,
    model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="The network. Default: the bundled one.", autocompletion=complete_model),
    ] = None,
    most: Annotated[int, typer.Option("--most", help="Maximum images whose labels are compared.", min=10)] = 20_000,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Exit 1 if files do not decode, or if splits or classes share an image."),
    ] = False,
    path_column: PathColumn = None,
    label_column: LabelColumn = None,
    split_column: SplitColumn = None,
    max_pixels: MaxPixels = None,
    data_dir: DataDir = None,
    device: Device = None,
    workers: Workers = None,
) -> None:
    """Examine a data set: balance, sizes, files that do not decode, duplicates, doubtful labels. Changes nothing."""
    from tl_cli.api.data_check import CheckRequest, check_data
    from tl_cli.contract import Columns
    from tl_cli.text import json_text
    from tl_cli.ui.terminal.console import make_console
    from tl_cli.ui.terminal.data_report import print_findings
    from tl_cli.ui.terminal.observer import TerminalObserver

    columns = Columns(path=path_column, label=label_column, split=split_column)
    request = CheckRequest(source, columns, labels, model, most, max_pixels, data_dir, device or "auto", workers)
    with TerminalObserver(make_console(stderr=True)) as observer:
        report = check_data(request, observer)
    if as_json:
        typer.echo(json_text(report.to_dict(), indent=2))
    else:
        print_findings(make_console(), report.findings, report.doubts)
    if strict and not report.is_clean:
        raise typer.Exit(1)

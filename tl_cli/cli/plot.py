"""``tl plot``: the curves of runs, in the terminal, as image files or JSON, or followed while a run trains."""

import signal
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from tl_cli.cli.params import Plain, TrackingUri, complete_run

EXAMPLES = """Examples:

tl plot --terminal

tl plot --terminal best 3f2a91c0 --x time

tl plot --follow

tl plot --terminal --metric 'val/*' --last 10

tl plot latest --output curves.pdf"""

_CONTENT, _OUTPUT = "Content", "Output"


def plot(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN",
            help="Ids or their beginnings, names, latest, best; a comparison stands for its trainings. "
            "Several runs share each chart. Default: the latest; with --follow the one that is training.",
            autocompletion=complete_run,
        ),
    ] = None,
    terminal: Annotated[
        bool, typer.Option("--terminal", "-t", help="Draw in the terminal, not to files.", rich_help_panel=_OUTPUT)
    ] = False,
    follow: Annotated[
        bool,
        typer.Option(
            "--follow", "-f", rich_help_panel=_OUTPUT,
            help="Follow a run in the terminal until it ends; without RUN, wait until one trains.",
        ),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="PATH", rich_help_panel=_OUTPUT,
            help="A folder for PNG files, or one .png, .svg or .pdf file with all charts. Default: this folder.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the points of the curves as JSON.", rich_help_panel=_OUTPUT)
    ] = False,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="A recorded metric, or a pattern such as 'val/*'; may be repeated.",
            rich_help_panel=_CONTENT,
        ),
    ] = None,
    x: Annotated[
        Literal["step", "epoch", "time"] | None,
        typer.Option("--x", help="The x axis of every chart.", rich_help_panel=_CONTENT),
    ] = None,
    smooth: Annotated[
        float | None,
        typer.Option(
            min=0, max=0.9999, metavar="WEIGHT", rich_help_panel=_CONTENT,
            help="Moving average: 0 for none, towards 1 for a longer one (span 2 / (1 - WEIGHT) - 1 points). "
            "Default: span 1/50 of the points.",
        ),
    ] = None,
    log: Annotated[
        bool,
        typer.Option("--log", help="Logarithmic axis for losses and learning rates.", rich_help_panel=_CONTENT),
    ] = False,
    last: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", rich_help_panel=_CONTENT,
            help="Only the last N epochs; steps with --x step, minutes with --x time.",
        ),
    ] = None,
    tracking_uri: TrackingUri = None,
    plain: Plain = False,
) -> None:  # fmt: skip
    """Draw the curves of runs: loss by iteration; accuracy, loss and learning rate by epoch."""
    if sum(((output is not None), terminal or follow, as_json)) > 1:
        raise typer.BadParameter("give one of --terminal or --follow, --output, --json")
    if output is not None:
        _check_ending(output)
    from tl_cli.api import run_curves
    from tl_cli.errors import Interrupted
    from tl_cli.ui.panels import PanelOptions
    from tl_cli.ui.terminal import curve_view
    from tl_cli.ui.terminal.console import json_text, make_console

    request = run_curves.CurvesRequest(tuple(runs or ()), tuple(metric or ()), tracking_uri)
    options = PanelOptions((), x, smooth, log, last)
    console = make_console(plain=plain)
    if follow:
        follower = curve_view.open_follower(console, options)
        try:
            with follower:
                result = run_curves.follow_curves(request, follower)
        except Interrupted as stopped:
            if stopped.signum != signal.SIGINT or not follower.runs:
                raise
            curve_view.print_left(console, follower.runs)
            raise typer.Exit(stopped.exit_code) from None
        curve_view.print_ended(console, result, options)
        return
    result = run_curves.read_curves(request)
    if as_json:
        typer.echo(json_text(result.to_dict()))
    elif terminal:
        curve_view.print_curves(console, result.runs, replace(options, metrics=result.metrics))
    else:
        from tl_cli.ui.figures.curve_figures import save_plot

        for path in save_plot(result.runs, replace(options, metrics=result.metrics), output or Path()):
            console.print(str(path), markup=False, soft_wrap=True)


def _check_ending(output: Path) -> None:
    from tl_cli.ui.panels import FORMATS

    if output.suffix and output.suffix.lower() not in FORMATS and not output.is_dir():
        raise typer.BadParameter(
            f"{output} has none of the endings {', '.join(FORMATS)}; a new folder for PNG files needs a name without "
            "a dot",
            param_hint="--output",
        )

"""``tl plot``: the curves of runs, in the terminal, as image files or JSON, or followed while a run trains."""

import signal
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from tl_cli.cli.params import Plain, TrackingUri, complete_run, in_output, print_json
from tl_cli.errors import Interrupted

EXAMPLES = """Examples:

tl plot --terminal

tl plot --terminal best 3f2a91c0 --x time

tl plot --follow

tl plot --terminal --metric 'val/*' --last 10

tl plot latest --output curves.pdf"""

app = typer.Typer(add_completion=False)

_content = partial(typer.Option, rich_help_panel="Content")

_RUNS_HELP = (
    "Ids or their beginnings, names, latest, best; a comparison stands for its trainings. "
    "Several runs share each chart. Default: the latest; with --follow the one that is training."
)
Runs = Annotated[list[str] | None, typer.Argument(metavar="RUN", help=_RUNS_HELP, autocompletion=complete_run)]
Terminal = Annotated[bool, in_output("--terminal", "-t", help="Draw in the terminal, not to files.")]
_FOLLOW_HELP = "Follow a run in the terminal until it ends; without RUN, wait until one trains."
_OUTPUT_HELP = "A folder for PNG files, or one .png, .svg or .pdf file with all charts. Default: this folder."
_METRIC_HELP = "A recorded metric, or a pattern such as 'val/*'; may be repeated."
_SMOOTH_HELP = (
    "Moving average: 0 for none, towards 1 for a longer one (span 2 / (1 - WEIGHT) - 1 points). "
    "Default: span 1/50 of the points."
)
_LAST_HELP = "Only the last N epochs; steps with --x step, minutes with --x time."
Follow = Annotated[bool, in_output("--follow", "-f", help=_FOLLOW_HELP)]
Output = Annotated[Path | None, in_output("--output", "-o", metavar="PATH", help=_OUTPUT_HELP)]
AsJson = Annotated[bool, in_output("--json", help="Print the points of the curves as JSON.")]
Metrics = Annotated[list[str] | None, _content(metavar="NAME", help=_METRIC_HELP)]
XAxis = Annotated[Literal["step", "epoch", "time"] | None, _content("--x", help="The x axis of every chart.")]
Smooth = Annotated[float | None, _content(min=0, max=0.9999, metavar="WEIGHT", help=_SMOOTH_HELP)]
Log = Annotated[bool, _content("--log", help="Logarithmic axis for losses and learning rates.")]
Last = Annotated[int | None, _content(min=1, metavar="N", help=_LAST_HELP)]


@app.command(epilog=EXAMPLES)
def plot(
    runs: Runs = None,
    terminal: Terminal = False,
    follow: Follow = False,
    output: Output = None,
    as_json: AsJson = False,
    metric: Metrics = None,
    x: XAxis = None,
    smooth: Smooth = None,
    log: Log = False,
    last: Last = None,
    tracking_uri: TrackingUri = None,
    plain: Plain = False,
) -> None:
    """Draw the curves of runs: loss by step; accuracy, loss and learning rate by epoch."""
    if sum(((output is not None), terminal or follow, as_json)) > 1:
        raise typer.BadParameter("give one of --terminal or --follow, --output, --json")
    if output is not None:
        _check_ending(output)
    from tl_cli.api import run_curves
    from tl_cli.ui.panels import PanelOptions
    from tl_cli.ui.terminal import curve_view
    from tl_cli.ui.terminal.console import make_console

    request = run_curves.CurvesRequest(tuple(runs or ()), tuple(metric or ()), tracking_uri)
    options = PanelOptions((), x, smooth, log, last)
    console = make_console(plain=plain)
    if follow:
        follower = curve_view.open_follower(console, options)
        try:
            with follower.screen:
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
        print_json(result.to_dict(), indent=None)
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

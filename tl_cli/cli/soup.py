"""``tl soup``: averages the weights of several runs into one model."""

from typing import Annotated

import typer

from tl_cli.cli import params

EXAMPLES = """Examples:

tl soup seed-0 seed-1 seed-2

tl soup 3f2a91c0 9c01d2e4 --run-name both --json"""

_RUNS_HELP = "Runs of one architecture, trained on the same images: with other seeds, settings or lengths."
Runs = Annotated[list[str], typer.Argument(metavar="RUN", help=_RUNS_HELP, autocompletion=params.complete_run)]
RunName = Annotated[str | None, typer.Option(help="Name of the new run.", show_default=False)]
Experiment = Annotated[str | None, typer.Option(help=params.EXPERIMENT_HELP, show_default=False)]

app = typer.Typer(add_completion=False)


@app.command(epilog=EXAMPLES)
def soup(
    runs: Runs,
    run_name: RunName = None,
    experiment: Experiment = None,
    device: params.Device = None,
    workers: params.Workers = None,
    as_json: params.AsJson = False,
    tracking_uri: params.TrackingUri = None,
    quiet: params.Quiet = False,
) -> None:
    """Average the weights of runs: the validation images decide which are kept, and the mean is tested once."""
    from tl_cli.api import soup_run as api
    from tl_cli.ui.terminal.console import make_console
    from tl_cli.ui.terminal.observer import TerminalObserver
    from tl_cli.ui.terminal.soup_report import print_soup

    request = api.SoupRequest(
        runs, run_name, experiment, device or "auto", workers, tracking_uri, params.command_line()
    )
    with TerminalObserver(make_console(quiet=quiet, stderr=as_json)) as observer:
        result = api.soup(request, observer)
    print_soup(result, make_console(quiet=quiet), tracking_uri, as_json=as_json)

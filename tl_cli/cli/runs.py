"""``tl runs``: lists, compares, closes, sends, removes and relocates recorded runs."""

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from tl_cli.cli.groups import ListsByDefault
from tl_cli.cli.params import (
    AsJson,
    TrackingUri,
    Yes,
    complete_run,
    parse_age,
    print_json,
    print_result,
    refuse_question,
)
from tl_cli.errors import uri_flag

EXAMPLES = """Examples:

tl runs

tl runs resnet --sort val

tl runs --status dead --json

tl runs --since 2d --data digits"""

_SHOWN = 20
_filter = partial(typer.Option, rich_help_panel="Which runs")
_run = partial(typer.Argument, metavar="RUN", autocompletion=complete_run)
Pattern = Annotated[
    str | None, typer.Argument(metavar="[PATTERN]", help="Part of a name, id, model or data, or a glob.")
]
Experiment = Annotated[str | None, _filter(help="Only this MLflow experiment.")]
Model = Annotated[str | None, _filter(metavar="NAME", help="Architecture, or a glob: 'resnet*'.")]
Data = Annotated[str | None, _filter(metavar="NAME", help="Part of the name of the data.")]
Status = Annotated[
    Literal["running", "finished", "failed", "killed", "dead", "silent"] | None, _filter(help="Status of the runs.")
]
Tags = Annotated[list[str] | None, _filter(metavar="K[=V]", help="Only runs with this tag; may be repeated.")]
Since = Annotated[str | None, _filter(metavar="AGE", help="Started within 30m, 12h, 2d or 3w.")]
Sort = Annotated[Literal["started", "val", "test", "time", "name", "model"], typer.Option(help="Order.")]
Reverse = Annotated[bool, typer.Option("--reverse", help="Reverse the order.")]
_LIMIT_HELP = f"Maximum rows; 0 is all. Default: {_SHOWN}, with --json all."
Limit = Annotated[int | None, typer.Option(help=_LIMIT_HELP, min=0)]
Names = Annotated[list[str], _run(help="Ids or their beginnings, names, or runs:/...")]
AsCsv = Annotated[bool, typer.Option("--csv", help="Print the epochs as CSV.")]
Equal = Annotated[bool, typer.Option("--all", help="Show equal settings, too.")]
Purge = Annotated[bool, typer.Option("--purge", help="Delete files, models and records permanently, to free the disk.")]
_OUTSIDE_HELP = (
    "With --purge: delete files of the run outside the folder of the store's database too, or keep them; asks by "
    "default."
)
Outside = Annotated[bool | None, typer.Option("--outside/--keep-outside", help=_OUTSIDE_HELP, show_default=False)]
_FOLDER_HELP = "Folder that holds the files of the runs now; default: the folder of the store's database."
Folder = Annotated[Path | None, typer.Argument(help=_FOLDER_HELP, exists=True, file_okay=False, show_default=False)]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would change; change nothing.")]

app = typer.Typer(
    cls=ListsByDefault,
    add_completion=False,
    help="List recorded runs with their curves; compare settings; close dead runs; remove; repair a moved store.",
    epilog="tl runs list --help shows filters and orders.\n\n"
    "Examples:\n\ntl runs\n\ntl runs resnet\n\ntl runs diff latest best\n\ntl runs close\n\n"
    "tl runs rm 3f2a91c0",
)


@app.command("list", epilog=EXAMPLES)
def list_(
    pattern: Pattern = None,
    experiment: Experiment = None,
    model: Model = None,
    data: Data = None,
    status: Status = None,
    tag: Tags = None,
    since: Since = None,
    sort: Sort = "started",
    reverse: Reverse = False,
    limit: Limit = None,
    as_json: AsJson = False,
    tracking_uri: TrackingUri = None,
) -> None:
    """List runs, the latest first: status, accuracies, and validation accuracy as a sparkline."""
    from tl_cli.api.run_store import RunFilter, list_runs
    from tl_cli.ui.terminal.console import make_console
    from tl_cli.ui.terminal.observer import TerminalObserver
    from tl_cli.ui.terminal.run_tables import print_runs

    most = limit if limit is not None else 0 if as_json else _SHOWN
    age_s = parse_age(since, "--since") if since else None
    request = RunFilter(pattern, experiment, model, data, status, tag or (), age_s, sort, reverse, most, tracking_uri)
    with TerminalObserver(make_console(stderr=True)) as observer:
        listed = list_runs(request, observer)
    if as_json:
        print_json(listed.to_list())
    else:
        print_runs(make_console(), listed.runs, total=listed.total, where=listed.store, filtered=listed.filtered)


@app.command("diff", epilog="Examples:\n\ntl runs diff latest best\n\ntl runs diff 3f2a91c0 81bb02d4 --all")
def diff(runs: Names, equal: Equal = False, as_json: AsJson = False, tracking_uri: TrackingUri = None) -> None:
    """Show different settings and the results of two or more runs."""
    from tl_cli.api.run_store import compare_settings
    from tl_cli.ui.terminal.console import make_console
    from tl_cli.ui.terminal.run_tables import print_differences

    result = compare_settings(runs, equal=equal, tracking_uri=tracking_uri)
    if as_json:
        print_json(result.to_dict())
    else:
        print_differences(make_console(), result.differences, result.equal or {})


@app.command("show", epilog="Examples:\n\ntl runs show latest\n\ntl runs show 3f2a91c0 --csv > epochs.csv")
def show(
    run: Annotated[str, _run(help="Id or its beginning, or name.")],
    as_csv: AsCsv = False,
    as_json: AsJson = False,
    tracking_uri: TrackingUri = None,
) -> None:
    """Show the recorded epochs of a run: losses, accuracies, learning rates, times."""
    if as_json and as_csv:
        raise typer.BadParameter("give one of --json and --csv", param_hint="--csv")
    from tl_cli.api.run_store import show_run
    from tl_cli.ui.terminal.run_tables import epochs_csv, print_run

    details = show_run(run, tracking_uri)
    if as_csv:
        typer.echo(epochs_csv(details), nl=False)
    else:
        print_result(details, print_run, as_json=as_json)


@app.command("close", epilog="Examples:\n\ntl runs close\n\ntl runs close 3f2a91c0")
def close(
    runs: Annotated[list[str] | None, _run(help="Default: all dead runs.")] = None,
    as_json: AsJson = False,
    tracking_uri: TrackingUri = None,
) -> None:
    """Record runs whose process has ended as killed, at the time of their last heartbeat.

    A dead run lost its process on this machine. A silent run is on another machine and has sent no heartbeat for
    minutes; it is closed only if you name it.
    """
    from tl_cli.api.run_changes import close_runs
    from tl_cli.ui.terminal.console import make_console
    from tl_cli.ui.terminal.observer import TerminalObserver
    from tl_cli.ui.terminal.run_changes import print_closed

    with TerminalObserver(make_console(stderr=True)) as observer:
        closed = close_runs(runs or (), tracking_uri, observer)
    print_result(closed, partial(print_closed, flag=uri_flag(tracking_uri)), as_json=as_json)


@app.command("sync", epilog="Examples:\n\ntl runs sync\n\ntl runs sync 3f2a91c0 --tracking-uri http://server:5000")
def sync(
    runs: Annotated[list[str] | None, _run(help="Default: all runs made in this folder.")] = None,
    as_json: AsJson = False,
    tracking_uri: TrackingUri = None,
) -> None:
    """Send what the tracking store did not receive during training, from the journals in this folder.

    Exits with 1 if something was not sent.
    """
    from tl_cli.api.run_changes import sync_runs
    from tl_cli.ui.terminal.console import make_console
    from tl_cli.ui.terminal.observer import TerminalObserver
    from tl_cli.ui.terminal.run_changes import print_sent

    with TerminalObserver(make_console(stderr=True)) as observer:
        sent = sync_runs(runs or (), tracking_uri, observer)
    print_result(sent, print_sent, as_json=as_json)
    if not sent.complete:
        raise typer.Exit(1)


@app.command("rm", epilog="Examples:\n\ntl runs rm 3f2a91c0\n\ntl runs rm 3f2a91c0 81bb02d4 --purge --yes")
def rm(
    runs: Names,
    purge: Purge = False,
    outside: Outside = None,
    yes: Yes = False,
    as_json: AsJson = False,
    tracking_uri: TrackingUri = None,
) -> None:
    """Remove runs, after a question; without --purge their models and files stay, and MLflow can restore them."""
    refuse_question(as_json and not yes)
    from tl_cli.api.run_changes import remove_runs
    from tl_cli.ui.terminal.console import make_console
    from tl_cli.ui.terminal.run_changes import TerminalConsent, print_removed

    consent = None if yes else TerminalConsent(make_console())
    removed = remove_runs(runs, consent, purge=purge, outside=outside, tracking_uri=tracking_uri)
    print_result(removed, print_removed, as_json=as_json)
    if not removed.complete:
        raise typer.Exit(1)


@app.command("relocate", epilog="Examples:\n\ntl runs relocate --dry-run\n\ntl runs relocate /mnt/disk/artifacts")
def relocate(
    folder: Folder = None, dry_run: DryRun = False, as_json: AsJson = False, tracking_uri: TrackingUri = None
) -> None:
    """Record where the files of runs are, after a project was copied or moved; no file is touched.

    MLflow records absolute paths, so a copied project reads and writes the files of the original, and a moved one
    those at the former path.
    """
    from tl_cli.api.run_changes import relocate_runs
    from tl_cli.ui.terminal.run_changes import print_relocation

    relocation = relocate_runs(folder, dry_run=dry_run, tracking_uri=tracking_uri)
    print_result(relocation, print_relocation, as_json=as_json)
    if relocation.missing and not relocation.changes:
        raise typer.Exit(1)

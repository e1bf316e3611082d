"""``tl runs``: lists, compares, closes, sends, removes and relocates recorded runs."""

import re
from pathlib import Path
from typing import Annotated, Literal

import typer

from tl_cli.cli.params import ListsByDefault, TrackingUri, complete_run
from tl_cli.errors import uri_flag

EXAMPLES = """Examples:

tl runs

tl runs resnet --sort val

tl runs --status dead --json

tl runs --since 2d --data digits"""

_SHOWN = 20
_FILTERS = "Which runs"
Names = Annotated[
    list[str],
    typer.Argument(metavar="RUN", help="Ids or their beginnings, names, or runs:/...", autocompletion=complete_run),
]

app = typer.Typer(
    cls=ListsByDefault,
    help="List recorded runs with their curves; compare settings; close dead runs; remove; repair a moved store.",
    epilog="tl runs list --help shows filters and orders.\n\n"
    "Examples:\n\ntl runs\n\ntl runs resnet\n\ntl runs diff latest best\n\ntl runs close\n\n"
    "tl runs rm 3f2a91c0",
    rich_markup_mode="rich",
)


@app.command("list", epilog=EXAMPLES)
def list_(
    pattern: Annotated[
        str | None, typer.Argument(metavar="[PATTERN]", help="Part of a name, id, model or data, or a glob.")
    ] = None,
    experiment: Annotated[
        str | None, typer.Option(help="Only this MLflow experiment.", rich_help_panel=_FILTERS)
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Architecture, or a glob: 'resnet*'.", rich_help_panel=_FILTERS)
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="NAME", help="Part of the name of the data.", rich_help_panel=_FILTERS)
    ] = None,
    status: Annotated[
        Literal["running", "finished", "failed", "killed", "dead", "silent"] | None,
        typer.Option(help="Status of the runs.", rich_help_panel=_FILTERS),
    ] = None,
    tag: Annotated[
        list[str] | None,
        typer.Option(metavar="K[=V]", help="Only runs with this tag; may be repeated.", rich_help_panel=_FILTERS),
    ] = None,
    since: Annotated[
        str | None, typer.Option(metavar="AGE", help="Started within 30m, 12h, 2d or 3w.", rich_help_panel=_FILTERS)
    ] = None,
    sort: Annotated[
        Literal["started", "val", "test", "time", "name", "model"], typer.Option(help="Order.")
    ] = "started",
    reverse: Annotated[bool, typer.Option("--reverse", help="Reverse the order.")] = False,
    limit: Annotated[
        int | None, typer.Option(help=f"Maximum rows; 0 is all. Default: {_SHOWN}, with --json all.", min=0)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the runs as JSON.")] = False,
    tracking_uri: TrackingUri = None,
) -> None:  # fmt: skip
    """List runs, the latest first: status, accuracies, and validation accuracy as a sparkline."""
    from tl_cli.api.run_store import RunFilter, list_runs
    from tl_cli.text import json_text
    from tl_cli.ui.terminal.console import make_console
    from tl_cli.ui.terminal.observer import TerminalObserver
    from tl_cli.ui.terminal.run_tables import print_runs

    most = limit if limit is not None else 0 if as_json else _SHOWN
    age = _seconds(since) if since else None
    request = RunFilter(pattern, experiment, model, data, status, tag or (), age, sort, reverse, most, tracking_uri)
    found = list_runs(request, TerminalObserver(make_console(stderr=True)))
    if as_json:
        typer.echo(json_text(found.to_list(), indent=2))
    else:
        print_runs(make_console(), found.runs, total=found.total, where=found.store, filtered=found.filtered)


@app.command("diff", epilog="Examples:\n\ntl runs diff latest best\n\ntl runs diff 3f2a91c0 81bb02d4 --all")
def diff(
    runs: Names,
    everything: Annotated[bool, typer.Option("--all", help="Show equal settings, too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the differences as JSON.")] = False,
    tracking_uri: TrackingUri = None,
) -> None:
    """Show different settings and the results of two or more runs."""
    from tl_cli.api.run_store import compare_settings
    from tl_cli.text import json_text
    from tl_cli.ui.terminal.console import make_console
    from tl_cli.ui.terminal.run_tables import print_differences

    found = compare_settings(runs, equal=everything, tracking_uri=tracking_uri)
    if as_json:
        typer.echo(json_text(found.to_dict(), indent=2))
    else:
        print_differences(make_console(), found.differences, found.equal or {})


@app.command("show", epilog="Examples:\n\ntl runs show latest\n\ntl runs show 3f2a91c0 --csv > epochs.csv")
def show(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="Id or its beginning, or name.", autocompletion=complete_run)
    ],
    as_csv: Annotated[bool, typer.Option("--csv", help="Print the epochs as CSV.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the run and its epochs as JSON.")] = False,
    tracking_uri: TrackingUri = None,
) -> None:
    """Show the recorded epochs of a run: losses, accuracies, learning rates, times."""
    if as_json and as_csv:
        raise typer.BadParameter("give one of --json and --csv", param_hint="--csv")
    from tl_cli.api.run_store import show_run
    from tl_cli.text import json_text
    from tl_cli.ui.terminal.console import make_console
    from tl_cli.ui.terminal.run_tables import epochs_csv, print_run

    found = show_run(run, tracking_uri)
    if as_json:
        typer.echo(json_text(found.to_dict(), indent=2))
    elif as_csv:
        typer.echo(epochs_csv(found), nl=False)
    else:
        print_run(make_console(), found)


@app.command("close", epilog="Examples:\n\ntl runs close\n\ntl runs close 3f2a91c0")
def close(
    runs: Annotated[
        list[str] | None, typer.Argument(metavar="RUN", help="Default: all dead runs.", autocompletion=complete_run)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the closed runs as JSON.")] = False,
    tracking_uri: TrackingUri = None,
) -> None:
    """Record runs whose process has ended as killed, at the time of their last heartbeat.

    A dead run lost its process on this machine. A silent run is on another machine and has sent no heartbeat for
    minutes; it is closed only if you name it.
    """
    from tl_cli.api.run_changes import close_runs
    from tl_cli.text import json_text
    from tl_cli.ui.terminal.console import make_console
    from tl_cli.ui.terminal.observer import TerminalObserver
    from tl_cli.ui.terminal.run_changes import print_closed

    closed = close_runs(runs or (), tracking_uri, TerminalObserver(make_console(stderr=True)))
    if as_json:
        typer.echo(json_text(closed.to_dict(), indent=2))
    else:
        print_closed(make_console(), closed, uri_flag(tracking_uri))


@app.command("sync", epilog="Examples:\n\ntl runs sync\n\ntl runs sync 3f2a91c0 --tracking-uri http://server:5000")
def sync(
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="RUN", help="Default: all runs made in this folder.", autocompletion=complete_run),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was sent as JSON.")] = False,
    tracking_uri: TrackingUri = None,
) -> None:
    """Send what the tracking store did not receive during training, from the journals in this folder.

    Exits with 1 if something was not sent.
    """
    from tl_cli.api.run_changes import sync_runs
    from tl_cli.text import json_text
    from tl_cli.ui.terminal.console import make_console
    from tl_cli.ui.terminal.observer import TerminalObserver
    from tl_cli.ui.terminal.run_changes import print_sent

    sent = sync_runs(runs or (), tracking_uri, TerminalObserver(make_console(stderr=True)))
    if as_json:
        typer.echo(json_text(sent.to_dict(), indent=2))
    else:
        print_sent(make_console(), sent)
    if not sent.complete:
        raise typer.Exit(1)


@app.command("rm", epilog="Examples:\n\ntl runs rm 3f2a91c0\n\ntl runs rm 3f2a91c0 81bb02d4 --purge --yes")
def rm(
    runs: Names,
    purge: Annotated[
        bool, typer.Option("--purge", help="Delete files, models and records permanently, to free the disk.")
    ] = False,
    outside: Annotated[
        bool | None,
        typer.Option(
            "--outside/--keep-outside",
            help="With --purge: delete files of the run outside the folder of the store's database too, or keep them; "
            "asks by default.",
            show_default=False,
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the removed runs as JSON; needs --yes.")] = False,
    tracking_uri: TrackingUri = None,
) -> None:
    """Remove runs, after a question; without --purge their models and files stay, and MLflow can restore them."""
    if as_json and not yes:
        raise typer.BadParameter("--json cannot ask; add --yes", param_hint="--json")
    from tl_cli.api.run_changes import remove_runs
    from tl_cli.text import json_text
    from tl_cli.ui.terminal.console import make_console
    from tl_cli.ui.terminal.run_changes import TerminalConsent, print_removed

    console = make_console()
    consent = None if yes else TerminalConsent(console)
    removed = remove_runs(runs, consent, purge=purge, outside=outside, tracking_uri=tracking_uri)
    if as_json:
        typer.echo(json_text(removed.to_dict(), indent=2))
    else:
        print_removed(console, removed)
    if not removed.complete:
        raise typer.Exit(1)


@app.command("relocate", epilog="Examples:\n\ntl runs relocate --dry-run\n\ntl runs relocate /mnt/disk/artifacts")
def relocate(
    folder: Annotated[
        Path | None,
        typer.Argument(
            help="Folder that holds the files of the runs now; default: the folder of the store's database.",
            exists=True,
            file_okay=False,
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change; change nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the changes as JSON.")] = False,
    tracking_uri: TrackingUri = None,
) -> None:
    """Record where the files of runs are, after a project was copied or moved; no file is touched.

    MLflow records absolute paths, so a copied project reads and writes the files of the original, and a moved one
    those at the former path.
    """
    from tl_cli.api.run_changes import relocate_runs
    from tl_cli.text import json_text
    from tl_cli.ui.terminal.console import make_console
    from tl_cli.ui.terminal.run_changes import print_relocation

    found = relocate_runs(folder, dry_run=dry_run, tracking_uri=tracking_uri)
    if as_json:
        typer.echo(json_text(found.to_dict(), indent=2))
    else:
        print_relocation(make_console(), found)
    if found.missing and not found.changes:
        raise typer.Exit(1)


def _seconds(age: str) -> float:
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([smhdw])\s*", age.lower())
    if found is None:
        raise typer.BadParameter(f"{age!r} is not an age such as 30m, 12h, 2d or 3w", param_hint="--since")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}[found[2]]

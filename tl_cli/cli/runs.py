"""``tl runs``: what has been recorded; closing what died, removing what is not wanted, and what tells runs apart."""

import re
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tl_cli.cli.params import ListsByDefault, TrackingUri, complete_run, uri_flag

if TYPE_CHECKING:
    from mlflow.entities import Run  # noqa: TID251 (a type)

    from tl_cli.tracking.facts import RunFacts
    from tl_cli.tracking.listing import Files
    from tl_cli.tracking.store import Store

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
    help="List recorded runs with their curves; compare settings; close dead ones; remove; repair a moved store.",
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
        str | None, typer.Option(help="Of this MLflow experiment alone.", rich_help_panel=_FILTERS)
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Architecture, or a glob: 'resnet*'.", rich_help_panel=_FILTERS)
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="NAME", help="Part of what the data are called.", rich_help_panel=_FILTERS)
    ] = None,
    status: Annotated[
        Literal["running", "finished", "failed", "killed", "dead", "silent"] | None,
        typer.Option(help="How they stand.", rich_help_panel=_FILTERS),
    ] = None,
    tag: Annotated[
        list[str] | None,
        typer.Option(metavar="K[=V]", help="With this tag; may be repeated.", rich_help_panel=_FILTERS),
    ] = None,
    since: Annotated[
        str | None, typer.Option(metavar="AGE", help="Begun in the last 30m, 12h, 2d or 3w.", rich_help_panel=_FILTERS)
    ] = None,
    sort: Annotated[
        Literal["started", "val", "test", "time", "name", "model"], typer.Option(help="Order.")
    ] = "started",
    reverse: Annotated[bool, typer.Option("--reverse", help="The other way round.")] = False,
    limit: Annotated[int | None, typer.Option(help=f"Rows; 0 is all, as with --json; else {_SHOWN}.", min=0)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the runs as JSON.")] = False,
    tracking_uri: TrackingUri = None,
) -> None:  # fmt: skip
    """List runs, the latest first: how they stand, their accuracies, and validation accuracy as a spark line."""
    from tl_cli.tracking.listing import facts_of, with_accuracies, with_curves
    from tl_cli.tracking.store import open_store
    from tl_cli.ui.terminal.console import make_console
    from tl_cli.ui.terminal.run_tables import print_runs

    oldest = time.time() - _seconds(since) if since else None
    store = open_store(tracking_uri)
    _check_experiment(store, experiment)
    everything = store.runs()
    ids = {run.info.run_id: run for run in everything}
    wanted = _Wanted(pattern, experiment, model, data, status, oldest)
    found = [
        facts
        for facts in facts_of(store, everything)
        if wanted.lets_through(facts) and _has_tags(ids[facts.run_id], tag or ())
    ]
    if sort == "val":
        found = with_accuracies(store, everything, found)
    found = _sorted(found, sort, reverse=reverse)
    most = limit if limit is not None else 0 if as_json else _SHOWN
    shown = with_curves(store, everything, found[:most] if most else found)
    if as_json:
        _print_json([_as_data(facts) for facts in shown])
        return
    print_runs(make_console(), shown, total=len(found), where=store.uri, filtered=len(found) < len(everything))
    _notice_moves(store)


def _notice_moves(store: "Store") -> None:
    from tl_cli.tracking.places import find_moves
    from tl_cli.ui.terminal.console import print_warning

    if store.database is not None and (count := (found := find_moves(store.database)).count("runs")):
        of = f"{count:,} {'run' if count == 1 else 'runs'}"
        print_warning(
            f"this store was copied or moved: the files of {of} are recorded elsewhere, such as in "
            f"{found.moves[0].old}; tl runs relocate --dry-run shows what would change, tl runs relocate repairs it"
        )


@app.command("diff", epilog="Examples:\n\ntl runs diff latest best\n\ntl runs diff 3f2a91c0 81bb02d4 --all")
def diff(
    runs: Names,
    everything: Annotated[bool, typer.Option("--all", help="Settings that are equal, too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the differences as JSON.")] = False,
    tracking_uri: TrackingUri = None,
) -> None:
    """Show what was set differently in two or more runs, and what they came to."""
    from tl_cli.errors import UsageError
    from tl_cli.tracking.listing import differences
    from tl_cli.tracking.store import open_store
    from tl_cli.ui.terminal.console import make_console
    from tl_cli.ui.terminal.run_tables import print_differences

    store = open_store(tracking_uri)
    found = _find(store, runs)
    if len(found) < 2:
        raise UsageError(_only_one(store, runs, found[0]))
    apart, alike = differences(store, found)
    if as_json:
        _print_json(
            {
                "runs": [_as_data(facts) for facts in apart.runs],
                "settings": apart.settings,
                "made_with": apart.made_with,
                "results": apart.results,
                **({"alike": alike} if everything else {}),
            }
        )
        return
    print_differences(make_console(), apart, alike if everything else {})


@app.command("show", epilog="Examples:\n\ntl runs show latest\n\ntl runs show 3f2a91c0 --csv > epochs.csv")
def show(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="Id or its beginning, or name.", autocompletion=complete_run)
    ],
    as_csv: Annotated[bool, typer.Option("--csv", help="Print the epochs as CSV.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the run and its epochs as JSON.")] = False,
    tracking_uri: TrackingUri = None,
) -> None:
    """Show the epochs of a run, as far as they are recorded: losses, accuracies, learning rates, times."""
    if as_json and as_csv:
        raise typer.BadParameter("give one of --json and --csv", param_hint="--csv")
    from tl_cli.errors import UsageError
    from tl_cli.evaluation.scores import EPOCH_SCORES
    from tl_cli.text import csv_text
    from tl_cli.tracking.listing import facts_of, with_curves
    from tl_cli.tracking.reader import read_history
    from tl_cli.tracking.store import is_parent, named, open_store, short_id
    from tl_cli.ui.terminal.console import make_console
    from tl_cli.ui.terminal.progress import epoch_table
    from tl_cli.ui.terminal.run_tables import runs_table

    store = open_store(tracking_uri)
    found = store.find(run)
    if is_parent(found):
        raise UsageError(f"{named(found)} is a comparison, without epochs of its own; see tl compare {short_id(found)}")
    history = read_history(store, found)
    if as_csv:
        names = ["epoch", "step", *EPOCH_SCORES]
        typer.echo(csv_text([names, *(list(epoch.to_dict().values()) for epoch in history.epochs)]), nl=False)
        return
    (facts,) = with_curves(store, [found], facts_of(store, [found], store.runs()))
    if as_json:
        _print_json({**_as_data(facts), "by_epoch": [epoch.to_dict() for epoch in history.epochs]})
        return
    console = make_console()
    console.print(runs_table(console, [facts]))
    console.print()
    if history.epochs:
        console.print(epoch_table(history.epochs, history.best, console.width))
    else:
        console.print("no epoch is recorded", style="dim")


@app.command("close", epilog="Examples:\n\ntl runs close\n\ntl runs close 3f2a91c0")
def close(
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="RUN", help="By default all that are dead.", autocompletion=complete_run),
    ] = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Record runs whose process is gone as killed, at the time when they were last heard of.

    A run that is dead lost its process on this machine. One that is silent runs elsewhere and has not been heard of
    for minutes: it is closed when it is named.
    """
    from tl_cli.errors import UsageError
    from tl_cli.tracking import listing
    from tl_cli.tracking.store import named, open_store, short_id
    from tl_cli.ui.terminal.console import make_console, plain, print_warning

    store = open_store(tracking_uri)
    found = _find(store, runs) if runs else [run for run in store.runs() if listing.status_of(run) == "dead"]
    console = make_console()
    if not found:
        console.print("no run is dead")
    for run in found:
        try:
            listing.close(store, run)
        except UsageError as error:
            if runs:
                raise
            print_warning(str(error))  # it is just being resumed, say
            continue
        resume = f"tl train --resume {short_id(run)}{uri_flag(tracking_uri)}"
        console.print(plain(f"{named(run)} is recorded as killed; to resume it: {resume}"), soft_wrap=True)


@app.command("sync", epilog="Examples:\n\ntl runs sync\n\ntl runs sync 3f2a91c0 --tracking-uri http://server:5000")
def sync(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN", help="By default all that were made in this folder.", autocompletion=complete_run
        ),
    ] = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Send to the tracking store what it did not take while runs went on: their journals are in this folder.

    Exits with 1 if something was not sent.
    """
    from tl_cli.errors import RunNotFoundError, TrackingError, UsageError
    from tl_cli.tracking.store import named, open_store
    from tl_cli.tracking.sync import goes_on, journaled_runs, lost, restore
    from tl_cli.tracking.sync import sync as send
    from tl_cli.ui.terminal.console import make_console, plain, print_warning

    store = open_store(tracking_uri)
    console = make_console()
    asked = runs or journaled_runs()
    if not asked:
        raise UsageError("no run was made in this folder: mlruns/ holds no journal")
    is_whole = True
    for name in asked:
        lost_id = ""
        try:
            run: Run | None = store.find(name)
        except RunNotFoundError:
            run, lost_id = None, lost(store, name, is_named=bool(runs))
            if not lost_id:
                if runs:
                    raise
                continue  # of another store, or removed
        if run is not None and goes_on(store, run):
            if runs:
                raise UsageError(f"{named(run)} is running, and sends by itself")
            continue
        try:
            if run is None:
                sent = restore(store, lost_id)
                run = store.find(lost_id)
                console.print(plain(f"{named(run)} was not in {store.uri}; it is recorded again"), soft_wrap=True)
            else:
                sent = send(store, run)
        except TrackingError as error:
            if runs:
                raise
            print_warning(f"{named(run) if run else lost_id}: {error}")
            is_whole = False
            continue
        for refused in sent.refused:
            print_warning(f"{named(run)}: the store refuses {refused}")
        for failed in sent.failed:
            print_warning(f"{named(run)}: not sent: {failed}")
        is_whole = is_whole and not sent.refused and not sent.failed
        if sent.points or sent.pieces or sent.status or runs:
            status = f", recorded as {sent.status.lower()}" if sent.status else ""
            console.print(
                plain(f"{named(run)}: {sent.points:,} points and {sent.pieces} other pieces sent{status}"),
                soft_wrap=True,
            )
    if not is_whole:
        raise typer.Exit(1)
    console.print("the store has everything")


@app.command("rm", epilog="Examples:\n\ntl runs rm 3f2a91c0\n\ntl runs rm 3f2a91c0 81bb02d4 --purge --yes")
def rm(
    runs: Names,
    purge: Annotated[
        bool, typer.Option("--purge", help="Delete files, models and records for good, and free the disk.")
    ] = False,
    outside: Annotated[
        bool | None,
        typer.Option(
            "--outside/--keep-outside",
            help="With --purge: files of the run that are not in the folder of the store's database are deleted too, "
            "or stay; asked by default.",
            show_default=False,
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    tracking_uri: TrackingUri = None,
) -> None:
    """Remove runs, after a question; without --purge their models and files stay, and MLflow can restore them."""
    from tl_cli.tracking import listing
    from tl_cli.tracking.overview import refresh
    from tl_cli.tracking.ownership import owned
    from tl_cli.tracking.store import named, open_store
    from tl_cli.ui.terminal.console import make_console, plain

    store = open_store(tracking_uri)
    found = _find(store, runs, or_removed=purge)
    for run in found:
        with owned(store, run, from_readers=True):
            pass
    console = make_console()
    files = [listing.files_of(store, run) for run in found]
    if purge:
        listing.check_purgeable(store, found)
        if yes and outside is None:
            _refuse_outside(store, found, files)
    if not yes:
        _ask(store, found, sum(each.size(outside=not purge) for each in files), purge=purge)
    if not purge:
        for run in found:
            listing.remove(store, run)
            console.print(plain(f"{named(run)} is removed"), soft_wrap=True)
    done = [_purge(store, run, each, outside=outside) for run, each in zip(found, files, strict=True)] if purge else []
    refresh(store, {str(run.info.experiment_id) for run in found})
    stays = sum(each.size() for each in files) / 1e6
    if not purge and stays:
        restored = "mlflow runs restore --run-id ID brings one back, tl runs rm --purge ID frees the disk"
        console.print(f"their {stays:,.0f} MB stay on the disk; {restored}", style="dim", soft_wrap=True)
    if not all(done):
        raise typer.Exit(1)


def _refuse_outside(store: "Store", runs: "Sequence[Run]", files: "Sequence[Files]") -> None:
    """Refuse to delete without a question what may be somebody else's.

    Raises:
        UsageError: files of a run are not in the folder of the store's database.
    """
    from tl_cli.errors import UsageError, some
    from tl_cli.tracking.store import named

    for run, each in zip(runs, files, strict=True):
        if each.outside:
            raise UsageError(
                f"files of {named(run)} are outside the folder of {store.uri}: {some(list(map(str, each.outside)))}. "
                "--outside deletes them too, --keep-outside leaves them. If this project was copied or moved: "
                "tl runs relocate"
            )


def _purge(store: "Store", run: "Run", files: "Files", *, outside: bool | None) -> bool:
    """Delete a run for good, and say what is free and what stays; return whether all is done."""
    from tl_cli.tracking.listing import purge
    from tl_cli.tracking.store import named, short_id
    from tl_cli.ui.terminal.console import make_console, plain, print_warning

    console = make_console()
    if files.outside and outside is None:
        for folder in files.outside:
            console.print(plain(f"outside the store's folder: {folder}"), soft_wrap=True)
        size = (files.size() - files.size(outside=False)) / 1e6
        outside = typer.confirm(f"Delete these of {named(run)}, too ({size:,.0f} MB)?", default=False)
    size = files.size()
    stays = purge(store, run, (*files.inside, *(files.outside if outside else ())))
    free = f"{(size - files.size()) / 1e6:,.0f} MB are free"
    if stays:
        print_warning(
            f"{named(run)} is not deleted yet, {free}; what stays:\n" + "\n".join(stays[:_SHOWN])
            + (f"\nand {len(stays) - _SHOWN} more" if len(stays) > _SHOWN else "")
            + f"\nits record stays, too. Once they can be deleted: tl runs rm {short_id(run)} --purge"
        )  # fmt: skip
        return False
    console.print(plain(f"{named(run)} is deleted, {free}"), soft_wrap=True)
    for folder in (*files.shared, *(() if outside else files.outside)):
        console.print(plain(f"{folder} stays"), soft_wrap=True)
    return True


def _ask(store: "Store", runs: "Sequence[Run]", size: int, *, purge: bool) -> None:
    """Show what would go, and ask.

    Args:
        size: of their files, in bytes.

    Raises:
        UsageError: nobody is there to answer.
        typer.Exit: the answer is no.
    """
    from tl_cli.errors import UsageError
    from tl_cli.tracking.listing import facts_of
    from tl_cli.tracking.store import children_of, is_parent, named
    from tl_cli.ui.terminal.console import make_console, plain
    from tl_cli.ui.terminal.run_tables import runs_table

    if not sys.stdin.isatty():
        raise UsageError("nobody is there to be asked; --yes removes without a question")
    console = make_console()
    console.print(runs_table(console, facts_of(store, runs, store.runs())))
    going = {run.info.run_id for run in runs}
    for run in runs:
        children = children_of(store, run.info.run_id) if is_parent(run) else []
        left = [child for child in children if child.info.run_id not in going]
        if left:
            console.print(plain(f"{named(run)} is a comparison; its {len(left)} trainings stay", "yellow"))
    how = f"Delete for good ({size / 1e6:,.0f} MB)" if purge else "Remove"
    if not typer.confirm(f"{how} {'this run' if len(runs) == 1 else f'these {len(runs)} runs'}?"):
        console.print("nothing was removed")
        raise typer.Exit(1)


@app.command("relocate", epilog="Examples:\n\ntl runs relocate --dry-run\n\ntl runs relocate /mnt/disk/artifacts")
def relocate(
    folder: Annotated[
        Path | None,
        typer.Argument(
            help="Folder that holds the files of the runs now; by default that of the store's database.",
            exists=True,
            file_okay=False,
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change; change nothing.")] = False,
    tracking_uri: TrackingUri = None,
) -> None:
    """Record where the files of runs are, after a project was copied or moved; no file is touched.

    MLflow records absolute paths, so a copy of a project reads and writes the original's files, and a moved one those
    at the former place.
    """
    from tl_cli.errors import UsageError
    from tl_cli.tracking.ownership import check_stopped
    from tl_cli.tracking.places import find_moves
    from tl_cli.tracking.places import relocate as record
    from tl_cli.tracking.store import open_store
    from tl_cli.ui.terminal.console import make_console, plain, print_warning

    store = open_store(tracking_uri)
    if store.database is None:
        raise UsageError(f"{store.uri} is no sqlite database; relocate works on those alone")
    for run in store.runs(matching="attributes.status = 'RUNNING'"):
        check_stopped(run)
    found = find_moves(store.database, folder)
    console = make_console()
    for move in found.moves:
        if move.is_main:
            console.print(plain(f"{move.old} -> {move.new}"), soft_wrap=True)
    if not dry_run:
        record(store.database, found)
    counts = {table.replace("_", " "): found.count(table) for table in _RELOCATED}
    counted = ", ".join(f"{count:,} {name.removesuffix('s') if count == 1 else name}" for name, count in counts.items())
    done = f"{counted} {'would be' if dry_run else 'are now'} recorded at the new location"
    console.print(done if found.moves else "nothing to relocate: no record leads elsewhere", soft_wrap=True)
    for stray_id, place in found.strays:
        print_warning(f"the files of {stray_id} are not here; recorded: {place}")
    if found.strays and not found.moves:
        raise typer.Exit(1)


_RELOCATED = ("experiments", "runs", "logged_models")


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Which runs are listed."""

    pattern: str | None
    experiment: str | None
    model: str | None
    data: str | None
    status: str | None
    oldest: float | None

    def lets_through(self, facts: "RunFacts") -> bool:
        """Whether a run passes every filter."""
        return (
            (self.status is None or facts.status == self.status)
            and (self.oldest is None or facts.started >= self.oldest)
            and self.experiment in (None, facts.experiment)
            and (self.pattern is None or any(_matches(name, self.pattern) for name in self._names(facts)))
            and (self.model is None or _matches(facts.model or "", self.model, whole=True))
            and (self.data is None or _matches(facts.data or "", self.data))
        )

    def _names(self, facts: "RunFacts") -> tuple[str, ...]:
        return (facts.name, facts.run_id, facts.model or "", facts.data or "")


def _matches(name: str, pattern: str, *, whole: bool = False) -> bool:
    from fnmatch import fnmatchcase

    name, pattern = name.lower(), pattern.lower()
    if set(pattern) & set("*?["):
        return fnmatchcase(name, pattern)
    return name == pattern if whole else pattern in name


def _has_tags(run: "Run", wanted: Sequence[str]) -> bool:
    tags = run.data.tags
    pairs = [pair.partition("=") for pair in wanted]
    return all(key in tags and (not equals or tags[key] == value) for key, equals, value in pairs)


def _seconds(age: str) -> float:
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([smhdw])\s*", age.lower())
    if found is None:
        raise typer.BadParameter(f"{age!r} is not an age such as 30m, 12h, 2d or 3w", param_hint="--since")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}[found[2]]


def _sorted(found: "list[RunFacts]", key: str, *, reverse: bool) -> "list[RunFacts]":
    """Return runs in the order that people want: the latest, the best, the fastest first; names from a to z."""
    if key in ("name", "model"):
        return sorted(found, key=lambda facts: str(getattr(facts, key) or "~").lower(), reverse=reverse)

    def number(facts: "RunFacts") -> float | None:
        value: float | None = getattr(facts, _NUMBERS[key])
        return value if value is None or key == "time" else -value

    known = [(value, facts) for facts in found if (value := number(facts)) is not None]
    # Those without the figure stand last, either way.
    rest = [facts for facts in found if number(facts) is None]
    return [facts for _, facts in sorted(known, key=lambda pair: pair[0], reverse=reverse)] + rest


_NUMBERS = {"started": "started", "val": "val_accuracy", "test": "test_accuracy", "time": "seconds"}


def _check_experiment(store: "Store", name: str | None) -> None:
    from tl_cli.errors import UsageError, suggest

    known = store.experiments()
    if name is not None and name not in known:
        raise UsageError(f"no experiment is called {name!r} in {store.uri}.{suggest(name, known)}")


def _only_one(store: "Store", names: Sequence[str], run: "Run") -> str:
    """Return why one run cannot be compared, and a command that compares it with the latest of the others."""
    from tl_cli.tracking.store import is_parent, named, short_id

    said = f"{' and '.join(names)} {'are' if len(names) > 1 else 'is'} the run {named(run)}"
    others = [each for each in store.runs() if each.info.run_id != run.info.run_id and not is_parent(each)]
    if not others:
        return f"{said}, and there is no other; make another one with tl train"
    return f"{said}; to compare it with another: tl runs diff {short_id(run)} {short_id(others[0])}"


def _find(store: "Store", names: Sequence[str], *, or_removed: bool = False) -> "list[Run]":
    """Return the runs that are meant, each once.

    Args:
        or_removed: those that were removed earlier, too.
    """
    from tl_cli.errors import RunNotFoundError

    found: dict[str, Run] = {}
    for name in names:
        try:
            run = store.find(name)
        except RunNotFoundError:
            removed = store.find_removed(name) if or_removed else None
            if removed is None:
                raise
            run = removed
        found[run.info.run_id] = run
    return list(found.values())


def _print_json(data: object) -> None:
    from tl_cli.text import json_text

    typer.echo(json_text(data, indent=2))


def _as_data(facts: "RunFacts") -> dict[str, object]:
    data = asdict(facts)
    done, total = data.pop("epochs")
    return {**data, "epochs": done, "epochs_wanted": total}

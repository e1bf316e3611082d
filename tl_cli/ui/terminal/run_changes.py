"""Prints changes of a store of runs, and asks before anything is removed."""

import sys
from collections.abc import Sequence
from pathlib import Path

import typer
from rich.console import Console

from tl_cli.api.run_changes import ClosedRuns, Relocation, Removal, RemovedRun, RemovedRuns, RunName, SentRuns
from tl_cli.errors import UsageError
from tl_cli.ui.terminal.console import plain, print_warning
from tl_cli.ui.terminal.run_tables import runs_table

_SHOWN = 20


class TerminalConsent:
    """Asks on the terminal.

    Args:
        console: for the runs to be removed.
    """

    def __init__(self, console: Console) -> None:
        self._console = console

    def remove(self, planned: Removal) -> bool:
        """Show the runs and ask.

        Raises:
            UsageError: stdin is not a terminal.
        """
        if not sys.stdin.isatty():
            raise UsageError("stdin is not a terminal; --yes removes without asking")
        self._console.print(runs_table(self._console, planned.runs))
        for name, count in planned.children:
            self._console.print(plain(f"{name} is a comparison; its {count} training runs stay", "yellow"))
        how = f"Delete permanently ({planned.size / 1e6:,.0f} MB)" if planned.purge else "Remove"
        count = len(planned.runs)
        return typer.confirm(f"{how} {'this run' if count == 1 else f'these {count} runs'}?")

    def outside(self, run: RunName, folders: Sequence[Path], size: int) -> bool:
        """Show the folders and ask."""
        for folder in folders:
            self._console.print(plain(f"outside the store's folder: {folder}"), soft_wrap=True)
        return typer.confirm(f"Delete these of {run}, too ({size / 1e6:,.0f} MB)?", default=False)


def print_closed(console: Console, closed: ClosedRuns, flag: str) -> None:
    """Print the closed runs, each with the command that resumes it.

    Args:
        flag: option with the address of the store, after a space; empty for the default store.
    """
    if not closed.runs:
        console.print("no run is dead")
    for run in closed.runs:
        resume = f"tl train --resume {run.run_id[:8]}{flag}"
        console.print(plain(f"{run} is recorded as killed; to resume it: {resume}"), soft_wrap=True)


def print_sent(console: Console, sent: SentRuns) -> None:
    """Print what was sent of each run."""
    for each in sent.runs:
        if each.restored:
            console.print(plain(f"{each} was not in {sent.store}; it is recorded again"), soft_wrap=True)
        status = f", recorded as {each.status.lower()}" if each.status else ""
        what = f"{each.points:,} points and {each.pieces} other items sent{status}"
        console.print(plain(f"{each}: {what}"), soft_wrap=True)
    if sent.complete:
        console.print("nothing left to sync")


def print_removed(console: Console, removed: RemovedRuns) -> None:
    """Print what was removed, how much disk space is free now, and what could not be removed."""
    if not removed.runs:
        console.print("nothing was removed")
    for each in removed.runs:
        if not removed.purged:
            console.print(plain(f"{each} is removed"), soft_wrap=True)
        elif each.complete:
            console.print(plain(f"{each} is deleted, {_freed(each)}"), soft_wrap=True)
            for folder in each.kept:
                console.print(plain(f"{folder} stays"), soft_wrap=True)
        else:
            print_warning(_describe_remaining(each))
    if removed.on_disk:
        advice = "mlflow runs restore --run-id ID restores a run, tl runs rm --purge ID frees the disk"
        console.print(f"their {removed.on_disk / 1e6:,.0f} MB stay on the disk; {advice}", style="dim", soft_wrap=True)


def _freed(run: RemovedRun) -> str:
    return f"{run.freed / 1e6:,.0f} MB are free"


def _describe_remaining(run: RemovedRun) -> str:
    more = len(run.remaining) - _SHOWN
    return "\n".join(
        [
            f"{run} is not deleted yet, {_freed(run)}; what stays:",
            *run.remaining[:_SHOWN],
            *([f"and {more} more"] if more > 0 else []),
            f"its record stays, too. Once they can be deleted: tl runs rm {run.run_id[:8]} --purge",
        ]
    )


def print_relocation(console: Console, relocation: Relocation) -> None:
    """Print the folders before and now, the number of records, and what is missing."""
    for old, new in relocation.moves:
        console.print(plain(f"{old} -> {new}"), soft_wrap=True)
    names = {table: table.replace("_", " ").removesuffix("s" * (n == 1)) for table, n in relocation.counts.items()}
    counted = ", ".join(f"{count:,} {names[table]}" for table, count in relocation.counts.items())
    done = f"{counted} {'would be' if relocation.dry_run else 'are now'} recorded at the new location"
    console.print(done if relocation.changes else "nothing to relocate: no record leads elsewhere", soft_wrap=True)
    for missing_id, path in relocation.missing:
        print_warning(f"the files of {missing_id} are not here; recorded: {path}")

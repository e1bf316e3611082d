"""Prints the contents of the cache, and asks before it is cleared."""

import sys

import typer
from rich.console import Console

from tl_cli.api.cache_listing import CacheListing, Clearing
from tl_cli.errors import UsageError
from tl_cli.ui.terminal.console import plain, print_error
from tl_cli.ui.terminal.layout import make_table


def print_cache(console: Console, listing: CacheListing) -> None:
    """Print the kinds of what is kept between runs: entries, size, unused size, and description."""
    console.print(plain(f"{listing.folder}: {_size(listing.size)}", "bold", limit=4000), soft_wrap=True)
    table = make_table("kind", "entries", "size", "unused 1 day", "unused 30 days", "what", left=("kind", "what"))
    for column in table.columns:
        column.no_wrap = False
    for kind in listing.kinds:
        sizes = (_size(size) for size in (kind.bytes, kind.bytes_unused_1_day, kind.bytes_unused_30_days))
        table.add_row(kind.kind, f"{kind.entries:,}", *sizes, kind.about)
    console.print(table)
    console.print("tl cache clear removes all kinds but downloads; TL_CACHE_DIR moves the folder", style="dim")


def confirm_clearing(planned: Clearing) -> bool:
    """Ask whether to remove entries.

    Raises:
        UsageError: stdin is not a terminal.
    """
    what = _selected(planned.selected, planned.selected_bytes)
    if not sys.stdin.isatty():
        raise UsageError(f"stdin is not a terminal; tl cache clear --yes removes {what} without asking")
    return typer.confirm(f"Remove {what} from {planned.folder}?")


def print_clearing(console: Console, cleared: Clearing) -> None:
    """Print what was removed; what could not be removed on stderr."""
    if not cleared.selected:
        console.print(plain(f"nothing to clear in {cleared.folder}", limit=4000), soft_wrap=True)
    elif not cleared.confirmed:
        console.print("nothing was removed")
    else:
        removed = _size(cleared.selected_bytes - cleared.left_bytes)
        console.print(plain(f"removed {removed} from {cleared.folder}", limit=4000), soft_wrap=True)
        if cleared.left:
            print_error(
                f"left {_selected(cleared.left, cleared.left_bytes)}: in use by a running process, or they cannot be "
                "removed; run tl cache clear again when it has ended"
            )


def _selected(counts: dict[str, int], size: int) -> str:
    return f"{_size(size)} ({', '.join(f'{count:,} {kind}' for kind, count in counts.items())})"


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"

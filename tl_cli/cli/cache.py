"""``tl cache``: what is kept between runs, how large and how old it is; and removing it."""

import re
import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from tl_cli.cli.params import ListsByDefault

if TYPE_CHECKING:
    from tl_cli.data.cache_entries import Entry

EXAMPLES = """Examples:

tl cache

tl cache --json"""

CLEAR_EXAMPLES = """Examples:

tl cache clear

tl cache clear --kind features --kind decoded --older-than 30d --yes"""

_KINDS = ("decoded", "features", "contents", "checks", "unpacked", "measurements")
_DAY_S = 24 * 3600
_UNITS = {"h": 3600, "d": _DAY_S, "w": 7 * _DAY_S}

app = typer.Typer(
    cls=ListsByDefault,
    help="Show what is kept between runs, by kind and age; clear it.",
    epilog="Examples:\n\ntl cache\n\ntl cache clear",
    rich_markup_mode="rich",
)


@app.command("list", epilog=EXAMPLES)
def list_(as_json: Annotated[bool, typer.Option("--json", help="Print the sizes as JSON.")] = False) -> None:
    """Show the size of each kind, and how much of it was not used for a day and for 30 days."""
    from tl_cli.data.cache_entries import RULES, entries
    from tl_cli.io.download import cache_root
    from tl_cli.ui.terminal.console import json_text, make_console, plain
    from tl_cli.ui.terminal.listings import cache_table

    root, now = cache_root(), time.time()
    found = entries(root)
    rows = []
    for kind, rule in RULES.items():
        own = [entry for entry in found if entry.kind == kind]
        old = {days: sum(entry.size for entry in own if now - entry.used > days * _DAY_S) for days in (1, 30)}
        rows.append({"kind": kind, "about": rule.about, "entries": len(own), "bytes": sum(entry.size for entry in own),
                     "bytes_unused_1_day": old[1], "bytes_unused_30_days": old[30]})  # fmt: skip
    if as_json:
        typer.echo(json_text({"folder": str(root), "kinds": rows}, indent=2))
        return
    lines = []
    for row in rows:
        sizes = [_size(row[name]) for name in ("bytes", "bytes_unused_1_day", "bytes_unused_30_days")]
        lines.append((str(row["kind"]), f"{row['entries']:,}", *sizes, str(row["about"])))
    console = make_console()
    console.print(plain(f"{root}: {_size(sum(entry.size for entry in found))}", "bold", limit=4000), soft_wrap=True)
    console.print(cache_table(lines))
    console.print("tl cache clear removes all kinds but downloads; TL_CACHE_DIR moves the folder", style="dim")


@app.command("clear", epilog=CLEAR_EXAMPLES)
def clear(
    kinds: Annotated[
        list[str] | None,
        typer.Option("--kind", metavar="KIND", help=f"{', '.join(_KINDS)}; may be repeated. Default: all of them."),
    ] = None,
    older_than: Annotated[
        str | None, typer.Option(metavar="AGE", help="Only what was not used for so long: 12h, 30d or 4w.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove what later runs can compute again; nothing that a running tl uses, and no file of anyone else."""
    from tl_cli.data.cache_entries import entries, remove
    from tl_cli.errors import StorageError, UsageError
    from tl_cli.io.download import cache_root
    from tl_cli.ui.terminal.console import make_console, plain

    for kind in kinds or ():
        if kind not in _KINDS:
            never = " (it may hold files that were put there by hand: remove them yourself)" * (kind == "downloads")
            raise UsageError(f"--kind {kind} cannot be cleared{never}; choose from {', '.join(_KINDS)}")
    root, oldest = cache_root(), time.time() - _seconds(older_than)
    wanted = [each for each in entries(root) if each.kind in (kinds or _KINDS) and each.used <= oldest]
    console = make_console()
    if not wanted:
        console.print(plain(f"nothing to clear in {root}", limit=4000), soft_wrap=True)
        return
    what = f"{_size(sum(entry.size for entry in wanted))} ({_counts(wanted)})"
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError(f"stdin is not a terminal; tl cache clear --yes removes {what} without asking")
        if not typer.confirm(f"Remove {what} from {root}?"):
            console.print("nothing was removed")
            raise typer.Exit(1)
    left = [entry for entry in wanted if not remove(entry)]
    gone = sum(entry.size for entry in wanted) - sum(entry.size for entry in left)
    console.print(plain(f"removed {_size(gone)} from {root}", limit=4000), soft_wrap=True)
    if left:
        raise StorageError(
            f"left {_size(sum(entry.size for entry in left))} ({_counts(left)}): in use by a running process, or "
            "they cannot be removed; run tl cache clear again when it has ended"
        )


def _seconds(age: str | None) -> float:
    if age is None:
        return 0.0
    found = re.fullmatch(r"(\d{1,6})([hdw])", age.strip().lower())
    if found is None:
        raise typer.BadParameter(f"{age!r} is not an age such as 12h, 30d or 4w", param_hint="--older-than")
    return float(int(found[1]) * _UNITS[found[2]])


def _counts(found: "list[Entry]") -> str:
    kinds = dict.fromkeys(entry.kind for entry in found)
    return ", ".join(f"{sum(entry.kind == kind for entry in found):,} {kind}" for kind in kinds)


def _size(count: object) -> str:
    assert isinstance(count, int)
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"

"""``tl cache``: shows and clears what is kept between runs."""

import re
from typing import Annotated

import typer

from tl_cli.cli.params import ListsByDefault

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
    from tl_cli.api.cache_listing import list_cache
    from tl_cli.text import json_text
    from tl_cli.ui.terminal.cache_report import print_cache
    from tl_cli.ui.terminal.console import make_console

    found = list_cache()
    if as_json:
        typer.echo(json_text(found.to_dict(), indent=2))
    else:
        print_cache(make_console(), found)


@app.command("clear", epilog=CLEAR_EXAMPLES)
def clear(
    kinds: Annotated[
        list[str] | None,
        typer.Option("--kind", metavar="KIND", help=f"{', '.join(_KINDS)}; may be repeated. Default: all."),
    ] = None,
    older_than: Annotated[
        str | None, typer.Option(metavar="AGE", help="Only what was not used for this long: 12h, 30d or 4w.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was removed as JSON; needs --yes.")] = False,
) -> None:
    """Remove what later runs can compute again, except files in use by a running tl."""
    if as_json and not yes:
        raise typer.BadParameter("--json cannot ask; add --yes", param_hint="--json")
    from tl_cli.api.cache_listing import clear_cache
    from tl_cli.text import json_text
    from tl_cli.ui.terminal.cache_report import confirm_clearing, print_clearing
    from tl_cli.ui.terminal.console import make_console

    cleared = clear_cache(kinds or (), _seconds(older_than), None if yes else confirm_clearing)
    if as_json:
        typer.echo(json_text(cleared.to_dict(), indent=2))
    else:
        print_clearing(make_console(), cleared)
    if cleared.left or (cleared.selected and not cleared.confirmed):
        raise typer.Exit(1)


def _seconds(age: str | None) -> float:
    if age is None:
        return 0.0
    found = re.fullmatch(r"(\d{1,6})([hdw])", age.strip().lower())
    if found is None:
        raise typer.BadParameter(f"{age!r} is not an age such as 12h, 30d or 4w", param_hint="--older-than")
    return float(int(found[1]) * _UNITS[found[2]])

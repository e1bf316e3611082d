"""``tl cache``: shows and clears what is kept between runs."""

from typing import Annotated

import typer

from tl_cli.cli.groups import ListsByDefault
from tl_cli.cli.params import AsJson, AsJsonYes, Yes, parse_age, print_result, refuse_question

CLEAR_EXAMPLES = """Examples:

tl cache clear

tl cache clear --kind features --kind decoded --older-than 30d --yes"""

_KINDS = ("decoded", "features", "contents", "checks", "unpacked", "measurements")
_KINDS_HELP = f"{', '.join(_KINDS)}; may be repeated. Default: all."
Kinds = Annotated[list[str] | None, typer.Option("--kind", metavar="KIND", help=_KINDS_HELP)]
OlderThan = Annotated[
    str | None, typer.Option(metavar="AGE", help="Only what was not used for this long: 12h, 30d or 4w.")
]

app = typer.Typer(
    cls=ListsByDefault,
    add_completion=False,
    help="Show what is kept between runs, by kind and age; clear it.",
    epilog="Examples:\n\ntl cache\n\ntl cache clear",
)


@app.command("list", epilog="Examples:\n\ntl cache\n\ntl cache --json")
def list_(as_json: AsJson = False) -> None:
    """Show the size of each kind, and how much of it was not used for a day and for 30 days."""
    from tl_cli.api.cache_listing import list_cache
    from tl_cli.ui.terminal.cache_report import print_cache

    print_result(list_cache(), print_cache, as_json=as_json)


@app.command("clear", epilog=CLEAR_EXAMPLES)
def clear(kinds: Kinds = None, older_than: OlderThan = None, yes: Yes = False, as_json: AsJsonYes = False) -> None:
    """Remove what later runs can compute again, except files in use by a running tl."""
    refuse_question(as_json and not yes)
    from tl_cli.api.cache_listing import clear_cache
    from tl_cli.ui.terminal.cache_report import confirm_clearing, print_clearing

    age_s = parse_age(older_than, "--older-than") if older_than is not None else 0.0
    cleared = clear_cache(kinds or (), age_s, None if yes else confirm_clearing)
    print_result(cleared, print_clearing, as_json=as_json)
    if cleared.left or (cleared.selected and not cleared.confirmed):
        raise typer.Exit(1)

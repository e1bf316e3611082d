"""``tl data``: the labelled images that ``--data`` knows by name, and the forms in which your own may come."""

from typing import Annotated

import typer

EXAMPLES = """Examples:

tl data

tl data --json"""


def data(
    as_json: Annotated[bool, typer.Option("--json", help="Print the sets as JSON.")] = False,
) -> None:
    """List the data sets that --data knows by name, with what each needs."""
    from tl_cli.data.catalogue import SETS
    from tl_cli.ui.console import make_console
    from tl_cli.ui.tables import print_sets

    if as_json:
        typer.echo(_json())
        return
    print_sets(make_console(), list(SETS.values()))


def _json() -> str:
    import json

    from tl_cli.data.catalogue import SETS

    return json.dumps(
        [
            {
                "name": row.name,
                "title": row.title,
                "classes": row.classes,
                "images": dict(row.images),
                "download_mb": row.download_mb,
                "mirrors": row.mirrors,
            }
            for row in SETS.values()
        ],
        indent=2,
    )

"""``tl env``: what a bug report needs."""

from typing import Annotated

import typer

EXAMPLES = """Examples:

tl env

tl env --json"""


def env(as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False) -> None:
    """Print versions, device, threads, processor features, paths and the store, for a bug report; no secrets."""
    from tl_cli.api.environment import describe
    from tl_cli.text import json_text
    from tl_cli.ui.terminal.console import make_console, plain

    facts = describe()
    if as_json:
        typer.echo(json_text(facts, indent=2))
        return
    console = make_console()
    for subject, values in facts.items():
        console.print(plain(subject, "bold"))
        for name, value in values.items():
            shown = " ".join(map(str, value)) if isinstance(value, list) else "not there" if value is None else value
            title = name if subject == "environment" else name.replace("_", " ")
            console.print(plain(f"  {title}: {shown}", limit=4000), soft_wrap=True)

"""``tl models``: lists the architectures with size, cost, accuracy and history, and downloads weights."""

import re
from typing import Annotated, Literal

import typer

from tl_cli.cli.params import ListsByDefault, complete_model

EXAMPLES = """Examples:

tl models

tl models convnext --sort params

tl models list --source timm --max-params 6M --limit 20

tl models pull resnet18 timm/vit_tiny_patch16_224"""

_SHOWN = 100


app = typer.Typer(
    cls=ListsByDefault,
    help="List architectures with size, cost, accuracy and history; download weights for offline use.",
    epilog="tl models list --help shows filters and orders.\n\n"
    "Examples:\n\ntl models\n\ntl models convnext\n\ntl models pull resnet18",
    rich_markup_mode="rich",
)


@app.command("list", epilog=EXAMPLES)
def list_(
    pattern: Annotated[
        str | None, typer.Argument(metavar="[PATTERN]", help="Part of a name or family, or a glob such as 'vit_b*'.")
    ] = None,
    source: Annotated[
        Literal["torchvision", "timm", "bundled", "all"] | None,
        typer.Option(help="Library. Default: all with a PATTERN, else all but timm."),
    ] = None,
    sort: Annotated[
        Literal["family", "name", "year", "params", "flops", "top1", "input"], typer.Option(help="Order.")
    ] = "family",
    reverse: Annotated[bool, typer.Option("--reverse", help="Largest, latest or best first.")] = False,
    max_params: Annotated[str | None, typer.Option(metavar="N", help="Maximum parameters, such as 10M.")] = None,
    max_flops: Annotated[
        str | None, typer.Option(metavar="N", help="Maximum MACs (multiply-adds) per image, such as 0.5G.")
    ] = None,
    min_top1: Annotated[
        float | None, typer.Option(metavar="PERCENT", help="Minimum ImageNet accuracy.", min=0, max=100)
    ] = None,
    on_disk: Annotated[
        bool, typer.Option("--on-disk", help="Only those whose default weights are on this machine.")
    ] = False,
    limit: Annotated[
        int | None, typer.Option(help=f"Maximum rows; 0 is all. Default: {_SHOWN}, with --json all.", min=0)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False,
) -> None:
    """List models by family, oldest first, with one line of each family's history."""
    from tl_cli.api.model_list import list_architectures
    from tl_cli.models.list.rows import ModelFilter
    from tl_cli.text import json_text
    from tl_cli.ui.terminal.console import make_console
    from tl_cli.ui.terminal.model_tables import print_models
    from tl_cli.ui.terminal.observer import TerminalObserver

    request = ModelFilter(
        pattern,
        _libraries(source, pattern),
        _number(max_params, "--max-params"),
        _number(max_flops, "--max-flops"),
        None if min_top1 is None else min_top1 / 100,
        on_disk,
    )
    most = (limit if limit is not None else 0 if as_json else _SHOWN) or None
    with TerminalObserver(make_console(stderr=True)) as observer:
        found = list_architectures(request, observer, sort=sort, reverse=reverse, limit=most)
    if as_json:
        typer.echo(json_text(found.to_list(), indent=2))
    else:
        print_models(make_console(), found, by_family=sort == "family")


@app.command("pull", epilog="Examples:\n\ntl models pull resnet18 timm/vit_tiny_patch16_224")
def pull(
    names: Annotated[
        list[str],
        typer.Argument(metavar="NAME...", help="Architectures; timm's also with a tag.", autocompletion=complete_model),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print the names as JSON.")] = False,
) -> None:
    """Download published weights for offline use."""
    from tl_cli.api.model_list import pull_weights
    from tl_cli.text import json_text
    from tl_cli.ui.terminal.console import make_console
    from tl_cli.ui.terminal.model_tables import print_pulled
    from tl_cli.ui.terminal.observer import TerminalObserver

    console = make_console(stderr=as_json)
    with TerminalObserver(console) as observer:
        pulled = pull_weights(names, observer)
    if as_json:
        typer.echo(json_text(pulled.to_dict(), indent=2))
    print_pulled(console, pulled)
    if pulled.failures:
        raise typer.Exit(1)


def _libraries(source: str | None, pattern: str | None) -> tuple[str, ...]:
    if source == "all" or (source is None and pattern is not None):
        return ("torchvision", "bundled", "timm")
    return (source,) if source else ("torchvision", "bundled")


def _number(text: str | None, flag: str) -> float | None:
    """Return 10M as ten million."""
    if text is None:
        return None
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([kmgbt]?)\s*", text.lower())
    if found is None:
        raise typer.BadParameter(f"{text!r} is not a number such as 10M or 0.5G", param_hint=flag)
    return float(found[1]) * {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9, "t": 1e12}[found[2]]

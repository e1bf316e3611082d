"""``tl models``: lists the architectures with size, cost, accuracy and history, and downloads weights."""

import re
from typing import Annotated, Literal

import typer

from tl_cli.cli.groups import ListsByDefault
from tl_cli.cli.params import AsJson, complete_model, print_json

EXAMPLES = """Examples:

tl models

tl models convnext --sort params

tl models list --source timm --max-params 6M --limit 20

tl models pull resnet18 timm/vit_tiny_patch16_224"""

_SHOWN = 100
_PATTERN_HELP = "Part of a name or family, or a glob such as 'vit_b*'."
_MACS_HELP = "Maximum MACs (multiply-adds) per image, such as 0.5G."
_ON_DISK_HELP = "Only those whose default weights are on this machine."
_LIMIT_HELP = f"Maximum rows; 0 is all. Default: {_SHOWN}, with --json all."
_NAMES_HELP = "Architectures; timm's also with a tag."
Pattern = Annotated[str | None, typer.Argument(metavar="[PATTERN]", help=_PATTERN_HELP)]
Library = Annotated[
    Literal["torchvision", "timm", "bundled", "all"] | None,
    typer.Option("--source", help="Library. Default: all with a PATTERN, else all but timm."),
]
Sort = Annotated[Literal["family", "name", "year", "params", "flops", "top1", "input"], typer.Option(help="Order.")]
Reverse = Annotated[bool, typer.Option("--reverse", help="Largest, latest or best first.")]
MaxParams = Annotated[str | None, typer.Option(metavar="N", help="Maximum parameters, such as 10M.")]
MaxFlops = Annotated[str | None, typer.Option(metavar="N", help=_MACS_HELP)]
MinTop1 = Annotated[float | None, typer.Option(metavar="PERCENT", help="Minimum ImageNet accuracy.", min=0, max=100)]
OnDisk = Annotated[bool, typer.Option("--on-disk", help=_ON_DISK_HELP)]
Limit = Annotated[int | None, typer.Option(help=_LIMIT_HELP, min=0)]
Names = Annotated[list[str], typer.Argument(metavar="NAME...", help=_NAMES_HELP, autocompletion=complete_model)]

app = typer.Typer(
    cls=ListsByDefault,
    add_completion=False,
    help="List architectures with size, cost, accuracy and history; download weights for offline use.",
    epilog="tl models list --help shows filters and orders.\n\n"
    "Examples:\n\ntl models\n\ntl models convnext\n\ntl models pull resnet18",
)


@app.command("list", epilog=EXAMPLES)
def list_(
    pattern: Pattern = None,
    source: Library = None,
    sort: Sort = "family",
    reverse: Reverse = False,
    max_params: MaxParams = None,
    max_flops: MaxFlops = None,
    min_top1: MinTop1 = None,
    on_disk: OnDisk = False,
    limit: Limit = None,
    as_json: AsJson = False,
) -> None:
    """List models by family, oldest first, with one line of each family's history."""
    from tl_cli.api.model_list import list_architectures
    from tl_cli.models.list.rows import ModelFilter
    from tl_cli.ui.terminal.console import make_console
    from tl_cli.ui.terminal.model_tables import print_models
    from tl_cli.ui.terminal.observer import TerminalObserver

    request = ModelFilter(
        pattern,
        _libraries(source, pattern),
        _parse_number(max_params, "--max-params"),
        _parse_number(max_flops, "--max-flops"),
        None if min_top1 is None else min_top1 / 100,
        on_disk,
    )
    most = (limit if limit is not None else 0 if as_json else _SHOWN) or None
    with TerminalObserver(make_console(stderr=True)) as observer:
        listed = list_architectures(request, observer, sort=sort, reverse=reverse, limit=most)
    if as_json:
        print_json(listed.to_list())
    else:
        print_models(make_console(), listed, by_family=sort == "family")


@app.command("pull", epilog="Examples:\n\ntl models pull resnet18 timm/vit_tiny_patch16_224")
def pull(names: Names, as_json: AsJson = False) -> None:
    """Download published weights for offline use."""
    from tl_cli.api.model_list import pull_weights
    from tl_cli.ui.terminal.console import make_console
    from tl_cli.ui.terminal.model_tables import print_pulled
    from tl_cli.ui.terminal.observer import TerminalObserver

    console = make_console(stderr=as_json)
    with TerminalObserver(console) as observer:
        pulled = pull_weights(names, observer)
    if as_json:
        print_json(pulled.to_dict())
    print_pulled(console, pulled)
    if pulled.failures:
        raise typer.Exit(1)


def _libraries(source: str | None, pattern: str | None) -> tuple[str, ...]:
    if source == "all" or (source is None and pattern is not None):
        return ("torchvision", "bundled", "timm")
    return (source,) if source else ("torchvision", "bundled")


def _parse_number(text: str | None, flag: str) -> float | None:
    """Return 10M as ten million."""
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([kmgbt]?)\s*", text.lower())
    if match is None:
        raise typer.BadParameter(f"{text!r} is not a number such as 10M or 0.5G", param_hint=flag)
    return float(match[1]) * {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9, "t": 1e12}[match[2]]

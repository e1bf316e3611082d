"""``tl models``: what there is to fine-tune, what it costs and where it comes from; and fetching weights ahead."""

import re
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tl_cli.cli.params import ListsByDefault, complete_model

if TYPE_CHECKING:
    from tl_cli.models.list.rows import Row, Wanted

EXAMPLES = """Examples:

tl models

tl models convnext --sort params

tl models list --source timm --max-params 6M --limit 20

tl models pull resnet18 timm/vit_tiny_patch16_224"""

_SHOWN = 100


app = typer.Typer(
    cls=ListsByDefault,
    help="List what can be fine-tuned, with its cost, accuracy and history; fetch weights ahead.",
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
        typer.Option(help="Library; with a PATTERN all of them, else all but timm."),
    ] = None,
    sort: Annotated[
        Literal["family", "name", "year", "params", "flops", "top1", "input"], typer.Option(help="Order.")
    ] = "family",
    reverse: Annotated[bool, typer.Option("--reverse", help="Largest, latest or best first.")] = False,
    max_params: Annotated[
        str | None, typer.Option(metavar="N", help="At most so many parameters, such as 10M.")
    ] = None,
    max_flops: Annotated[
        str | None, typer.Option(metavar="N", help="At most so many multiply-adds an image, such as 0.5G.")
    ] = None,
    min_top1: Annotated[
        float | None, typer.Option(metavar="PERCENT", help="At least this ImageNet accuracy.", min=0, max=100)
    ] = None,
    on_disk: Annotated[bool, typer.Option("--on-disk", help="Only those whose default weights are here.")] = False,
    limit: Annotated[int | None, typer.Option(help=f"Rows; 0 is all, as with --json; else {_SHOWN}.", min=0)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False,
) -> None:
    """List models by family, oldest first, with one line of each family's history."""
    from tl_cli.models.list.counting import CountCache
    from tl_cli.models.list.rows import Wanted, list_models
    from tl_cli.ui.terminal.console import make_console
    from tl_cli.ui.terminal.model_tables import print_models
    from tl_cli.ui.terminal.progress import FileProgress

    wanted = Wanted(
        pattern,
        _libraries(source, pattern),
        _number(max_params, "--max-params"),
        _number(max_flops, "--max-flops"),
        None if min_top1 is None else min_top1 / 100,
        on_disk,
    )
    console = make_console()
    with CountCache() as cache, FileProgress(make_console(stderr=True)) as progress:
        rows, total = list_models(
            wanted,
            sort,
            reverse=reverse,
            limit=(limit if limit is not None else 0 if as_json else _SHOWN) or None,
            cache=cache,
            counted=lambda done, of: progress("counting", done, of),
        )
    if not rows:
        from tl_cli.errors import UsageError

        raise UsageError(_nothing(wanted, source))
    if as_json:
        typer.echo(_json(rows))
        return
    print_models(console, rows, by_family=sort == "family")
    console.print()
    for note in _notes(wanted, len(rows), total):
        console.print(note, style="dim")


@app.command("pull", epilog="Examples:\n\ntl models pull resnet18 timm/vit_tiny_patch16_224")
def pull(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME...", help="Architectures; timm's with a tag or without.", autocompletion=complete_model
        ),
    ],
) -> None:
    """Fetch published weights, for a machine that has no network later."""
    from tl_cli.errors import DownloadError
    from tl_cli.io.download import check_reachable
    from tl_cli.models.zoo import registry
    from tl_cli.ui.terminal.console import make_console, plain
    from tl_cli.ui.terminal.progress import FileProgress

    for name in names:
        registry.about(name)  # a mistyped one is refused before the first is fetched
    console = make_console()
    failed = []
    for name in names:
        try:
            check_reachable([registry.missing_weights(name)])
            with FileProgress(console) as progress:
                registry.fetch_weights(name, progress)
        except DownloadError as error:
            failed.append(str(error))
            continue
        console.print(plain(f"{name} is here"))
    if failed:
        raise DownloadError("\n".join(failed))


def _notes(wanted: "Wanted", shown: int, total: int) -> list[str]:
    """Return what stands under the list: what is not shown, what the numbers are, and where there is more."""
    notes = [f"{shown} of {total:,} shown; --limit 0 shows all."] if total > shown else []
    notes.append(
        "FLOPs: multiply-adds of one image of that input size, counted. top-1: ImageNet, as the library states it."
    )
    if "timm" not in wanted.libraries:
        from tl_cli.models.list.completion import registered
        from tl_cli.models.zoo.timm_models import UNSUPPORTED

        more = len(set(registered("timm")) - set(UNSUPPORTED))
        notes.append(f"timm has {more:,} more: tl models --source timm, or tl models PATTERN.")
    return notes


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


def _nothing(wanted: "Wanted", source: str | None) -> str:
    """Say whether the pattern or the filters let nothing through."""
    from tl_cli.models.list.rows import Wanted, has_any
    from tl_cli.models.zoo import registry

    where = f" of {source}" if source else ""
    if wanted.pattern is None or set(wanted.pattern) & set("*?[") or has_any(Wanted(wanted.pattern, wanted.libraries)):
        return f"no model{where} passes the pattern and the filters"
    return f"no model{where} has {wanted.pattern!r} in its name or family.{registry.nearest(wanted.pattern)}"


def _json(rows: "list[Row]") -> str:
    from tl_cli.text import json_text

    return json_text(
        [
            {
                "name": row.name,
                "library": row.library,
                "family": row.family.title,
                "year": row.family.year,
                "parameters": row.parameters,
                "multiply_adds": row.multiply_adds,
                "imagenet_top1": row.top1,
                "input_size": row.input_size,
                "weights_on_disk": row.on_disk,
            }
            for row in rows
        ],
        indent=2,
    )

"""The list of models: by family with a line of history each, or flat in another order."""

from collections.abc import Mapping, Sequence
from itertools import groupby

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tl_cli.api.model_list import ModelList, PulledModels
from tl_cli.models.list.rows import Row
from tl_cli.ui.terminal.console import is_ascii, plain, print_error
from tl_cli.ui.terminal.formats import format_count
from tl_cli.ui.terminal.layout import make_table

_HEADINGS = {"params": "params", "flops": "MACs", "top1": "top-1", "input": "input", "disk": "weights"}


def print_models(console: Console, listed: ModelList, *, by_family: bool) -> None:
    """Print the rows and notes; unknown values are dashes.

    Args:
        by_family: under one line of history per family; else each row names its family.
    """
    _print_rows(console, listed.rows, by_family=by_family)
    console.print()
    if listed.total > len(listed.rows):
        console.print(f"{len(listed.rows)} of {listed.total:,} shown; --limit 0 shows all.", style="dim")
    console.print(
        "MACs: multiply-adds per image of that input size, counted. top-1: ImageNet, as the library states it.",
        style="dim",
    )
    if listed.more_in_timm:
        more = f"timm has {listed.more_in_timm:,} more: tl models --source timm, or tl models PATTERN."
        console.print(more, style="dim")


def print_pulled(console: Console, pulled: PulledModels) -> None:
    """Print the names of downloaded models; failures on stderr."""
    for name in pulled.names:
        console.print(plain(f"{name} is on this machine"))
    if pulled.failures:
        print_error("\n".join(pulled.failures))


def _print_rows(console: Console, rows: Sequence[Row], *, by_family: bool) -> None:
    columns = _columns(console.width, by_family=by_family)
    room = console.width - sum(width + 2 for _, width in columns)
    longest = max((len(row.name) for row in rows), default=8) + (2 if by_family else 0)
    widths = {"model": max(12, min(longest, room)), **dict(columns)}
    if not by_family:
        console.print(_table(rows, widths, console))
        return
    console.print(_table([], widths, console))
    for family, members in groupby(rows, key=lambda row: row.family):
        title = plain(f"{family.title}, {family.year}" if family.year else family.title, "bold")
        console.print(title.append(f"  {family.line}", style="dim"))
        table = _table(list(members), widths, console, indent="  ")
        table.show_header = False
        console.print(table)


def _columns(width: int, *, by_family: bool) -> list[tuple[str, int]]:
    """Return (column, its width), as many as the terminal has room for."""
    columns = [("params", 6), ("top1", 6)]
    if width >= 60:
        columns.insert(1, ("flops", 6))
        columns.append(("input", 5))
    if width >= 72:
        columns.append(("disk", 7))
    if width >= 96 and not by_family:
        columns += [("year", 4), ("family", 24)]
    return columns


def _table(rows: Sequence[Row], widths: Mapping[str, int], console: Console, *, indent: str = "") -> Table:
    table = make_table(*(_HEADINGS.get(name, name) for name in widths), left=("model", "weights", "family"))
    for column, width in zip(table.columns, widths.values(), strict=True):
        column.width = width
    for row in rows:
        cells = _cells(row, "-" if is_ascii(console) else "—")
        table.add_row(*(plain(indent + row.name) if name == "model" else cells[name] for name in widths))
    return table


def _cells(row: Row, dash: str) -> dict[str, Text]:
    on_disk = {True: Text("here", "good"), False: Text("fetch", "dim"), None: Text("none", "dim")}
    return {
        "params": Text(format_count(row.parameters, dash)),
        "flops": Text(format_count(row.multiply_adds, dash)),
        "top1": Text(dash if row.top1 is None else f"{row.top1:.1%}"),
        "input": Text(str(row.input_size)),
        "disk": on_disk[row.on_disk],
        "year": Text(str(row.family.year or dash)),
        "family": plain(row.family.title),
    }

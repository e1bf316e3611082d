"""The list of models: by family with a line of history each, or flat in another order."""

from collections.abc import Sequence
from itertools import groupby

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tl_cli.api.model_list import ModelList, PulledModels
from tl_cli.models.list.rows import Row
from tl_cli.ui.terminal.console import is_ascii, plain, print_error

_UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_HEADINGS = {"params": "params", "flops": "MACs", "top1": "top-1", "input": "input", "disk": "weights"}


def print_models(console: Console, found: ModelList, *, by_family: bool) -> None:
    """Print the rows and notes; unknown values are dashes.

    Args:
        by_family: under one line of history per family; else each row names its family.
    """
    _print_rows(console, found.rows, by_family=by_family)
    console.print()
    if found.total > len(found.rows):
        console.print(f"{len(found.rows)} of {found.total:,} shown; --limit 0 shows all.", style="dim")
    console.print(
        "MACs: multiply-adds per image of that input size, counted. top-1: ImageNet, as the library states it.",
        style="dim",
    )
    if found.more_in_timm:
        more = f"timm has {found.more_in_timm:,} more: tl models --source timm, or tl models PATTERN."
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
    name_width = max(12, min(longest, room))
    if not by_family:
        console.print(_table(rows, name_width, columns, console, heading=True))
        return
    console.print(_table([], name_width, columns, console, heading=True))
    for family, members in groupby(rows, key=lambda row: row.family):
        history = plain(family.title, "bold")
        history.append(f", {family.year}" if family.year else "", style="bold")
        history.append(f"  {family.line}", style="dim")
        console.print(history)
        console.print(_table(list(members), name_width, columns, console, heading=False))


def format_count(value: float | None, dash: str) -> str:
    """Return 25.6M for 25,557,032, three figures; the dash for None."""
    if value is None:
        return dash
    for size, unit in _UNITS:
        if value >= 0.9995 * size:
            number = value / size
            return (
                f"{number:.2f}{unit}"
                if number < 9.995
                else f"{number:.1f}{unit}"
                if number < 99.95
                else f"{number:.0f}{unit}"
            )
    return f"{value:.0f}"


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


def _table(
    rows: Sequence[Row], name_width: int, columns: list[tuple[str, int]], console: Console, *, heading: bool
) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", show_header=heading)
    table.add_column("model", width=name_width, no_wrap=True, overflow="ellipsis")
    for column, width in columns:
        table.add_column(
            _HEADINGS.get(column, column),
            width=width,
            justify="left" if column in ("disk", "family") else "right",
            no_wrap=True,
            overflow="ellipsis",
        )
    indent = "" if heading else "  "
    for row in rows:
        table.add_row(plain(indent + row.name), *(_cell(row, column, console) for column, _ in columns))
    return table


def _cell(row: Row, column: str, console: Console) -> Text:
    dash = "-" if is_ascii(console) else "—"
    if column == "params":
        return Text(format_count(row.parameters, dash))
    if column == "flops":
        return Text(format_count(row.multiply_adds, dash))
    if column == "top1":
        return Text(dash if row.top1 is None else f"{row.top1:.1%}")
    if column == "input":
        return Text(str(row.input_size))
    if column == "disk":
        return (
            Text("here", style="good")
            if row.on_disk
            else Text("fetch" if row.on_disk is False else "none", style="dim")
        )
    if column == "year":
        return Text(str(row.family.year or dash))
    return plain(row.family.title)

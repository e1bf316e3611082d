"""What the views in a terminal share: tables, grids, bars and sections. No torch, NumPy or plotext."""

from collections.abc import Collection, Iterable, Mapping, Sequence

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tl_cli.ui.terminal.console import is_ascii, plain

Cells = Sequence[str | Text]
_TWO_WIDE, _THREE_WIDE = 72, 150  # smallest widths for charts side by side


def make_table(*headings: str, left: Collection[str] = (), gap: int = 2) -> Table:
    """Return an empty table without borders.

    Args:
        left: columns aligned to the left, as is one without a heading; numbers are aligned to the right.
        gap: spaces between columns.
    """
    table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="dim")
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("", *left) else "right", no_wrap=True)
    return table


def table_of(columns: Mapping[str, Cells], *, left: Collection[str] = (), gap: int = 2) -> Table:
    """Return a table of columns, given as heading and cells."""
    table = make_table(*columns, left=left, gap=gap)
    for row in zip(*columns.values(), strict=True):
        # Text is never read as markup.
        table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    return table


def width_of(columns: Mapping[str, Cells], gap: int = 2) -> int:
    """Return the width of columns with the gap after each, in terminal cells."""
    return sum(gap + max(cell_len(str(cell)) for cell in (heading, *cells)) for heading, cells in columns.items())


def grid_of(
    cells: Sequence[RenderableType], columns: int, width: int, *, below: int = 0, no_wrap: bool = False
) -> Table:
    """Return cells in rows of ``columns``.

    Args:
        width: of each column.
        below: empty lines below each row.
    """
    grid = Table.grid(padding=(0, 2, below, 0), pad_edge=False)
    for _ in range(columns):
        grid.add_column(width=width, no_wrap=no_wrap, overflow="fold")
    for start in range(0, len(cells), columns):
        grid.add_row(*cells[start : start + columns])
    return grid


def charts_per_row(count: int, width: int) -> int:
    """Return how many of ``count`` charts are side by side."""
    if width < _TWO_WIDE or count == 1:
        return 1
    return 3 if count == 3 and width >= _THREE_WIDE else 2


def flow(entries: Iterable[Text], width: int) -> list[Text]:
    """Return entries one after another, in as many lines as they need."""
    lines = [Text()]
    for entry in entries:
        if lines[-1] and lines[-1].cell_len + 2 + entry.cell_len > width:
            lines.append(Text())
        lines[-1].append("  " if lines[-1] else "").append_text(entry)
    return lines


def facts_grid(facts: Iterable[tuple[str, str | Text]]) -> Table:
    """Return names and values in two columns."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, style="dim")
    grid.add_column(overflow="fold")
    for name, value in facts:
        grid.add_row(name, plain(value, limit=4000) if isinstance(value, str) else value)
    return grid


def room_for_bar(columns: Mapping[str, Cells], width: int, *, least: int = 6, most: int = 40) -> int:
    """Return the length of bars in a last column beside others."""
    return max(least, min(most, width - width_of(columns)))


def text_bar(share: float, room: int, console: Console, style: str = "train", symbols: str = "█#") -> Text:
    """Return a bar of characters.

    Args:
        share: of the room, 0 to 1.
        symbols: the character, and its stand-in where only ASCII may be printed.
    """
    return Text(symbols[is_ascii(console)] * round(share * room), style=style)


def progress_bar(label: str, done: float, total: float, note: str, width: int) -> Table:
    """Return a progress bar with a label and a note, as wide as the terminal."""
    label_width, note_width = min(30, max(12, width // 4)), min(28, max(14, width // 4))
    bar_width = max(4, width - label_width - note_width - 4)
    grid = Table.grid(padding=(0, 1))
    for column_width in (label_width, bar_width, note_width):
        grid.add_column(width=column_width, no_wrap=True, overflow="ellipsis")
    total = max(total, 1)
    grid.add_row(plain(label), ProgressBar(total, min(done, total), bar_width), plain(note, "dim"))
    return grid


def print_title(console: Console, title: str, about: str) -> None:
    """Print a title, a line about it, and an empty line."""
    console.print(plain(title, "bold"))
    console.print(plain(about, "dim", limit=4000))
    console.print()


def print_section(console: Console, title: str, *content: RenderableType) -> None:
    """Print content under a title, after an empty line."""
    console.print()
    console.print(plain(title, "bold"))
    for each in content:
        console.print(each)

"""The table of published data sets. No torch."""

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from tl_cli.contract import SPLIT_NAMES
from tl_cli.data.sources.catalogue import BuiltIn
from tl_cli.ui.terminal.layout import Cells, table_of, width_of


def print_sets(console: Console, sets: Sequence[BuiltIn]) -> None:
    """Print the data sets that have a name here, what is fetched for each, and the forms of one's own."""
    wide = console.width >= 72
    columns: dict[str, Cells] = {
        "--data": [Text(row.name, "bold") for row in sets],
        "classes": [str(row.classes) for row in sets],
    }
    for part in SPLIT_NAMES if wide else ():
        columns[part] = [f"{row.images[part]:,}" if part in row.images else "" for row in sets]
    columns["to fetch"] = [f"{row.download_mb:,} MB" if row.download_mb else "-" for row in sets]
    if wide:
        # Numbers are not cut for the sake of a title.
        room = console.width - width_of(columns)
        columns["what"] = [Text(row.title) for row in sets]
    table = table_of(columns, left=("--data", "what"))
    if wide:
        table.columns[-1].max_width = room
    console.print(table)
    console.print()
    console.print("val is held out of train; a set of one part is split 80/10/10; one with train and val has no test.")
    console.print(
        "Your own: a folder train/CLASS/ with test/ or val/, or CLASS/; a CSV of path,label[,split]; a zip or tar of "
        "such a folder."
    )
    console.print(
        "torchvision's other sets are not available or not for classification; --data NAME shows the reason.",
        style="dim",
    )

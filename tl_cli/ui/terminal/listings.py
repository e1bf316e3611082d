"""The table of published data sets. No torch."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from tl_cli.contract import SPLIT_NAMES
from tl_cli.data.sources.catalogue import BuiltIn


def print_sets(console: Console, sets: Sequence[BuiltIn]) -> None:
    """Print the data sets that have a name here, what is fetched for each, and the forms of one's own."""
    wide = console.width >= 72
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("--data", no_wrap=True, style="bold")
    for heading in ("classes", "train", "val", "test", "to fetch") if wide else ("classes", "to fetch"):
        table.add_column(heading, justify="right", no_wrap=True)
    if wide:
        # The numbers need 62 columns, and are not cut for the sake of a title.
        table.add_column("what", no_wrap=True, overflow="ellipsis", max_width=console.width - 64)
    for row in sets:
        parts = tuple(f"{row.images[part]:,}" if part in row.images else "" for part in SPLIT_NAMES)
        amount = f"{row.download_mb:,} MB" if row.download_mb else "-"
        table.add_row(row.name, str(row.classes), *((*parts, amount, row.title) if wide else (amount,)))
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

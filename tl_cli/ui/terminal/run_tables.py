"""Recorded runs as tables: the list with sparklines, one run with its epochs, and the differences between several."""

import math
import time
from collections.abc import Mapping, Sequence

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from tl_cli.api.run_store import RunDetails
from tl_cli.evaluation.scores import EPOCH_SCORES, RESULTS
from tl_cli.text import csv_text, safe_text
from tl_cli.tracking.facts import Differences, RunFacts
from tl_cli.ui.terminal.console import is_ascii, plain, shortened
from tl_cli.ui.terminal.epochs import epoch_table
from tl_cli.ui.terminal.formats import format_seconds
from tl_cli.ui.terminal.layout import Cells, make_table, table_of, width_of

_SPARK, _ASCII_SPARK = "▁▂▃▄▅▆▇█", "_.,-=+*#"
_STYLES = {"finished": "", "running": "blue", "failed": "red", "killed": "yellow", "dead": "red", "silent": "yellow"}


def print_runs(console: Console, runs: Sequence[RunFacts], *, total: int, where: str, filtered: bool) -> None:
    """Print the list with notes on what it does not show."""
    if not runs:
        message = f"no run in {where} passes the filters" if filtered else f"no runs in {where} yet"
        console.print(plain(message, limit=400), soft_wrap=True)
        return
    console.print(runs_table(console, runs))
    statuses = {run.status for run in runs}
    for is_shown, note in (
        (total > len(runs), f"{len(runs)} of {total:,} shown; --limit 0 shows all"),
        (any(run.is_best for run in runs), "* best on validation of its experiment and data"),
        ("dead" in statuses, "dead: recorded as running, but its process has ended; tl runs close records its end"),
        ("silent" in statuses, "silent: runs elsewhere, no heartbeat for minutes; tl runs close RUN records its end"),
    ):
        if is_shown:
            console.print(Text(note, style="dim"))


def print_run(console: Console, shown: RunDetails) -> None:
    """Print a run and its epochs."""
    console.print(runs_table(console, [shown.run]))
    console.print()
    if shown.history.epochs:
        console.print(epoch_table(shown.history.epochs, shown.history.best, console.width))
    else:
        console.print("no epoch is recorded", style="dim")


def epochs_csv(shown: RunDetails) -> str:
    """Return the epochs of a run as CSV."""
    names = ["epoch", "step", *EPOCH_SCORES]
    return csv_text([names, *(list(epoch.to_dict().values()) for epoch in shown.history.epochs)])


def runs_table(console: Console, runs: Sequence[RunFacts]) -> Table:
    """Return the runs, one per row, with as many columns as fit."""
    width = console.width
    gap = 2 if width >= 60 else 1
    columns = _columns(console, runs)
    widths = {name: width_of({name: cells}, gap) for name, cells in columns.items()}
    longest = max(cell_len(run.name) + (2 if run.parent_id else 0) for run in runs)
    # Users recognize runs by name: names get up to a third of a narrow list.
    name_width = min(longest, max(_MIN_NAME, min(36, width // 3)))
    left = width - name_width - gap - widths["id"] - widths["val"]
    # Where all runs are finished, their status is the least useful column.
    is_mixed = any(run.status != "finished" for run in runs)
    shown = {"id", "name", "val"}
    for name in (*["status"] * is_mixed, *_BY_VALUE, "status"):
        # Empty columns are left out.
        has_values = name in columns and any(str(cell).strip(" -") for cell in columns[name])
        if has_values and name not in shown and widths[name] <= left:
            shown.add(name)
            left -= widths[name]
    columns["name"] = [_name(run, min(longest, name_width + max(0, left))) for run in runs]
    fitting = {name: cells for name, cells in columns.items() if name in shown}
    return table_of(fitting, left=_TEXTS, gap=gap)


# The columns that are added as long as there is room, the most useful first.
_BY_VALUE = ("curve", "test", "epochs", "started", "time", "data", "model", "experiment")
_TEXTS = ("id", "name", "status", "curve", "model", "data", "experiment")
_MIN_NAME = 10
_LONGEST_KEY = 24
_RESULTS = {score.key: score for score in RESULTS.values()}


def _columns(console: Console, runs: Sequence[RunFacts]) -> dict[str, Cells]:
    """Return all columns; names are as wide as there is room, and filled in later."""
    now = time.time()
    columns: dict[str, Cells] = {
        "id": [Text(run.short_id, style="mark") for run in runs],
        "name": [],
        "status": [Text(run.status, style=_STYLES.get(run.status, "")) for run in runs],
        "curve": [Text(spark(run.curve, 12, ascii_only=is_ascii(console)), style="val") for run in runs],
        "val": [_accuracy(run.val_accuracy, mark="*" if run.is_best else "") for run in runs],
        "test": [_accuracy(run.test_accuracy) for run in runs],
        "epochs": [_epochs(run) for run in runs],
        "model": [shortened(run.model or "-", 24) for run in runs],
        "data": [shortened((run.data or "-").rstrip("/").rpartition("/")[2], 18) for run in runs],
        "started": [_ago(now - run.started) for run in runs],
        "time": [format_seconds(run.seconds) for run in runs],
    }
    if len({run.experiment for run in runs}) > 1:
        columns["experiment"] = [shortened(run.experiment, 16) for run in runs]
    return columns


def _name(run: RunFacts, width: int) -> Text:
    indent = "  " if run.parent_id else ""
    return plain(indent + shortened(run.name, max(4, width - len(indent))), "bold" if run.is_best else "")


def spark(values: Sequence[float], width: int, *, ascii_only: bool = False) -> str:
    """Return a curve as a line of blocks, scaled from its lowest value to its highest; a long curve is sampled.

    NaN and infinity have no block.
    """
    values = [value for value in values if math.isfinite(value)]
    if not values:
        return ""
    letters = _ASCII_SPARK if ascii_only else _SPARK
    count = min(len(values), width)
    picked = [values[round(number * len(values) / count) - 1] for number in range(1, count + 1)]
    low, high = min(values), max(values)
    if high == low or not math.isfinite(high - low):
        return letters[len(letters) // 2] * count
    return "".join(letters[round((value - low) / (high - low) * (len(letters) - 1))] for value in picked)


def print_differences(console: Console, different: Differences, equal: Mapping[str, str]) -> None:
    """Print settings, machines and results that differ, one column per run."""
    names = [f"{run.name} ({run.short_id})" for run in different.runs]
    results = {key: [_result(key, value) for value in values] for key, values in different.results.items()}
    if not different.settings:
        console.print("no setting differs")
    blocks: list[tuple[str, Sequence[str], Mapping[str, Sequence[str | None]]]] = [
        ("different settings", names, {key.replace("_", "-"): values for key, values in different.settings.items()}),
        ("made with", names, different.made_with),
        ("results", names, results),
        ("equal in all", [""], {key.replace("_", "-"): [value] for key, value in equal.items()}),
    ]
    for title, runs, rows in blocks:
        if rows:
            console.print(*[""] * (title != blocks[0][0]), _block(console, title, runs, rows), sep="\n")
    if different.num_equal and not equal:
        console.print(Text(f"{different.num_equal} settings are equal; --all shows them", style="dim"))


def _block(
    console: Console, title: str, names: Sequence[str], rows: Mapping[str, Sequence[str | None]]
) -> RenderableType:
    """Return one row per setting, or a block of rows where the terminal is too narrow for one column per run."""
    first = max(len(title), *(min(_LONGEST_KEY, cell_len(safe_text(key))) for key in rows))
    room = (console.width - first - 2 * len(names)) // len(names)
    if room < 12:
        return _block_of_lines(console.width, title, names, rows)
    table = make_table()
    table.header_style = "bold"
    table.add_column(title, no_wrap=True, style="dim")
    for name in names:
        table.add_column(plain(shortened(name, room)), overflow="fold", max_width=room)
    for key, values in rows.items():
        table.add_row(Text(shortened(key, first)), *map(_value, values))
    return table


def _block_of_lines(width: int, title: str, names: Sequence[str], rows: Mapping[str, Sequence[str | None]]) -> Group:
    lines = [Text(title, style="bold")]
    for key, values in rows.items():
        lines.append(Text(shortened(key, width), "dim"))
        for name, value in zip(names, values, strict=True):
            lines.append(Text(f"  {shortened(name, max(6, width // 2 - 2))}  ").append_text(_value(value)))
    return Group(*lines)


def _value(value: str | None) -> Text:
    return Text("not recorded", style="dim") if value is None else plain(value or "-", limit=400)


def _result(key: str, value: float | None) -> str | None:
    if value is None:
        return None
    score = _RESULTS[key]
    return format_seconds(value) if score.unit == "s" else score.text(value)


def _accuracy(value: float | None, *, mark: str = "") -> Text:
    return Text("-" if value is None else f"{mark}{value:.2%}", style="good" if mark else "")


def _epochs(run: RunFacts) -> str:
    done, total = run.epochs, run.epochs_wanted
    return "-" if done is None else f"{done}" if total in (None, done) else f"{done}/{total}"


def _ago(seconds: float) -> str:
    for size, unit in ((86400 * 7, "w"), (86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size or (unit == "min" and seconds >= 60):
            return f"{seconds / size:.0f} {unit} ago"
    return "now"

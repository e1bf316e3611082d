"""Results and plans as tables that fit the terminal."""

from collections.abc import Sequence

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from tl_cli.evaluation.classification import ClassScore
from tl_cli.evaluation.intervals import Accuracy
from tl_cli.inspection.freeze_plan import Part
from tl_cli.training.phases import Phase
from tl_cli.training.resolve import Resolved
from tl_cli.ui.terminal.console import is_ascii, plain, shortened
from tl_cli.ui.terminal.progress import epoch_range

_FEW_CLASSES = 12
_SHOWN_CLASSES = 10


def freeze_table(parts: Sequence[Part], phases: Sequence[Phase], width: int) -> Group:
    """Return, part by part, what trains in each phase, at which rate, and what BatchNorm does.

    Args:
        width: of the terminal; a narrow one gets the statistics of BatchNorm in a line of their own.
    """
    shown = _shown_phases(len(phases), width)
    narrow = width < 40 + 30 * len(shown)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("part", no_wrap=True, overflow="ellipsis", min_width=8)
    table.add_column("params" if narrow else "parameters", justify="right", no_wrap=True)
    for place in shown:
        table.add_column(epoch_range(phases[place].first, phases[place].last), no_wrap=True)
    for part in parts:
        name = plain(part.name, "bold" if part.is_head else "")
        name.append(" (head)" if part.is_head else "", style="mark")
        cells = (_phase_cell(part, phases[place], place, brief=narrow) for place in shown)
        table.add_row(name, f"{part.parameters:,}", *cells)
    totals = [f"{sum(part.trainable[place] for part in parts):,}" for place in range(len(phases))]
    unit = "" if narrow else " train"
    table.add_row(
        "in all", f"{sum(part.parameters for part in parts):,}", *(totals[place] + unit for place in shown), style="dim"
    )
    lines = [
        Text(f"{epoch_range(phase.first, phase.last)}: {totals[place]} train", style="dim")
        for place, phase in enumerate(phases)
        if place not in shown
    ]
    norms = sum(part.batch_norms for part in parts)
    if narrow and norms:
        updating = [place for place in range(len(phases)) if any(part.updating[place] for part in parts)]
        do = "fixed"
        if updating:
            first = phases[updating[0]].first
            do = f"update from epoch {first}" if first > 1 else "update"
        lines.append(Text(f"statistics of {norms} BatchNorm layers: {do}", style="dim"))
    return Group(table, *lines)


def _shown_phases(count: int, width: int) -> list[int]:
    """Return the places of the phases that have room for a column: all, or the first and the last."""
    return list(range(count)) if count <= 2 or width >= 40 + 20 * count else [0, count - 1]


def settings_table(resolved: Resolved, *, only_given: bool = False) -> Table:
    """Return the resolved settings with where each came from and why."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("setting", no_wrap=True)
    table.add_column("value", overflow="fold")
    table.add_column("from", no_wrap=True)
    table.add_column("why", overflow="fold", style="dim")
    for name, value in resolved.config.model_dump().items():
        origin = resolved.origins[name]
        if value is None or (only_given and origin.source == "default"):
            continue
        style = "bold" if origin.source in ("flag", "config file") else ""
        shown = ", ".join(f"{v:g}" for v in value) if isinstance(value, tuple) else str(value)
        table.add_row(plain(name.replace("_", "-"), style), plain(shown, style), origin.source, plain(origin.why))
    return table


def format_accuracy(accuracy: Accuracy) -> str:
    """Return ``88.10% (87.45-88.72%)``: the 95% interval behind the figure."""
    return f"{accuracy.value:.2%} ({100 * accuracy.low:.2f}-{accuracy.high:.2%})"


def class_table(scores: Sequence[ClassScore], classes: Sequence[str], console: Console) -> Group | Table:
    """Return recall, precision and F1 by class, the weakest recall first, as many columns as fit."""
    rows = sorted(
        ((name, score) for name, score in zip(classes, scores, strict=True) if score.recall is not None),
        key=lambda row: row[1].recall.value if row[1].recall else 0.0,
    )
    shown = rows if len(rows) <= _FEW_CLASSES else rows[:_SHOWN_CLASSES]
    wide, medium = console.width >= 76, console.width >= 56
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("class", no_wrap=True)
    for heading in ("images", "recall", *(("95% interval",) if wide else ()), *(("precision", "F1") if medium else ())):
        table.add_column(heading, justify="right", no_wrap=True)
    bar = max(4, min(30, console.width - (76 if wide else 56 if medium else 36)))
    table.add_column("", no_wrap=True)
    block = "#" if is_ascii(console) else "█"
    for name, score in shown:
        recall = score.recall
        assert recall is not None
        cells = [f"{score.images:,}", f"{recall.value:.1%}"]
        if wide:
            cells.append(f"{100 * recall.low:.1f}-{100 * recall.high:.1f}")
        if medium:
            cells += [f"{score.precision.value:.1%}" if score.precision else "-", f"{score.f1:.1%}"]
        style = "good" if recall.value >= 0.9 else "train"
        table.add_row(Text(shortened(name, 18)), *cells, Text(block * round(recall.value * bar), style=style))
    if len(shown) == len(rows):
        return table
    return Group(table, Text(f"and {len(rows) - len(shown)} better ones; tl eval --csv has all of them", "dim"))


def _phase_cell(part: Part, phase: Phase, place: int, *, brief: bool) -> str:
    rate = phase.lr_head if part.is_head else phase.lr_backbone
    trained = part.trainable[place]
    trains = f"lr {rate:g}" if trained else "frozen"
    if 0 < trained < part.parameters:
        trains += f" ({trained / part.parameters:.0%} of it)" if not brief else " part"
    if brief or not part.batch_norms:
        return trains
    updating = part.updating[place]
    do = "fixed" if not updating else "update" if updating == part.batch_norms else f"{updating} update"
    return f"{trains}; {part.batch_norms} BatchNorm {do}"

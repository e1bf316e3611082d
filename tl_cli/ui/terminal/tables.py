"""Results and plans as tables that fit the terminal."""

from collections.abc import Sequence

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from tl_cli.evaluation.classification import ClassScore
from tl_cli.evaluation.intervals import Accuracy
from tl_cli.evaluation.paired import Paired
from tl_cli.inspection.freeze_plan import Part
from tl_cli.training.phases import Phase
from tl_cli.training.resolve import Resolved
from tl_cli.ui.terminal.console import plain, shortened
from tl_cli.ui.terminal.formats import epoch_range
from tl_cli.ui.terminal.layout import Cells, make_table, room_for_bar, table_of, text_bar

_FEW_CLASSES = 12
_SHOWN_CLASSES = 10


def freeze_table(parts: Sequence[Part], phases: Sequence[Phase], width: int) -> Group:
    """Return, for each part of the model, what trains in each phase, at which rate, and the BatchNorm statistics.

    Args:
        width: of the terminal; if it is narrow, BatchNorm statistics are in a separate line, and only the first and the
            last of many phases are shown.
    """
    count = len(phases)
    shown = list(range(count)) if count <= 2 or width >= 40 + 20 * count else [0, count - 1]
    narrow = width < 40 + 30 * len(shown)
    ranges = [epoch_range(phase.first, phase.last) for phase in phases]
    table = make_table("part", "params" if narrow else "parameters", *(ranges[number] for number in shown),
                       left=("part", *ranges))  # fmt: skip
    table.columns[0].min_width = 8
    for part in parts:
        name = plain(part.name, "bold" if part.is_head else "")
        name.append(" (head)" if part.is_head else "", style="mark")
        cells = (_phase_cell(part, phases[number], number, brief=narrow) for number in shown)
        table.add_row(name, f"{part.parameters:,}", *cells)
    totals = [f"{sum(part.trainable[number] for part in parts):,}" for number in range(count)]
    cells = (totals[number] + ("" if narrow else " train") for number in shown)
    table.add_row("in all", f"{sum(part.parameters for part in parts):,}", *cells, style="dim")
    lines = [f"{ranges[number]}: {totals[number]} train" for number in range(count) if number not in shown]
    norms = sum(part.batch_norms for part in parts)
    if narrow and norms:
        first = next((phase.first for number, phase in enumerate(phases) if any(p.updating[number] for p in parts)), 0)
        state = f"update from epoch {first}" if first > 1 else "update" if first else "fixed"
        lines.append(f"statistics of {norms} BatchNorm layers: {state}")
    return Group(table, *(Text(line, style="dim") for line in lines))


def settings_table(resolved: Resolved, *, only_given: bool = False) -> Table:
    """Return the resolved settings with the source and the reason of each."""
    table = make_table("setting", "value", "from", "why", left=("setting", "value", "from", "why"))
    for index in (1, 3):
        table.columns[index].no_wrap, table.columns[index].overflow = False, "fold"
    for name, value in resolved.config.model_dump().items():
        origin = resolved.origins[name]
        if value is None or (only_given and origin.source == "default"):
            continue
        style = "bold" if origin.source in ("flag", "config file") else ""
        shown = ", ".join(f"{v:g}" for v in value) if isinstance(value, tuple) else str(value)
        table.add_row(
            plain(name.replace("_", "-"), style), plain(shown, style), origin.source, plain(origin.why, "dim")
        )
    return table


def format_accuracy(accuracy: Accuracy) -> str:
    """Return ``88.10% (87.45-88.72%)``: the accuracy and its 95% interval."""
    return f"{accuracy.value:.2%} ({100 * accuracy.low:.2f}-{accuracy.high:.2%})"


def format_test(paired: Paired) -> str:
    """Return ``-0.35 to +1.20, McNemar's p = 0.31``: the interval of a difference in points, and its test."""
    low, high = (100 * end for end in (paired.difference.low, paired.difference.high))
    return f"{low:+.2f} to {high:+.2f}, McNemar's p = {paired.p_value:.2g}"


def format_mirror_gain(mirrored: Paired) -> str:
    """Return ``mirror images averaged, for twice the time: +0.80 points`` with interval and test."""
    gain = f"{100 * mirrored.difference.value:+.2f} points (95% interval {format_test(mirrored)})"
    return f"mirror images averaged, for twice the time: {gain}"


def class_table(scores: Sequence[ClassScore], classes: Sequence[str], console: Console) -> Group:
    """Return recall, precision and F1 by class, the weakest recall first, as many columns as fit."""
    rows = [(each.recall, each, name) for name, each in zip(classes, scores, strict=True) if each.recall is not None]
    rows.sort(key=lambda row: row[0].value)
    shown = rows if len(rows) <= _FEW_CLASSES else rows[:_SHOWN_CLASSES]
    columns: dict[str, Cells] = {
        "class": [shortened(name, 18) for *_, name in shown],
        "images": [f"{score.images:,}" for _, score, _ in shown],
        "recall": [f"{recall.value:.1%}" for recall, *_ in shown],
    }
    if console.width >= 76:
        columns["95% interval"] = [f"{100 * recall.low:.1f}-{100 * recall.high:.1f}" for recall, *_ in shown]
    if console.width >= 56:
        precisions = [score.precision for _, score, _ in shown]
        columns["precision"] = ["-" if each is None else f"{each.value:.1%}" for each in precisions]
        columns["F1"] = [f"{score.f1:.1%}" for _, score, _ in shown]
    room = room_for_bar(columns, console.width, least=4, most=30)
    columns[""] = [
        text_bar(recall.value, room, console, "good" if recall.value >= 0.9 else "train") for recall, *_ in shown
    ]
    hidden = len(rows) - len(shown)
    note = [Text(f"and {hidden} better ones; tl eval --csv has all of them", "dim")] if hidden else []
    return Group(table_of(columns, left=("class",)), *note)


def _phase_cell(part: Part, phase: Phase, number: int, *, brief: bool) -> str:
    rate = phase.lr_head if part.is_head else phase.lr_backbone
    trained = part.trainable[number]
    trains = (f"lr {rate:g}" if rate else "regression") if trained else "frozen"
    if 0 < trained < part.parameters:
        trains += f" ({trained / part.parameters:.0%} of it)" if not brief else " part"
    if brief or not part.batch_norms:
        return trains
    updating = part.updating[number]
    state = "fixed" if not updating else "update" if updating == part.batch_norms else f"{updating} update"
    return f"{trains}; {part.batch_norms} BatchNorm {state}"

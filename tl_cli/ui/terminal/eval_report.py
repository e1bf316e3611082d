"""Shows an evaluation in a terminal: metrics, confusion matrix, classes, calibration and the worst mistakes."""

import math
from collections.abc import Sequence

from rich.cells import cell_len, set_cell_size
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from tl_cli.api.evaluation_run import Evaluation
from tl_cli.contract import Calibration
from tl_cli.evaluation.calibration import Reliability
from tl_cli.evaluation.classification import Confusion, Mistake
from tl_cli.evaluation.intervals import Accuracy, Measure
from tl_cli.evaluation.measure import Measured, OwnAccuracy
from tl_cli.evaluation.report import EvaluationReport
from tl_cli.ui.terminal import tables
from tl_cli.ui.terminal.console import is_ascii, plain, shortened
from tl_cli.ui.terminal.layout import Cells, grid_of, make_table, print_section, print_title, table_of, text_bar
from tl_cli.ui.terminal.pictures import SHADES, has_pictures, thumbnail

# Blue for right and orange for wrong predictions, as in the curves; colour-blind readers can tell them apart.
_RIGHT = ((0.9, "white on #00507d"), (0.7, "white on #00679f"), (0.0, "white on #4682a8"))
_WRONG = ((0.2, "white on #b34400"), (0.1, "white on #8a4a1c"), (0.05, "val"), (0.0, ""))
_NARROW = 60
_THUMBNAIL = 18  # columns, and half as many rows


def print_evaluation(console: Console, evaluation: Evaluation, *, pictures: int) -> None:
    """Print an evaluation, as much of it as the terminal has room for.

    Args:
        pictures: number of the worst mistakes to show, if the terminal has colours.
    """
    measured, report, classes = evaluation.measured, evaluation.report, evaluation.card.classes
    part = "all images" if measured.part == "all" else measured.part
    count = report.scores.accuracy.count
    about = f"{measured.source}, {part}: {count:,} images of {len(classes)} classes"
    print_title(console, f"{evaluation.card.architecture}, {evaluation.model}", about)
    console.print(_scores_table(report, short=console.width < _NARROW))
    if evaluation.own is not None:
        _print_own(console, evaluation.own, report.scores.accuracy.value)
    if report.mirrored is not None:
        console.print(Text(tables.format_mirror_gain(report.mirrored), style="bold"))
    console.print(Text(_temperature(report.calibration, measured), style="dim"))
    matrix = confusion_map(report, classes, console)
    print_section(console, "confusion matrix; rows: true, columns: predicted", matrix)
    if report.confused:
        print_section(console, "most confused", _confused_table(report.confused[:8], classes, console))
    absent = sum(score.recall is None for score in report.classes)
    title = "classes, weakest first" + (f"; {absent} have no images here" if absent else "")
    print_section(console, title, tables.class_table(report.classes, classes, console))
    title = f"calibration; bar: accuracy, {_mark(console)}: confidence"
    print_section(console, title, reliability_table(report.reliability, console))
    if report.mistakes:
        shown = report.mistakes[:pictures]
        print_section(console, "worst mistakes", mistakes_grid(shown, measured, classes, console))


def _print_own(console: Console, own: OwnAccuracy, accuracy: float) -> None:
    kind = {"test": "test", "val": "validation", "train": "training"}[own.part]
    number = "" if own.images is None else f"{own.images:,} "
    difference = 100 * (accuracy - own.value)
    console.print(
        f"{own.value:.2%} on the {number}{kind} images of its own data; here {difference:+.2f} points",
        style="bold",
        soft_wrap=True,
    )


def confusion_map(report: EvaluationReport, classes: Sequence[str], console: Console) -> RenderableType:
    """Return the confusion matrix, as numbers if they fit and in shades otherwise; rows are the true classes."""
    matrix = report.scores.confusion
    names = [shortened(name, 14) for name in classes]
    digits = max(3, len(str(matrix.max())))
    longest = max(4, *map(cell_len, names))
    if len(names) * (digits + 1) <= console.width - longest - 1:
        return _numbers(matrix.tolist(), names, digits, console)
    if len(names) > console.width:
        return Text("The matrix is wider than the terminal.", style="dim")
    has_room = len(names) + longest + 1 <= console.width
    return _shades(
        matrix.tolist(), [" " * (longest - cell_len(name)) + f"{name} " if has_room else "" for name in names]
    )


def reliability_table(reliability: Reliability, console: Console) -> Table:
    """Return a reliability diagram: one row per bin of confidence, with a bar for its accuracy."""
    table = make_table("confidence", "accuracy", "images", "")
    room = max(10, min(50, console.width - 36))
    table.columns[-1].width = room + 1
    for each in reliability.bins:
        accuracy, position = each.correct / each.count, round(each.confidence * room)
        bar = text_bar(accuracy, room, console)
        bar.pad_right(room - len(bar))
        cells = f"{each.confidence:.0%}", f"{accuracy:.0%}", f"{each.count:,}"
        table.add_row(*cells, Text.assemble(bar[:position], (_mark(console), "mark"), bar[position:]))
    return table


def mistakes_grid(
    mistakes: Sequence[Mistake], measured: Measured, classes: Sequence[str], console: Console
) -> RenderableType:
    """Return the mistakes as small pictures with their predictions; as lines if the terminal has no colours."""
    predicted = [plain(classes[each.predicted]) for each in mistakes]
    true = [plain(classes[each.true], "bold") for each in mistakes]
    rows = zip(mistakes, predicted, true, strict=True)
    if not has_pictures(console) or console.width < 2 * _THUMBNAIL:
        return Text("\n").join(
            Text.assemble((f"{each.probability:>4.0%} ", "bad"), name, (", is ", "dim"), truth, "  ",
                          plain(measured.images.ids[each.index], "dim")) for each, name, truth in rows
        )  # fmt: skip
    cells = []
    for each, name, truth in rows:
        picture = thumbnail(measured.images.load(each.index, 2 * _THUMBNAIL), _THUMBNAIL)
        captions = Text.assemble((f"{each.probability:.0%} ", "bad"), name), Text.assemble(("is ", "dim"), truth)
        for caption in captions:
            caption.truncate(_THUMBNAIL, overflow="ellipsis")
        cells.append(Group(picture, *captions))
    return grid_of(cells, max(1, (console.width + 2) // (_THUMBNAIL + 2)), _THUMBNAIL, below=1)


def _mark(console: Console) -> str:
    return "|" if is_ascii(console) else "┃"


def _scores_table(report: EvaluationReport, *, short: bool) -> Table:
    scores, macro = report.scores, report.macro
    prefix, accuracy = "" if short else "macro ", scores.accuracy
    measures: list[tuple[str, Accuracy | Measure, str]] = [
        ("top-1", accuracy, ".2%"),
        *([("top-5", scores.top5, ".2%")] if scores.top5 is not None else []),
        ("loss", scores.loss, ".4f"),
        (f"{prefix}precision", macro.precision, ".2%"),
        (f"{prefix}recall", macro.recall, ".2%"),
        (f"{prefix}F1", macro.f1, ".2%"),
    ]
    names, values, intervals = [], [], []
    for name, measure, form in measures:
        names.append(Text(name, "dim"))
        values.append(Text(f"{measure.value:{form}}", "bold green" if name == "top-1" else ""))
        low = f"{measure.low:{form}}".rstrip("%")
        intervals.append("-" if math.isnan(measure.low) else f"{low} to {measure.high:{form}}")
    errors = {"calib. error" if short else "calibration error": report.reliability}
    if report.uncalibrated is not None:
        errors["without T" if short else "without temperature"] = report.uncalibrated
    for name, reliability in errors.items():
        names.append(Text(name, "dim"))
        values.append(Text(f"{reliability.ece:.2%}"))
        intervals.append(f"{reliability.chance_ece:.2%} expected" + ("" if short else " from sampling noise"))
    return table_of({"": names, " ": values, "95% interval": intervals}, left=("95% interval",))


def _temperature(calibration: Calibration, measured: Measured) -> str:
    if calibration.temperature == 1:
        return f"no temperature: {calibration.note}"
    kind = "lowers" if calibration.temperature > 1 else "raises"
    here = " (these, so the calibration error is too low)" if measured.is_own and measured.part == "val" else ""
    return (
        f"temperature {calibration.temperature:.3f} ({kind} confidence), fitted on {calibration.images:,} validation "
        f"images{here}; applied to every probability of the model"
    )


def _numbers(matrix: list[list[int]], names: Sequence[str], digits: int, console: Console) -> Table:
    zero = Text("." if is_ascii(console) else "·", style="dim")
    longest = max(map(cell_len, names))
    width = max(digits, min(longest, (console.width - longest - 1) // len(names) - 1))
    table = make_table(gap=1)
    for name in ("", *names):
        table.add_column(Text(set_cell_size(name, width).rstrip()), "", justify="right", no_wrap=True, overflow="crop")
    for column in table.columns[1:]:
        column.width = width
    for label, row in enumerate(matrix):
        total = max(1, sum(row))
        cells = [
            Text(str(count).rjust(width), style=_shade(count / total, is_right=predicted == label)) if count else zero
            for predicted, count in enumerate(row)
        ]
        table.add_row(Text(names[label]), *cells)
    return table


def _shades(matrix: list[list[int]], names: Sequence[str]) -> Group:
    """Return one character per cell of the matrix, darker for a larger share of the class."""
    lines, darkest = [], len(SHADES) - 1
    for label, row in enumerate(matrix):
        line = Text(names[label])
        for predicted, count in enumerate(row):
            shade = min(darkest, 1 + int(count / sum(row) * darkest)) if count else 0
            line.append(SHADES[shade], style="" if not count else "train" if predicted == label else "val")
        lines.append(line)
    return Group(*lines, Text(f"share of the class: {' '.join(SHADES[1:])}", style="dim"))


def _shade(share: float, *, is_right: bool) -> str:
    return next(style for least, style in (_RIGHT if is_right else _WRONG) if share >= least)


def _confused_table(pairs: Sequence[Confusion], classes: Sequence[str], console: Console) -> Table:
    limit = max(8, min(30, (console.width - 22) // 2))
    columns: dict[str, Cells] = {
        "images": [f"{pair.count:,}" for pair in pairs],
        "share": [f"{pair.share:.1%}" for pair in pairs],
        "true": [shortened(classes[pair.true], limit) for pair in pairs],
        "predicted": [shortened(classes[pair.predicted], limit) for pair in pairs],
    }
    return table_of(columns, left=("true", "predicted"))

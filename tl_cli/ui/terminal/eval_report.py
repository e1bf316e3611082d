"""Shows an evaluation in a terminal: metrics, confusion matrix, classes, calibration and the worst mistakes."""

from collections.abc import Callable, Sequence

from rich.cells import cell_len, set_cell_size
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from tl_cli.api.evaluation_run import Evaluation
from tl_cli.contract import Calibration
from tl_cli.evaluation.calibration import Reliability
from tl_cli.evaluation.classification import ClassScore, Confusion, Mistake
from tl_cli.evaluation.intervals import Accuracy, Measure
from tl_cli.evaluation.measure import Measured, OwnAccuracy
from tl_cli.evaluation.report import EvaluationReport
from tl_cli.ui.terminal import tables
from tl_cli.ui.terminal.console import is_ascii, plain, shortened
from tl_cli.ui.terminal.pictures import thumbnail

# Blue for right and orange for wrong predictions, as in the curves; colour-blind readers can tell them apart.
_RIGHT = ((0.9, "white on #00507d"), (0.7, "white on #00679f"), (0.0, "white on #4682a8"))
_WRONG = ((0.2, "white on #b34400"), (0.1, "white on #8a4a1c"), (0.05, "val"), (0.0, ""))
_SHADES = " .:-=+*#%@"
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
    console.print(plain(f"{evaluation.card.architecture}, {evaluation.model}", "bold"))
    about = f"{measured.source}, {part}: {count:,} images of {len(classes)} classes"
    console.print(plain(about, "dim", limit=4000))
    console.print()
    console.print(_figures(report, short=console.width < _NARROW))
    if evaluation.own is not None:
        _print_own(console, evaluation.own, report.scores.accuracy.value)
    console.print(Text(_temperature(report.calibration, measured), style="dim"))
    _section(console, "confusion matrix; rows: true, columns: predicted", confusion_map(report, classes, console))
    if report.confused:
        _section(console, "most confused", _confused_table(report.confused[:8], classes, console))
    _section(console, _classes_title(report.classes), tables.class_table(report.classes, classes, console))
    _section(
        console,
        f"calibration; bar: accuracy, {_mark(console)}: confidence",
        reliability_table(report.reliability, console),
    )
    if report.mistakes:
        shown = report.mistakes[:pictures]
        _section(console, "worst mistakes", mistakes_grid(shown, measured, classes, console))


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
    room = console.width - longest - 1
    if len(classes) * (digits + 1) <= room:
        return _numbers(report, names, digits, console)
    if len(classes) + longest + 1 <= console.width:
        return _shades(report, [" " * (longest - cell_len(name)) + name + " " for name in names])
    if len(classes) <= console.width:
        return _shades(report, [""] * len(classes))
    return Text("The matrix is wider than the terminal.", style="dim")


def reliability_table(found: Reliability, console: Console) -> Table:
    """Return a reliability diagram: one row per bin of confidence, with a bar for its accuracy."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("confidence", "accuracy", "images"):
        table.add_column(heading, justify="right", no_wrap=True)
    room = max(10, min(50, console.width - 36))
    table.add_column("", no_wrap=True, width=room + 1)
    block, mark = "#" if is_ascii(console) else "█", _mark(console)
    for each in found.bins:
        right = each.correct / each.count
        place, length = round(each.confidence * room), round(right * room)
        bar = Text(block * min(length, place), style="train")
        bar.append(mark, style="mark")
        bar.append(block * max(0, length - place), style="train")
        table.add_row(f"{each.confidence:.0%}", f"{right:.0%}", f"{each.count:,}", bar)
    return table


def mistakes_grid(
    mistakes: Sequence[Mistake], measured: Measured, classes: Sequence[str], console: Console
) -> RenderableType:
    """Return the mistakes as small pictures with their predictions; as lines if the terminal has no colours."""
    if console.color_system is None or is_ascii(console) or console.width < 2 * _THUMBNAIL:
        return Group(*(_mistake_line(each, measured, classes) for each in mistakes))
    columns = max(1, (console.width + 2) // (_THUMBNAIL + 2))
    grid = Table.grid(padding=(0, 2, 1, 0), pad_edge=False)
    for _ in range(columns):
        grid.add_column(width=_THUMBNAIL, no_wrap=True, overflow="ellipsis")
    for start in range(0, len(mistakes), columns):
        cells: list[RenderableType] = []
        for each in mistakes[start : start + columns]:
            picture = measured.images.load(each.index, 2 * _THUMBNAIL)
            said = Text(f"{each.probability:.0%} ", style="bad").append_text(plain(classes[each.predicted]))
            truth = Text("is ", style="dim").append_text(plain(classes[each.true], "bold"))
            cells.append(Group(thumbnail(picture, _THUMBNAIL), said, truth))
        grid.add_row(*cells)
    return grid


def _mark(console: Console) -> str:
    return "|" if is_ascii(console) else "┃"


def _section(console: Console, title: str, content: RenderableType) -> None:
    console.print()
    console.print(Text(title, style="bold"))
    console.print(content)


def _figures(report: EvaluationReport, *, short: bool) -> Table:
    measured, macro = report.scores, report.macro
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("")
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("95% interval", no_wrap=True)
    rows: list[tuple[str, Measure, Callable[[float], str]]] = [("top-1", _as_measure(measured.accuracy), _percent)]
    if measured.top5 is not None:
        rows.append(("top-5", _as_measure(measured.top5), _percent))
    rows.append(("loss", measured.loss, lambda value: f"{value:.4f}"))
    rows += [
        ("precision" if short else "macro precision", macro.precision, _percent),
        ("recall" if short else "macro recall", macro.recall, _percent),
        ("F1" if short else "macro F1", macro.f1, _percent),
    ]
    for name, measure, shown in rows:
        style = "bold good" if name == "top-1" else ""
        interval = f"{shown(measure.low).rstrip('%')} to {shown(measure.high)}" if measure.is_known else "-"
        table.add_row(Text(name, style="dim"), Text(shown(measure.value), style=style), interval)
    errors = [("calib. error" if short else "calibration error", report.reliability)]
    if report.uncalibrated is not None:
        errors.append(("without T" if short else "without temperature", report.uncalibrated))
    for name, found in errors:
        noise = f"{found.chance_ece:.2%} expected" + ("" if short else " from sampling noise")
        table.add_row(Text(name, style="dim"), _percent(found.ece), noise)
    return table


def _temperature(calibration: Calibration, measured: Measured) -> str:
    if calibration.temperature == 1:
        return f"no temperature: {calibration.note}"
    kind = "lowers" if calibration.temperature > 1 else "raises"
    here = " (these, so the calibration error is too low)" if measured.is_own and measured.part == "val" else ""
    return (
        f"temperature {calibration.temperature:.3f} ({kind} confidence), fitted on {calibration.images:,} validation "
        f"images{here}; applied to every probability of the model"
    )


def _numbers(report: EvaluationReport, names: Sequence[str], digits: int, console: Console) -> Table:
    nothing = Text("." if is_ascii(console) else "·", style="dim")
    longest = max(map(cell_len, names))
    width = max(digits, min(longest, (console.width - longest - 1) // len(names) - 1))
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column("", justify="right", no_wrap=True)
    for name in names:
        heading = set_cell_size(name, width).rstrip()
        table.add_column(Text(heading), justify="right", width=width, no_wrap=True, overflow="crop")
    for label, row in enumerate(report.scores.confusion.tolist()):
        total = max(1, sum(row))
        cells = [
            Text(str(number).rjust(width), style=_shade(number / total, is_right=said == label)) if number else nothing
            for said, number in enumerate(row)
        ]
        table.add_row(Text(names[label]), *cells)
    return table


def _shades(report: EvaluationReport, names: Sequence[str]) -> Group:
    """Return one character per cell of the matrix, darker for a larger share of the class."""
    lines = []
    for label, row in enumerate(report.scores.confusion.tolist()):
        total = max(1, sum(row))
        line = Text(names[label])
        for said, number in enumerate(row):
            share = number / total
            symbol = _SHADES[min(len(_SHADES) - 1, 1 + int(share * (len(_SHADES) - 1)))] if number else " "
            line.append(symbol, style=("train" if said == label else "val") if number else "")
        lines.append(line)
    legend = Text("share of the class: ", style="dim").append(" ".join(_SHADES[1:]), style="dim")
    return Group(*lines, legend)


def _shade(share: float, *, is_right: bool) -> str:
    return next(style for least, style in (_RIGHT if is_right else _WRONG) if share >= least)


def _confused_table(pairs: Sequence[Confusion], classes: Sequence[str], console: Console) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    limit = max(8, min(30, (console.width - 22) // 2))
    for heading in ("images", "share", "true", "predicted"):
        table.add_column(heading, justify="right" if heading in ("images", "share") else "left", no_wrap=True)
    for pair in pairs:
        names = (Text(shortened(classes[place], limit)) for place in (pair.true, pair.predicted))
        table.add_row(f"{pair.count:,}", f"{pair.share:.1%}", *names)
    return table


def _classes_title(scores: Sequence[ClassScore]) -> str:
    absent = sum(score.recall is None for score in scores)
    return "classes, weakest first" + (f"; {absent} have no images here" if absent else "")


def _mistake_line(mistake: Mistake, measured: Measured, classes: Sequence[str]) -> Text:
    line = Text(f"{mistake.probability:>4.0%} ", style="bad").append_text(plain(classes[mistake.predicted]))
    line.append(", is ", style="dim").append_text(plain(classes[mistake.true], "bold"))
    return line.append("  ").append_text(plain(measured.images.ids[mistake.index], "dim"))


def _as_measure(accuracy: Accuracy) -> Measure:
    return Measure(accuracy.value, accuracy.low, accuracy.high)


def _percent(value: float) -> str:
    return f"{value:.2%}"

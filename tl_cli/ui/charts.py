"""Curves as text: the one file that speaks to plotext."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import plotext
from rich.console import Group
from rich.table import Table
from rich.text import Text

from tl_cli.training.history import History

# Colours of the terminal's own palette that differ for colour-blind readers too.
TRAIN_COLOUR, VAL_COLOUR, TEST_COLOUR, MARK_COLOUR = "blue", "orange", "magenta", "grey"
_CODES = {"blue": 33, "orange": 208, "magenta": 170, "grey": 245}
_BOX_TO_ASCII = str.maketrans("─│┌┐└┘├┤┬┴┼┊┈", "-|+++++++++:-")


@dataclass(frozen=True, slots=True)
class Line:
    """One curve: points in order of x; points that are not finite are left out when it is drawn."""

    points: Sequence[tuple[float, float]]
    colour: str
    marker: str = "line"


@dataclass(frozen=True, slots=True)
class Canvas:
    """What the terminal can show, and how much room there is, in characters."""

    width: int
    height: int
    colour: bool = True
    ascii: bool = False


def draw(lines: Sequence[Line], canvas: Canvas, *, marks: Sequence[float] = (), percent: bool = False) -> Text:
    """Return the curves as a block of text, or a word of why there are none.

    Args:
        lines: the later ones are drawn over the earlier ones.
        canvas: size in characters, with axes and labels.
        marks: places on the x axis for a vertical dotted line.
        percent: values are fractions, the axis shows percent.
    """
    finite = [(line, _thin(_finite(line.points, 100 if percent else 1), 2 * canvas.width)) for line in lines]
    finite = [(line, points) for line, points in finite if points]
    if not finite or canvas.width < 16 or canvas.height < 4:
        return Text("no points yet" if not finite else "", style="dim")
    figure = plotext.figure
    plotext.terminal.limit(False, False)  # it would clip to 80 columns in a pipe
    figure.clear()
    figure.theme("simple" if canvas.colour else "colorless")
    figure.plot_size(canvas.width, canvas.height)
    figure.legend(False)  # it would cover the curves
    _draw_marks(marks, [points for _, points in finite], canvas)
    for line, points in finite:
        _draw_line(line, points, canvas)
    _label_axes([points for _, points in finite], canvas, percent)
    drawn = figure.build().string()
    text = Text.from_ansi(drawn.rstrip("\n"))
    if not canvas.colour:
        text = Text(text.plain)
    return Text(text.plain.translate(_BOX_TO_ASCII)) if canvas.ascii else text


def loss_chart(history: History, canvas: Canvas) -> Text:
    """Return the iteration loss: the samples, and their running mean drawn over them."""
    raw = [(float(step), loss) for step, loss in history.losses]
    smoothed = smooth(raw)
    raw_line = Line(raw, MARK_COLOUR, "dots")
    return draw([raw_line, Line(smoothed, TRAIN_COLOUR)], canvas, marks=_step_marks(history))


def epoch_loss_chart(history: History, canvas: Canvas) -> Text:
    """Return training and validation loss by epoch, with the test point where it was measured."""
    train = [(float(p.epoch), p.train_loss) for p in history.epochs if p.train_loss is not None]
    val = [(float(p.epoch), p.val_loss) for p in history.epochs if p.val_loss is not None]
    test = _test_point(history, history.test_loss)
    lines = [Line(train, TRAIN_COLOUR), Line(val, VAL_COLOUR), Line(test, TEST_COLOUR, "point")]
    return draw(lines, canvas, marks=_epoch_marks(history))


def accuracy_chart(history: History, canvas: Canvas) -> Text:
    """Return training and validation accuracy by epoch in percent, with the test point."""
    train = [(float(p.epoch), p.train_accuracy) for p in history.epochs if p.train_accuracy is not None]
    val = [(float(p.epoch), p.val_accuracy) for p in history.epochs if p.val_accuracy is not None]
    test = _test_point(history, history.test_accuracy)
    lines = [Line(train, TRAIN_COLOUR), Line(val, VAL_COLOUR), Line(test, TEST_COLOUR, "point")]
    return draw(lines, canvas, marks=_epoch_marks(history), percent=True)


def lr_chart(points: Sequence[tuple[float, float]], canvas: Canvas) -> Text:
    """Return the learning rate by step."""
    return draw([Line(points, TRAIN_COLOUR)], canvas)


def smooth(points: Sequence[tuple[float, float]], weight: float = 0.9) -> list[tuple[float, float]]:
    """Return the running mean with exponential weights, without the bias towards zero at its start."""
    smoothed, total, share = [], 0.0, 0.0
    for place, value in points:
        if not math.isfinite(value):
            continue
        total = weight * total + (1 - weight) * value
        share = weight * share + (1 - weight)
        smoothed.append((place, total / share))
    return smoothed


def _draw_marks(marks: Sequence[float], series: list[list[tuple[float, float]]], canvas: Canvas) -> None:
    # plotext's own vertical line paints its background white under this theme.
    low, high = _x_range(series)
    bottom, top = _y_range(series)
    rows = [bottom + (top - bottom) * row / canvas.height for row in range(canvas.height + 1)]
    symbol = ":" if canvas.ascii else "┊"
    for mark in marks:
        if low < mark < high:
            signal = plotext.figure.signal([mark] * len(rows), rows, marker=_marker(symbol, MARK_COLOUR, canvas))
            plotext.figure.draw(signal)


def _marker(symbol: str, colour: str, canvas: Canvas) -> plotext.marker:
    return plotext.marker(symbol, _CODES[colour] if canvas.colour else None)


def _draw_line(line: Line, points: list[tuple[float, float]], canvas: Canvas) -> None:
    if line.marker == "point":
        symbol = "x" if canvas.ascii else "◆"
    elif canvas.ascii:
        symbol = "." if line.marker == "dots" else "o" if line.colour == TRAIN_COLOUR else "*"
    else:
        symbol = "braille"
    xs, ys = [x for x, _ in points], [y for _, y in points]
    signal = plotext.figure.signal(xs, ys, marker=_marker(symbol, line.colour, canvas))
    if line.marker == "line" and len(points) > 1:
        signal.lines()
    plotext.figure.draw(signal)


def _label_axes(series: list[list[tuple[float, float]]], canvas: Canvas, percent: bool) -> None:
    low, high = _x_range(series)
    bottom, top = _y_range(series)
    if low == high:
        plotext.figure.ruler("x").lim(low - 1, high + 1)
    if bottom == top:
        room = abs(top) * 0.1 or 1.0
        bottom, top = bottom - room, top + room
        plotext.figure.ruler("y").lim(bottom, top)
    across = ticks(low, high, max(3, min(12, canvas.width // 9)), whole=True)
    plotext.figure.ruler("x").ticks(across, [f"{tick:g}" for tick in across])
    upward = ticks(bottom, top, max(3, min(8, canvas.height // 2)))
    unit = "%" if percent else ""
    plotext.figure.ruler("y").ticks(upward, [f"{tick:.4g}{unit}" for tick in upward])


def ticks(low: float, high: float, count: int, *, whole: bool = False) -> list[float]:
    """Return at most about ``count`` round numbers within low..high: multiples of 1, 2 or 5 times a power of ten."""
    if high <= low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    if whole:
        step = max(1.0, round(step))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)] or [low]


def _finite(points: Sequence[tuple[float, float]], scale: float) -> list[tuple[float, float]]:
    # plotext aborts the process on NaN and raises on infinity; near the ends of the range arithmetic overflows.
    kept = [(x, y * scale) for x, y in points if math.isfinite(x) and abs(y) < 1e300]
    return [(x, y if abs(y) > 1e-300 else 0.0) for x, y in kept]


def _thin(points: list[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """Keep the lowest and the highest point of each of ``most`` / 2 stretches: no spike is lost."""
    if len(points) <= most:
        return points
    stretch = math.ceil(len(points) / (most // 2))
    kept: list[tuple[float, float]] = []
    for start in range(0, len(points), stretch):
        part = points[start : start + stretch]
        kept += sorted({min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])})
    return kept


def _x_range(series: list[list[tuple[float, float]]]) -> tuple[float, float]:
    places = [x for points in series for x, _ in points]
    return min(places), max(places)


def _y_range(series: list[list[tuple[float, float]]]) -> tuple[float, float]:
    values = [y for points in series for _, y in points]
    return min(values), max(values)


def _step_marks(history: History) -> list[float]:
    unfrozen = history.unfrozen_after
    return [unfrozen.step + 0.5] if unfrozen else []


def _epoch_marks(history: History) -> list[float]:
    unfrozen = history.unfrozen_after
    return [unfrozen.epoch + 0.5] if unfrozen else []


def _test_point(history: History, value: float | None) -> list[tuple[float, float]]:
    best = history.best
    return [(float(best.epoch), value)] if best and value is not None else []


def arrange(blocks: Sequence[tuple[Text, Text]], width: int, *, side_by_side: bool) -> Table:
    """Return titled charts below each other, or two in a row."""
    grid = Table.grid(padding=(0, 2, 0, 0), pad_edge=False)
    columns = 2 if side_by_side else 1
    for _ in range(columns):
        grid.add_column(width=width, no_wrap=True)
    for start in range(0, len(blocks), columns):
        grid.add_row(*(Group(title, chart) for title, chart in blocks[start : start + columns]))
    return grid

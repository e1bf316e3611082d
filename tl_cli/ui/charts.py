"""Curves as text: the one file that speaks to plotext."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import plotext
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from tl_cli.training.history import History
from tl_cli.ui.console import is_ascii

# Colours of the terminal's own palette that differ for colour-blind readers too.
TRAIN_COLOUR, VAL_COLOUR, TEST_COLOUR, MARK_COLOUR = "blue", "orange", "magenta", "grey"
_CODES = {"blue": 33, "orange": 208, "magenta": 170, "green": 36, "yellow": 178, "cyan": 80, "grey": 245}
_BOX_TO_ASCII = str.maketrans("─│┌┐└┘├┤┬┴┼┊┈", "-|+++++++++:-")


def style_of(colour: str) -> str:
    """Return Rich's style for text in the colour of a curve."""
    return f"color({_CODES[colour]})"


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

    @classmethod
    def on(cls, console: Console, width: int, height: int) -> "Canvas":
        """Return a canvas with what a console can show; a pipe gets no colour."""
        return cls(width, height, console.is_terminal and not console.no_color, is_ascii(console))


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
    across = _Axis.over(x for _, points in finite for x, _ in points)
    upward = _Axis.over(y for _, points in finite for _, y in points)
    _draw_marks([across.place(mark) for mark in marks if across.low < mark < across.high], canvas)
    for line, points in finite:
        _draw_line(line, [(across.place(x), upward.place(y)) for x, y in points], canvas)
    _label_axes(across, upward, canvas, "%" if percent else "")
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


@dataclass(frozen=True, slots=True)
class _Axis:
    """A range of values that is drawn as 0..1.

    plotext gets no other numbers: its own arithmetic aborts the process on ranges such as 1e308 or 5e-324.
    """

    low: float
    high: float

    @classmethod
    def over(cls, values: Iterable[float]) -> "_Axis":
        """Return the range of the values, widened where they are all alike."""
        known = list(values)
        low, high = min(known), max(known)
        if high - low > abs(high) * 1e-9:
            return cls(low, high)
        room = abs(high) * 0.1 or 1.0
        return cls(low - room, high + room)

    def place(self, value: float) -> float:
        """Return where a value lies between 0 and 1."""
        return (value - self.low) / (self.high - self.low)


def _draw_marks(places: Sequence[float], canvas: Canvas) -> None:
    # plotext's own vertical line paints its background white under this theme.
    rows = [row / canvas.height for row in range(canvas.height + 1)]
    marker = _marker(":" if canvas.ascii else "┊", MARK_COLOUR, canvas)
    for place in places:
        plotext.figure.draw(plotext.figure.signal([place] * len(rows), rows, marker=marker))


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


def _label_axes(across: _Axis, upward: _Axis, canvas: Canvas, unit: str) -> None:
    columns = ticks(across.low, across.high, max(3, min(12, canvas.width // 9)), whole=True)
    rows = ticks(upward.low, upward.high, max(3, min(8, canvas.height // 2)))
    for name, axis, places in (("x", across, columns), ("y", upward, rows)):
        ruler = plotext.figure.ruler(name)
        ruler.lim(0, 1)
        labels = [label + (unit if name == "y" else "") for label in _tick_labels(places)]
        ruler.ticks([axis.place(place) for place in places], labels)


def _tick_labels(places: Sequence[float]) -> list[str]:
    """Return labels with as many digits as tell the ticks apart."""
    labels: list[str] = []
    for digits in range(4, 17):
        labels = [f"{place:.{digits}g}" for place in places]
        if len(set(labels)) == len(places):
            break
    return labels


def ticks(low: float, high: float, count: int, *, whole: bool = False) -> list[float]:
    """Return at most about ``count`` round numbers within low..high: multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / count
    if rough < 1e-300:
        return [low]
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    if whole:
        step = max(1.0, round(step))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def _finite(points: Sequence[tuple[float, float]], scale: float) -> list[tuple[float, float]]:
    limit = 1e300  # beyond it differences overflow
    return [(x, y * scale) for x, y in points if abs(x) < limit and abs(y) < limit]  # False for NaN


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

"""Curves as text: the only module that uses plotext."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import plotext
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from tl_cli.ui.panels import Line, Panel, Points, drawn_points
from tl_cli.ui.terminal.console import is_ascii, shortened
from tl_cli.ui.terminal.layout import flow, grid_of

_CODES = {
    "blue": 33, "orange": 208, "magenta": 170, "green": 36, "yellow": 178, "cyan": 80, "black": 250, "grey": 245,
}  # fmt: skip
_BOX_TO_ASCII = str.maketrans("─│┌┐└┘├┤┬┴┼┊┈", "-|+++++++++:-")
# Symbols tell lines apart where colours do not, or where all colours are used.
_LETTERS = "abcdefghijklmnpqrstuvwyzABCDEFGHIJKLMNPQRSTUVWXYZ"
_LINE_SYMBOLS, _ASCII_LINES = ("braille", "•", "+", "x", "o", "%", "&", *_LETTERS), ".o*x+%&" + _LETTERS
_POINT_SYMBOLS, _ASCII_POINTS = {"test": "◆", "best": "★"}, {"test": "#", "best": "@"}


@dataclass(frozen=True, slots=True)
class Canvas:
    """The size of a chart in characters, and whether the terminal shows colours and Unicode."""

    width: int
    height: int
    colour: bool = True
    ascii: bool = False

    @classmethod
    def on(cls, console: Console, width: int, height: int) -> "Canvas":
        """Return a canvas for a console; a pipe gets no colour."""
        return cls(width, height, console.is_terminal and not console.no_color, is_ascii(console))

    @property
    def points(self) -> dict[str, str]:
        """The symbols of single points, by their kind."""
        return _ASCII_POINTS if self.ascii else _POINT_SYMBOLS

    @property
    def mark(self) -> str:
        """The symbol of a dotted vertical line."""
        return ":" if self.ascii else "┊"

    def style_of(self, colour: str) -> str:
        """Return Rich's style for text in the colour of a curve."""
        return f"color({_CODES[colour]})" if self.colour else ""


def draw(panel: Panel, canvas: Canvas) -> Text:
    """Return the curves of a panel, with axes and labels, as a block of text as large as the canvas.

    Without points, the text is ``no points yet``; on a canvas that is too small, it is empty.
    """
    shown = _shown(panel, canvas)
    if not shown or canvas.width < 16 or canvas.height < 4:
        return Text("no points yet" if not shown else "", style="dim")
    figure = plotext.figure
    plotext.terminal.limit(False, False)  # it would clip to 80 columns in a pipe
    figure.clear()
    figure.theme("simple" if canvas.colour else "colorless")
    figure.plot_size(canvas.width, canvas.height)
    figure.legend(False)  # it would cover the curves
    across = _Axis.over(x for _, points in shown for x, _ in points)
    upward = _Axis.over(y for _, points in shown for _, y in points)
    # plotext's own vertical line paints its background white under this theme.
    rows = [row / canvas.height for row in range(canvas.height + 1)]
    for mark in panel.marks:
        if across.low < mark.x < across.high:
            _plot([(across.scaled(mark.x), row) for row in rows], canvas.mark, mark.colour, canvas)
    for line, points in shown:
        scaled = [(across.scaled(x), upward.scaled(y)) for x, y in points]
        is_line = line.kind == "line" and len(points) > 1
        _plot(scaled, symbol_of(panel, line, canvas), line.colour, canvas, is_line=is_line)
    _label_axes(panel, across, upward, canvas)
    text = Text.from_ansi(figure.build().string().rstrip("\n"))
    if canvas.colour and not canvas.ascii:
        return text
    return Text(text.plain.translate(_BOX_TO_ASCII) if canvas.ascii else text.plain)


def heading(panel: Panel, canvas: Canvas, *, with_legend: bool = True) -> list[Text]:
    """Return title, legend and notes of a panel, in as many lines as they need."""
    title = Text(shortened(panel.title, canvas.width), style="bold")
    lines = flow([title, *legend(panel, canvas)], canvas.width) if with_legend else [title]
    return [*lines, *(Text(shortened(note, canvas.width), style="yellow") for note in panel.notes)]


def mark_lines(panels: Sequence[Panel], canvas: Canvas) -> list[Text]:
    """Return the legend of the dotted lines of some panels, each once."""
    labels = {(mark.label, mark.colour) for panel in panels for mark in panel.marks if mark.label}
    return [_legend_entry(canvas.mark, label, colour, canvas) for label, colour in sorted(labels)]


def points_line(canvas: Canvas) -> Text:
    """Return the legend of the single points, for panels whose own legend names the runs only."""
    return Text(f"{canvas.points['best']} best epoch  {canvas.points['test']} test", style="dim")


def legend(panel: Panel, canvas: Canvas) -> list[Text]:
    """Return the legend of a panel: each label with its symbol."""
    return [
        # plotext's braille dots look like a solid line.
        _legend_entry(
            symbol_of(panel, line, canvas).replace("braille", "·" if line.kind == "samples" else "━"),
            line.label,
            line.colour,
            canvas,
        )
        for line in panel.lines
        if line.label and line.points
    ]


def _legend_entry(symbol: str, label: str, colour: str, canvas: Canvas) -> Text:
    return Text(f"{symbol} {shortened(label, max(4, canvas.width - 2))}", style=canvas.style_of(colour))


def symbol_of(panel: Panel, line: Line, canvas: Canvas) -> str:
    """Return the character that a line is drawn with; ``braille`` stands for plotext's dots."""
    if line.kind in ("best", "test"):
        return canvas.points[line.kind]
    symbols = _ASCII_LINES if canvas.ascii else _LINE_SYMBOLS
    if line.kind == "samples":
        return symbols[0]
    others = [each for each in panel.lines if each.kind == "line"]
    index = next(index for index, each in enumerate(others) if each is line)
    if canvas.colour and not canvas.ascii:
        # Lines that share a colour have different symbols.
        index = sum(each.colour == line.colour for each in others[:index])
    elif any(each.kind == "samples" for each in panel.lines):
        index += 1
    return symbols[index % len(symbols)]


def _shown(panel: Panel, canvas: Canvas) -> list[tuple[Line, Points]]:
    """Return the lines that have points to draw: finite, scaled, and no more than the canvas can show."""
    drawn = ((line, drawn_points(panel, line)) for line in panel.lines)
    if panel.log:
        drawn = ((line, [(x, math.log10(y)) for x, y in points]) for line, points in drawn)
    return [(line, _thin(points, 2 * canvas.width)) for line, points in drawn if points]


@dataclass(frozen=True, slots=True)
class _Axis:
    """A range of values, scaled to 0..1 for plotext, which aborts the process on ranges such as 1e308 or 5e-324."""

    low: float
    high: float

    @classmethod
    def over(cls, values: Iterable[float]) -> "_Axis":
        """Return the range of the values, widened where all are equal."""
        known = list(values)
        low, high = min(known), max(known)
        if high - low > abs(high) * 1e-9:
            return cls(low, high)
        room = abs(high) * 0.1 or 1.0
        return cls(low - room, high + room)

    def scaled(self, value: float) -> float:
        """Return the position of a value between 0 and 1."""
        return (value - self.low) / (self.high - self.low)


def _plot(points: Points, symbol: str, colour: str, canvas: Canvas, *, is_line: bool = False) -> None:
    marker = plotext.marker(symbol, _CODES[colour] if canvas.colour else None)
    signal = plotext.figure.signal([x for x, _ in points], [y for _, y in points], marker=marker)
    if is_line:
        signal.lines()
    plotext.figure.draw(signal)


def _label_axes(panel: Panel, across: _Axis, upward: _Axis, canvas: Canvas) -> None:
    columns = ticks(across.low, across.high, max(3, min(12, canvas.width // 9)), whole=panel.whole)
    most = max(2, min(8, canvas.height // 2))
    unit = "%" if panel.percent else ""
    if panel.log:
        rows = _log_ticks(upward.low, upward.high, max(3, most))
        labels = [f"{10**row:.3g}{unit}" for row in rows]
    else:
        rows = ticks(upward.low, upward.high, most)
        rows = rows[:: math.ceil(len(rows) / most)]  # one label per row
        labels = [label + unit for label in _tick_labels(rows)]
    for name, axis, values, texts in (("x", across, columns, _tick_labels(columns)), ("y", upward, rows, labels)):
        ruler = plotext.figure.ruler(name)
        ruler.lim(0, 1)
        ruler.ticks([axis.scaled(value) for value in values], texts)


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    """Return the logarithms of powers of ten, with 2 and 5 between them, or of evenly spaced numbers."""
    for factors in ((1,), (1, 2, 5)):
        marks = [
            power + math.log10(factor)
            for power in range(math.floor(low), math.ceil(high) + 1)
            for factor in factors
            if low <= power + math.log10(factor) <= high
        ]
        if len(marks) >= 3:
            return marks[:: math.ceil(len(marks) / most)]
    return [math.log10(number) for number in ticks(10**low, 10**high, most) if number > 0]


def _tick_labels(values: Sequence[float]) -> list[str]:
    """Return labels with the fewest digits that tell the ticks apart."""
    rounded = ([f"{value:.{digits}g}" for value in values] for digits in range(4, 17))
    return next((labels for labels in rounded if len(set(labels)) == len(values)), list(map(str, values)))


def ticks(low: float, high: float, count: int, *, whole: bool = False) -> list[float]:
    """Return about ``count`` multiples of 1, 2 or 5 times a power of ten within low..high.

    Like matplotlib's MaxNLocator, whose import takes as long as the rest of `tl plot --terminal`.
    """
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


def _thin(points: Points, most: int) -> Points:
    """Return the lowest and the highest point of each of ``most`` / 2 sections, so that no spike is lost."""
    if len(points) <= most:
        return points
    size = math.ceil(len(points) / max(1, most // 2))
    extremes: Points = []
    for start in range(0, len(points), size):
        part = points[start : start + size]
        extremes += sorted({min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])})
    return extremes


def arrange(panels: Sequence[Panel], canvas: Canvas, columns: int, headings: Sequence[list[Text]]) -> Table:
    """Return charts below their headings, in rows of ``columns``; the charts of a row are aligned."""
    cells = []
    for start in range(0, len(panels), columns):
        row = slice(start, start + columns)
        tallest = max(map(len, headings[row]))
        for panel, lines in zip(panels[row], headings[row], strict=True):
            cells.append(Group(*lines, *[Text()] * (tallest - len(lines)), draw(panel, canvas)))
    return grid_of(cells, columns, canvas.width, no_wrap=True)

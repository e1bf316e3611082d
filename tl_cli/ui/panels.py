"""Panels of the curves of runs: what is drawn, the same in a terminal and in image files.

Neither plotext nor matplotlib here: ``charts`` draws a panel as text, ``curve_figures`` draws it to a file.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np

from tl_cli.evaluation.scores import EPOCH_SCORES, LOSS_KEY
from tl_cli.training.history import History

XAxis = Literal["step", "epoch", "time"]
Kind = Literal["line", "samples", "best", "test"]
Points = list[tuple[float, float]]

# Colour-blind readers can tell them apart, in the terminal and in image files (Okabe and Ito, 2008).
TRAIN_COLOUR, VAL_COLOUR, TEST_COLOUR, MARK_COLOUR = "blue", "orange", "magenta", "grey"
FORMATS = (".png", ".svg", ".pdf")  # of image files
COLOURS = ("blue", "orange", "magenta", "green", "yellow", "cyan", "black")
_MIN_SPAN = 10  # points that the moving average spans
_TIMES = (("hours", 3600.0), ("minutes", 60.0), ("seconds", 1.0))
_MAX_ABS = 1e290  # beyond it differences overflow
_SHARE = 50  # by default the moving average spans 1/50 of the points


@dataclass(frozen=True, slots=True)
class _Measure:
    """A measure of a training: the fields of ``EpochEnded`` that hold it, and the field of ``History`` for the test.

    Attributes:
        y: label of the y axis.
    """

    name: str
    y: str
    train: str
    val: str
    averaged: str
    test: str

    @property
    def keys(self) -> list[str]:
        """Names of the curves in MLflow."""
        return [EPOCH_SCORES[column].key for column in (self.train, self.val, self.averaged)]

    @property
    def percent(self) -> bool:
        """Whether values are fractions, shown in percent."""
        return EPOCH_SCORES[self.val].unit == "fraction"


_ACCURACY = _Measure("accuracy", "accuracy (%)", "train_accuracy", "val_accuracy", "ema_val_accuracy", "test_accuracy")
_LOSS = _Measure("loss", "cross-entropy", "train_loss", "val_loss", "ema_val_loss", "test_loss")


@dataclass(frozen=True, slots=True)
class Line:
    """One curve: points in order of x. Points that are not finite are not drawn.

    Attributes:
        kind: a line through its points, dots, or the single point of a best epoch or of a test.
        label: in the legend; empty for none.
    """

    points: Sequence[tuple[float, float]]
    colour: str
    kind: Kind = "line"
    label: str = ""


@dataclass(frozen=True, slots=True)
class Mark:
    """A dotted vertical line."""

    x: float
    colour: str = MARK_COLOUR
    label: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """One chart.

    Attributes:
        lines: the later ones are drawn over the earlier ones.
        x: what the x axis counts.
        y: what the y axis measures.
        percent: values are fractions, the axis shows percent.
        log: the y axis is logarithmic; values of zero and below are left out.
        whole: values of the x axis are integers.
        notes: points that the chart does not show.
    """

    title: str
    lines: Sequence[Line]
    marks: Sequence[Mark] = ()
    x: str = ""
    y: str = ""
    percent: bool = False
    log: bool = False
    whole: bool = True
    notes: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class PanelOptions:
    """What the panels show.

    Attributes:
        metrics: by name; empty for those that tl records.
        x: of all panels; None is steps for batches, and epochs otherwise.
        smooth: weight of an exponential average as long as the moving average, 0 for none; None depends on the number
            of points.
        log: whether losses, learning rates and metrics by name have a logarithmic axis.
        last: only this many epochs at the end; steps or minutes where x is one of these.
    """

    metrics: tuple[str, ...] = ()
    x: XAxis | None = None
    smooth: float | None = None
    log: bool = False
    last: float | None = None


def panels(histories: Sequence[History], options: PanelOptions = PanelOptions()) -> list[Panel]:
    """Return the panels of one run, training and validation, or of several runs, which share each panel."""
    if is_usual(histories, options):
        return [make(histories, options) for make in (loss_by_step, accuracy_by_epoch, loss_by_epoch, rates_by_epoch)]
    names = options.metrics or tuple(dict.fromkeys(name for history in histories for name in history.others))
    return [metric_panel(histories, name, options) for name in names]


def is_usual(histories: Sequence[History], options: PanelOptions) -> bool:
    """Whether the panels are those of a training: no metrics are named, and tl recorded one of the runs."""
    return not options.metrics and any(
        history.losses or history.epochs or (history.not_finite and not history.others) for history in histories
    )


def loss_by_step(histories: Sequence[History], options: PanelOptions = PanelOptions()) -> Panel:
    """Return the loss of batches with its moving average; of several runs, the averages."""
    axis = _XAxis.of(histories, options, "step")
    lines: list[Line] = []
    best_points = []
    for index, history in enumerate(histories):
        lines += _smoothed(axis, index, history.losses, "batch")
        if history.best is not None:
            (x, _), *_ = axis.place(history, [(history.best.step, 0.0)]) or [(math.nan, 0.0)]
            best_points.append(axis.best_point(index, [(x, y) for y in _value_at(lines[-1].points, x)]))
    # Another panel may show the loss of epochs on the same axis.
    title = "loss by step" if axis.unit == "step" else f"loss of batches by {axis.name}"
    return axis.panel(title, [*lines, *best_points], (LOSS_KEY,), y=_LOSS.y)


def accuracy_by_epoch(histories: Sequence[History], options: PanelOptions = PanelOptions()) -> Panel:
    """Return training and validation accuracy by epoch, and test accuracy; of several runs, no training."""
    return _by_epoch(_ACCURACY, histories, options)


def loss_by_epoch(histories: Sequence[History], options: PanelOptions = PanelOptions()) -> Panel:
    """Return training and validation loss by epoch, and test loss; of several runs, no training."""
    return _by_epoch(_LOSS, histories, options)


def _by_epoch(measure: _Measure, histories: Sequence[History], options: PanelOptions) -> Panel:
    axis = _XAxis.of(histories, options, "epoch")
    lines: list[Line] = []
    best_points: list[Line] = []
    test_points: list[Line] = []
    for index, history in enumerate(histories):
        if axis.is_single:
            lines.append(Line(axis.place_epochs(history, measure.train), TRAIN_COLOUR, label="train"))
        colour = VAL_COLOUR if axis.is_single else axis.colour(index)
        lines.append(Line(axis.place_epochs(history, measure.val), colour, label=axis.label(index, "validation")))
        if axis.is_single and (averaged := axis.place_epochs(history, measure.averaged)):
            lines.append(Line(averaged, "green", label="averaged weights"))
        if (best := history.best) is None:
            continue
        value, test = getattr(best, measure.averaged if best.averaged else measure.val), getattr(history, measure.test)
        best_points.append(axis.best_point(index, axis.place(history, [(best.step, value)])))
        if test is not None:
            colour = TEST_COLOUR if axis.is_single else colour
            label = "" if test_points else "test"
            test_points.append(Line(axis.place(history, [(best.step, test)]), colour, "test", label))
    title = axis.titled(measure.name if axis.is_single else f"validation {measure.name}")
    shown = [*lines, *best_points, *test_points]
    return axis.panel(title, shown, measure.keys, y=measure.y, percent=measure.percent)


def rates_by_epoch(histories: Sequence[History], options: PanelOptions = PanelOptions()) -> Panel:
    """Return the learning rates of head and backbone by epoch; of several runs, of the head."""
    axis = _XAxis.of(histories, options, "epoch")
    lines = [
        Line(axis.place_epochs(history, "lr_head"), axis.colour(index), label=axis.label(index, "head"))
        for index, history in enumerate(histories)
    ]
    if axis.is_single:
        lines.append(Line(axis.place_epochs(histories[0], "lr_backbone"), VAL_COLOUR, label="backbone"))
    title = "learning rate" if axis.is_single else "learning rate of the head"
    return axis.panel(axis.titled(title), lines, [EPOCH_SCORES[name].key for name in ("lr_head", "lr_backbone")])


def metric_panel(histories: Sequence[History], name: str, options: PanelOptions) -> Panel:
    """Return one metric of each run."""
    axis = _XAxis.of(histories, options, "step")
    points = [history.others.get(name, []) for history in histories]
    lines = [line for index, each in enumerate(points) for line in _smoothed(axis, index, each, "recorded")]
    # tl records fractions; other programs may record percent under such a name.
    percent = name.rpartition("/")[2].endswith("accuracy") and all(abs(y) <= 1 for each in points for _, y in each)
    return axis.panel(f"{name} by {axis.name}", lines, (name,), percent=percent, log=options.log)


def overlaid(names: Sequence[str], curves: Sequence[Sequence[History]]) -> list[Panel]:
    """Return validation accuracy and loss by epoch of several models, with a curve per training."""
    shown = []
    for measure in (_ACCURACY, _LOSS):
        lines = []
        for index, (name, histories) in enumerate(zip(names, curves, strict=True)):
            for number, history in enumerate(histories):
                values = [(float(epoch.epoch), getattr(epoch, measure.val)) for epoch in history.epochs]
                points = [(x, value) for x, value in values if value is not None]
                lines.append(Line(points, COLOURS[index % len(COLOURS)], label=name if number == 0 else ""))
        title = f"validation {measure.name} by epoch"
        shown.append(Panel(title, lines, x="epoch", y=measure.y, percent=measure.percent))
    return shown


def drawn_points(panel: Panel, line: Line) -> Points:
    """Return the points of a line that can be drawn, in the unit of the y axis."""
    scale = 100 if panel.percent else 1
    return [
        (x, y * scale)
        for x, y in line.points
        if abs(x) < _MAX_ABS and abs(y) < _MAX_ABS and (y > 0 or not panel.log)  # False for NaN
    ]


def smooth(points: Sequence[tuple[float, float]], span: int) -> Points:
    """Return the moving average over ``span`` points, an odd number, centred on each.

    Near either end it is the least-squares line through the outermost ``span`` points: the filter of Savitzky and Golay
    (1964) of degree 1. A mean over past points only would lie above a falling loss.
    """
    finite = [(x, y) for x, y in points if math.isfinite(y)]
    half = min(span, len(finite) - 1) // 2
    if half < 1:
        return finite
    values = np.array([y for _, y in finite])
    averages = np.empty_like(values)
    width = 2 * half + 1
    # A window is the end of one block and the beginning of the next. Differences of running sums would lose the digits
    # of all losses after a huge one, and a convolution of 100,000 points with a long window takes seconds.
    blocks = np.pad(values, (0, 2 * width - len(values) % width)).reshape(-1, width)
    ends = blocks[:, ::-1].cumsum(axis=1)[:, ::-1].ravel()
    beginnings = np.pad(blocks[:, :-1].cumsum(axis=1), ((0, 0), (1, 0))).ravel()
    windows = len(values) - width + 1
    averages[half : half + windows] = (ends[:windows] + beginnings[width : width + windows]) / width
    offsets = np.arange(width) - half
    for window, outer in ((slice(0, width), slice(0, half)), (slice(-width, None), slice(-half, None))):
        slope = offsets @ values[window] / (offsets @ offsets)
        averages[outer] = values[window].mean() + slope * offsets[outer]
    return [(x, float(average)) for (x, _), average in zip(finite, averages, strict=True)]


def _value_at(points: Sequence[tuple[float, float]], x: float) -> list[float]:
    """Return the value of the last point at or before ``x``; empty if there is none."""
    index = bisect_left(points, (x, math.inf))
    return [points[index - 1][1]] if index else []


def _smoothed(axis: "_XAxis", index: int, points: Sequence[tuple[int, float]], raw_label: str) -> list[Line]:
    """Return the samples of a run and, last, their moving average; of several runs, the average alone."""
    placed = axis.place(axis.histories[index], points)
    weight = axis.options.smooth
    if weight is None:
        span = max(_MIN_SPAN, len(placed) / _SHARE) if len(placed) > 2 * _MIN_SPAN else 0.0
    else:
        # The span of an exponential average with this weight.
        span = 2 / (1 - weight) - 1 if weight else 0.0
    if not span:
        return [Line(placed, axis.colour(index), label=axis.label(index, raw_label))]
    averages = smooth(placed, round(span) // 2 * 2 + 1)
    mean = Line(averages, axis.colour(index), label=axis.label(index, "moving average"))
    return [Line(placed, MARK_COLOUR, "samples", raw_label), mean] if axis.is_single else [mean]


@dataclass(frozen=True, slots=True)
class _XAxis:
    """The x axis of a panel, and the positions of the steps of runs on it.

    Attributes:
        divisor: seconds per unit of time.
        steps_per_epoch: where the axis shows steps and ``last`` counts epochs.
        whole_epochs: whether its points are ends of epochs.
    """

    histories: Sequence[History]
    options: PanelOptions
    unit: XAxis
    title: str
    divisor: float = 1.0
    steps_per_epoch: float = 1.0
    whole_epochs: bool = False

    @classmethod
    def of(cls, histories: Sequence[History], options: PanelOptions, usual: XAxis) -> "_XAxis":
        unit = options.x or usual
        if unit == "epoch" and not any(history.epochs for history in histories):
            unit = "step"
        if unit == "time":
            longest = max((history.clock[-1][1] for history in histories if history.clock), default=0.0)
            name, divisor = next((name, size) for name, size in _TIMES if longest > 3 * size or size == 1)
            return cls(histories, options, unit, f"{name} since the run began", divisor)
        per_epoch = 1.0
        if options.x is None and unit == "step":
            ends = [history.epochs[-1] for history in histories if history.epochs]
            per_epoch = max((end.step / end.epoch for end in ends if end.epoch > 0 and end.step > 0), default=1.0)
        title = "optimizer step" if unit == "step" else "epoch"
        return cls(histories, options, unit, title, steps_per_epoch=per_epoch, whole_epochs=usual == "epoch")

    @property
    def is_single(self) -> bool:
        """Whether the panel shows one run."""
        return len(self.histories) == 1

    @property
    def name(self) -> str:
        """The name of its unit."""
        return self.unit if self.unit != "time" else self.title.split("s ")[0]

    def titled(self, title: str) -> str:
        """Return the title of a panel, with the name of the axis unless it counts epochs."""
        return title if self.unit == "epoch" else f"{title} by {self.name}"

    def colour(self, index: int) -> str:
        """Return the colour of a run."""
        return TRAIN_COLOUR if self.is_single else COLOURS[index % len(COLOURS)]

    def label(self, index: int, alone: str) -> str:
        """Return the name of a run; for a single run, what the curve shows."""
        return alone if self.is_single else self.histories[index].name

    def panel(
        self, title: str, lines: Sequence[Line], keys: Sequence[str], *, y: str = "", percent: bool = False,
        log: bool | None = None,
    ) -> Panel:  # fmt: skip
        """Return a panel with this axis; its notes name the points that are not drawn.

        Args:
            keys: the metrics it shows, as MLflow names them.
            log: None is as requested, except for fractions.
        """
        log = self.options.log and not percent if log is None else log
        notes = []
        for history in self.histories:
            name = "" if self.is_single else f"{history.name}: "
            for key in keys:
                if steps := history.not_finite.get(key):
                    count = f"{len(steps):,} step{'s' * (len(steps) > 1)}"
                    notes.append(f"{name}{key} is not finite at {count}, first at step {steps[0]:,}")
        hidden = sum(value <= 0 for line in lines for _, value in line.points)
        if log and hidden:
            notes.append(f"not on a logarithmic axis: {hidden:,} of zero or below")
        return Panel(title, lines, self._marks(), self.title, y, percent, log, self.unit != "time", notes)

    def best_point(self, index: int, points: Points) -> Line:
        """Return the point of the best epoch of a run."""
        history = self.histories[index]
        best = history.best
        assert best is not None
        label = f"{history.keep}, epoch {best.epoch}" if self.is_single else "best" if index == 0 else ""
        return Line(points, "green" if self.is_single else self.colour(index), "best", label)

    def place(self, history: History, points: Sequence[tuple[int, float | None]]) -> Points:
        """Return points by step as points on this axis, without those that have no value or no position on it."""
        position, start = self._position(history), self._start(history)
        known = [(position(step), value) for step, value in points if value is not None]
        return [(x, value) for x, value in known if x is not None and x > start]

    def place_epochs(self, history: History, column: str) -> Points:
        """Return one number of each epoch."""
        return self.place(history, [(epoch.step, getattr(epoch, column)) for epoch in history.epochs])

    def _marks(self) -> list[Mark]:
        """Return the marks of unfreezing: a single one if all runs agree."""
        marks = []
        for index, history in enumerate(self.histories):
            if (last := history.unfrozen_after) is None:
                continue
            colour = MARK_COLOUR if self.is_single else self.colour(index)
            # Where points are the ends of epochs, the mark lies between two.
            half = 0.5 if self.whole_epochs and self.unit == "epoch" else 0.0
            for x, _ in self.place(history, [(last.step, 0.0)]):
                marks.append(Mark(x + half, colour, f"backbone unfrozen after epoch {last.epoch}"))
        if len(marks) > 1 and len({mark.x for mark in marks}) == 1:
            return [replace(marks[0], colour=MARK_COLOUR)]
        return marks

    def _start(self, history: History) -> float:
        """Return the beginning of the part of a run that is shown."""
        if self.options.last is None:
            return -math.inf
        steps = [*(step for step, _ in history.losses[-1:]), *(epoch.step for epoch in history.epochs[-1:])]
        steps += [points[-1][0] for points in history.others.values() if points]
        end = self._position(history)(max(steps, default=0))
        unit = 60 / self.divisor if self.unit == "time" else self.steps_per_epoch
        return -math.inf if end is None else end - self.options.last * unit

    def _position(self, history: History) -> Callable[[float], float | None]:
        """Return the function from a step of a run to its position on the axis."""
        if self.unit == "step":
            return float
        if self.unit == "epoch":
            ends = [(float(epoch.step), float(epoch.epoch)) for epoch in history.epochs if epoch.step > 0]
            return partial(_interpolate, [(0.0, 0.0), *ends])
        return partial(_interpolate, [(float(step), seconds / self.divisor) for step, seconds in history.clock])


def _interpolate(known: Sequence[tuple[float, float]], step: float) -> float | None:
    """Return the value at a step by linear interpolation, and extrapolation beyond the last known step."""
    if not known or (len(known) == 1 and known[0][0] != step):
        return None
    index = bisect_left(known, (step, -math.inf))
    if index < len(known) and known[index][0] == step:
        return known[index][1]
    index = min(max(index, 1), len(known) - 1)
    (left, low), (right, high) = known[index - 1], known[index]
    return low + (step - left) / (right - left) * (high - low)

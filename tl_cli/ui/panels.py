"""Panels of the curves of runs: what is drawn, the same in a terminal and in image files.

Neither plotext nor matplotlib here: ``charts`` draws a panel as text, ``curve_figures`` draws it to a file.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from tl_cli.training.history import History

XAxis = Literal["step", "epoch", "time"]
Kind = Literal["line", "samples", "best", "test"]
Points = list[tuple[float, float]]

# Colour-blind readers can tell them apart, in the terminal and in image files (Okabe and Ito, 2008).
TRAIN_COLOUR, VAL_COLOUR, TEST_COLOUR, MARK_COLOUR = "blue", "orange", "magenta", "grey"
FORMATS = (".png", ".svg", ".pdf")  # of image files
COLOURS = ("blue", "orange", "magenta", "green", "yellow", "cyan", "black")
_FEWEST = 10  # points that the moving average spans
_TIMES = (("hours", 3600.0), ("minutes", 60.0), ("seconds", 1.0))
_LARGEST = 1e290  # beyond it differences overflow
_SHARE = 50  # by default the moving average spans 1/50 of the points


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


def panels(histories: Sequence[History], options: PanelOptions | None = None) -> list[Panel]:
    """Return the panels of one run, training and validation, or of several runs, which share each panel."""
    options = options or PanelOptions()
    if not is_usual(histories, options):
        names = options.metrics or tuple(dict.fromkeys(name for history in histories for name in history.others))
        return [metric_panel(histories, name, options) for name in names]
    return [
        loss_by_step(histories, options),
        accuracy_by_epoch(histories, options),
        loss_by_epoch(histories, options),
        rates_by_epoch(histories, options),
    ]


def is_usual(histories: Sequence[History], options: PanelOptions) -> bool:
    """Whether the panels are those of a training: no metrics are named, and tl recorded one of the runs."""
    return not options.metrics and any(
        history.losses or history.epochs or (history.not_finite and not history.others) for history in histories
    )


def loss_by_step(histories: Sequence[History], options: PanelOptions | None = None) -> Panel:
    """Return the loss of batches with its moving average; of several runs, the averages."""
    options = options or PanelOptions()
    axis = _XAxis.of(histories, options, "step")
    lines: list[Line] = []
    for index, history in enumerate(histories):
        points = axis.place(history, history.losses)
        lines += _smoothed(points, options, _colour(histories, index), _label(histories, index, "moving average"),
                           raw_label="batch" if len(histories) == 1 else None)  # fmt: skip
    lines += _best_points(histories, axis, lines=lines)
    # Another panel may show the loss of epochs on the same axis.
    title = "loss by step" if axis.unit == "step" else f"loss of batches by {axis.name}"
    return _panel(title, lines, histories, axis, options, ("step/loss",), y="cross-entropy", log=options.log)


def accuracy_by_epoch(histories: Sequence[History], options: PanelOptions | None = None) -> Panel:
    """Return training and validation accuracy by epoch, and test accuracy; of several runs, no training."""
    curves = (("train_accuracy", "val_accuracy", "ema_val_accuracy"), [each.test_accuracy for each in histories])
    return _by_epoch("accuracy", histories, options or PanelOptions(), *curves, percent=True)


def loss_by_epoch(histories: Sequence[History], options: PanelOptions | None = None) -> Panel:
    """Return training and validation loss by epoch, and test loss; of several runs, no training."""
    curves = (("train_loss", "val_loss", "ema_val_loss"), [each.test_loss for each in histories])
    return _by_epoch("loss", histories, options or PanelOptions(), *curves)


def rates_by_epoch(histories: Sequence[History], options: PanelOptions | None = None) -> Panel:
    """Return the learning rates of head and backbone by epoch; of several runs, of the head."""
    options = options or PanelOptions()
    axis = _XAxis.of(histories, options, "epoch")
    lines = []
    for index, history in enumerate(histories):
        head = axis.place_epochs(history, "lr_head")
        lines.append(Line(head, _colour(histories, index), label=_label(histories, index, "head")))
        if len(histories) == 1:
            lines.append(Line(axis.place_epochs(history, "lr_backbone"), VAL_COLOUR, label="backbone"))
    title = "learning rate" if len(histories) == 1 else "learning rate of the head"
    return _panel(axis.titled(title), lines, histories, axis, options, ("lr/head", "lr/backbone"), log=options.log)


def metric_panel(histories: Sequence[History], name: str, options: PanelOptions) -> Panel:
    """Return one metric of each run."""
    axis = _XAxis.of(histories, options, "step")
    lines: list[Line] = []
    for index, history in enumerate(histories):
        points = axis.place(history, history.others.get(name, []))
        single = len(histories) == 1
        lines += _smoothed(points, options, _colour(histories, index), _label(histories, index, "moving average"),
                           raw_label="recorded" if single else None)  # fmt: skip
    # tl records fractions; other programs may record percent under such a name.
    values = [value for history in histories for _, value in history.others.get(name, [])]
    percent = name.rpartition("/")[2].endswith("accuracy") and all(abs(value) <= 1 for value in values)
    title = f"{name} by {axis.name}"
    return _panel(title, lines, histories, axis, options, (name,), percent=percent, log=options.log)


def overlaid(names: Sequence[str], curves: Sequence[Sequence[History]]) -> list[Panel]:
    """Return validation accuracy and loss by epoch of several models, with a curve per training."""
    found = []
    for title, metric, percent in (
        ("validation accuracy by epoch", "val_accuracy", True),
        ("validation loss by epoch", "val_loss", False),
    ):
        lines = []
        for index, (name, histories) in enumerate(zip(names, curves, strict=True)):
            for number, history in enumerate(histories):
                points = [
                    (float(p.epoch), getattr(p, metric)) for p in history.epochs if getattr(p, metric) is not None
                ]
                lines.append(Line(points, COLOURS[index % len(COLOURS)], label=name if number == 0 else ""))
        y = "accuracy (%)" if percent else "cross-entropy"
        found.append(Panel(title, lines, x="epoch", y=y, percent=percent))
    return found


def drawn_points(panel: Panel, line: Line) -> Points:
    """Return the points of a line that can be drawn, in the unit of the y axis."""
    scale = 100 if panel.percent else 1
    return [
        (x, y * scale)
        for x, y in line.points
        if abs(x) < _LARGEST and abs(y) < _LARGEST and (y > 0 or not panel.log)  # False for NaN
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
    # A window is the end of one block and the beginning of the next. Differences of running sums would lose all digits
    # of the losses after a huge one, and a convolution of 100,000 points takes seconds where the window is long.
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


def _by_epoch(
    title: str,
    histories: Sequence[History],
    options: PanelOptions,
    columns: tuple[str, str, str],
    tested: Sequence[float | None],
    *,
    percent: bool = False,
) -> Panel:
    axis = _XAxis.of(histories, options, "epoch")
    train, val, average = columns
    lines: list[Line] = []
    for index, history in enumerate(histories):
        own = axis.place_epochs(history, val)
        if len(histories) == 1:
            lines.append(Line(axis.place_epochs(history, train), TRAIN_COLOUR, label="train"))
            lines.append(Line(own, VAL_COLOUR, label="validation"))
            if averaged := axis.place_epochs(history, average):
                lines.append(Line(averaged, "green", label="averaged weights"))
        else:
            lines.append(Line(own, _colour(histories, index), label=_label(histories, index, "")))
    lines += _best_points(histories, axis, columns=(val, average))
    for index, (history, value) in enumerate(zip(histories, tested, strict=True)):
        if value is not None and history.best is not None:
            where = axis.place(history, [(history.best.step, value)])
            colour = TEST_COLOUR if len(histories) == 1 else _colour(histories, index)
            lines.append(Line(where, colour, "test", "test" if index == 0 else ""))
    kind = "accuracy (%)" if percent else "cross-entropy"
    name = title if len(histories) == 1 else f"validation {title}"
    keys = (f"train/{title}", f"val/{title}", f"val/ema_{title}")
    log = options.log and not percent
    return _panel(axis.titled(name), lines, histories, axis, options, keys, y=kind, percent=percent, log=log)


def _panel(
    title: str,
    lines: Sequence[Line],
    histories: Sequence[History],
    axis: "_XAxis",
    options: PanelOptions,
    keys: Sequence[str],
    *,
    y: str = "",
    percent: bool = False,
    log: bool = False,
) -> Panel:
    marks = axis.marks(histories)
    notes = []
    for history in histories:
        name = f"{history.name}: " if len(histories) > 1 else ""
        bad = [(key, history.not_finite[key]) for key in keys if key in history.not_finite]
        notes += [
            f"{name}{key} is not finite at {len(steps):,} step{'s' * (len(steps) > 1)}, first at step {steps[0]:,}"
            for key, steps in bad
        ]
    if log:
        hidden = sum(value <= 0 for line in lines for _, value in line.points)
        if hidden:
            notes.append(f"not on a logarithmic axis: {hidden:,} of zero or below")
    return Panel(title, lines, marks, axis.label, y, percent, log, axis.unit != "time", notes)


def _smoothed(points: Points, options: PanelOptions, colour: str, label: str, *, raw_label: str | None) -> list[Line]:
    """Return samples and their moving average; the average alone where there is no label for the samples."""
    if options.smooth is None:
        span = max(_FEWEST, len(points) / _SHARE) if len(points) > 2 * _FEWEST else 0.0
    else:
        # The span of an exponential average with this weight.
        span = 2 / (1 - options.smooth) - 1 if options.smooth else 0.0
    if not span:
        return [Line(points, colour, label=raw_label if raw_label is not None else label)]
    mean = Line(smooth(points, round(span) // 2 * 2 + 1), colour, label=label)
    return [mean] if raw_label is None else [Line(points, MARK_COLOUR, "samples", raw_label), mean]


def _best_points(
    histories: Sequence[History],
    axis: "_XAxis",
    *,
    lines: Sequence[Line] = (),
    columns: tuple[str, str] | None = None,
) -> list[Line]:
    """Return a point for the best epoch of each run: on its validation curve, or else on its line.

    Args:
        lines: of the runs, where no columns are given.
        columns: of the weights and of their average.
    """
    found = []
    drawn = [line for line in lines if line.kind == "line"]
    for index, history in enumerate(histories):
        best = history.best
        if best is None:
            continue
        if columns is not None:
            value = getattr(best, columns[best.averaged])
            where = axis.place(history, [(best.step, value)]) if value is not None else []
        else:
            (x, _), *_ = axis.place(history, [(best.step, 0.0)]) or [(math.nan, 0.0)]
            line = drawn[index].points if index < len(drawn) else []
            where = [(x, value)] if (value := _at(line, x)) is not None else []
        colour = "green" if len(histories) == 1 else _colour(histories, index)
        label = f"best, epoch {best.epoch}" if len(histories) == 1 else "best" if index == 0 else ""
        found.append(Line(where, colour, "best", label))
    return found


def _at(points: Sequence[tuple[float, float]], x: float) -> float | None:
    """Return the value of the last point at or before ``x``."""
    index = bisect_left(points, (x, math.inf))
    return points[index - 1][1] if index else None


def _colour(histories: Sequence[History], index: int) -> str:
    return TRAIN_COLOUR if len(histories) == 1 else COLOURS[index % len(COLOURS)]


def _label(histories: Sequence[History], index: int, alone: str) -> str:
    return alone if len(histories) == 1 else histories[index].name


@dataclass(frozen=True, slots=True)
class _XAxis:
    """The x axis of a panel, and the positions of a run's steps on it.

    Attributes:
        divisor: seconds per unit of time.
        steps_per_epoch: where the axis shows steps and ``last`` counts epochs.
        whole_epochs: whether its points are ends of epochs.
        last: length of the end of each run that is shown; None is all.
    """

    unit: XAxis
    label: str
    divisor: float = 1.0
    steps_per_epoch: float | None = None
    whole_epochs: bool = False
    last: float | None = None

    @classmethod
    def of(cls, histories: Sequence[History], options: PanelOptions, usual: XAxis) -> "_XAxis":
        unit = options.x or usual
        if unit == "epoch" and not any(history.epochs for history in histories):
            unit = "step"
        if unit == "time":
            longest = max((history.clock[-1][1] for history in histories if history.clock), default=0.0)
            name, divisor = next((name, size) for name, size in _TIMES if longest > 3 * size or size == 1)
            return cls(unit, f"{name} since the run began", divisor, last=options.last)
        per_epoch = None
        if options.x is None and unit == "step":
            ends = [history.epochs[-1] for history in histories if history.epochs]
            per_epoch = max((end.step / end.epoch for end in ends if end.epoch > 0 and end.step > 0), default=None)
        label = "optimizer step" if unit == "step" else "epoch"
        return cls(unit, label, steps_per_epoch=per_epoch, whole_epochs=usual == "epoch", last=options.last)

    @property
    def name(self) -> str:
        """The name of its unit."""
        return self.unit if self.unit != "time" else self.label.split("s ")[0]

    def titled(self, title: str) -> str:
        """Return the title of a panel, with the name of the axis unless it counts epochs."""
        return title if self.unit == "epoch" else f"{title} by {self.name}"

    def span(self, last: float) -> float:
        """Return the length of ``last`` (steps, epochs or minutes) on this axis."""
        if self.unit == "time":
            return last * 60 / self.divisor
        return last * (self.steps_per_epoch or 1.0)

    def place(self, history: History, points: Sequence[tuple[int, float]]) -> Points:
        """Return points by step as points on this axis, without those that have no position on it."""
        where, start = self._where(history), self._start(history)
        return [(x, value) for step, value in points if (x := where(step)) is not None and x > start]

    def place_epochs(self, history: History, column: str) -> Points:
        """Return one number of each epoch."""
        values = [(point.step, getattr(point, column)) for point in history.epochs]
        return self.place(history, [(step, value) for step, value in values if value is not None])

    def marks(self, histories: Sequence[History]) -> list[Mark]:
        """Return where backbones were unfrozen: one mark where all agree."""
        found = []
        for index, history in enumerate(histories):
            if history.unfrozen_after is None:
                continue
            x = self._where(history)(history.unfrozen_after.step)
            if x is not None and x > self._start(history):
                colour = MARK_COLOUR if len(histories) == 1 else _colour(histories, index)
                # Where points are the ends of epochs, the mark lies between two.
                half = 0.5 if self.whole_epochs and self.unit == "epoch" else 0.0
                found.append(Mark(x + half, colour, f"backbone unfrozen after epoch {history.unfrozen_after.epoch}"))
        if len(found) > 1 and len({mark.x for mark in found}) == 1:
            return [replace(found[0], colour=MARK_COLOUR)]
        return found

    def _start(self, history: History) -> float:
        """Return the beginning of the part of a run that is shown."""
        if self.last is None:
            return -math.inf
        steps = [*(step for step, _ in history.losses[-1:]), *(point.step for point in history.epochs[-1:])]
        steps += [points[-1][0] for points in history.others.values() if points]
        end = self._where(history)(max(steps, default=0))
        return -math.inf if end is None else end - self.span(self.last)

    def _where(self, history: History) -> Callable[[float], float | None]:
        if self.unit == "step":
            return lambda step: float(step)
        if self.unit == "epoch":
            known = [
                (0.0, 0.0),
                *((float(point.step), float(point.epoch)) for point in history.epochs if point.step > 0),
            ]
        else:
            known = [(float(step), seconds / self.divisor) for step, seconds in history.clock]
        return lambda step: _between(known, step)


def _between(known: Sequence[tuple[float, float]], step: float) -> float | None:
    """Return the value at a step by linear interpolation, and extrapolation beyond the last known step."""
    if not known or (len(known) == 1 and known[0][0] != step):
        return None
    index = bisect_left(known, (step, -math.inf))
    if index < len(known) and known[index][0] == step:
        return known[index][1]
    index = min(max(index, 1), len(known) - 1)
    (left, low), (right, high) = known[index - 1], known[index]
    return low + (step - left) / (right - left) * (high - low)

"""Image files: curves and evaluations by matplotlib, contact sheets of images by Pillow."""

import hashlib
import io
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from tl_cli.api.run_curves import RunCurves
from tl_cli.errors import UsageError, first_line
from tl_cli.evaluation.calibration import Reliability
from tl_cli.evaluation.intervals import wilson
from tl_cli.evaluation.ranking import Comparison
from tl_cli.io.atomic import replacing
from tl_cli.text import safe_text
from tl_cli.training.history import History
from tl_cli.ui.figures.fonts import LATIN, drawable, families, file_for
from tl_cli.ui.panels import COLOURS, Panel, PanelOptions, drawn_points, is_usual, panels
from tl_cli.ui.terminal.console import print_warning, shortened
from tl_cli.ui.terminal.pictures import scaled

# Most classes for which a confusion matrix shows names, and numbers too.
_NAMED, _NUMBERED = 60, 25

# Okabe and Ito (2008): colour-blind readers can tell them apart.
HEX = {
    "blue": "#0072B2", "orange": "#D55E00", "magenta": "#CC79A7", "green": "#009E73", "yellow": "#E69F00",
    "cyan": "#56B4E9", "black": "#000000", "grey": "#999999",
}  # fmt: skip
MANY = tuple(HEX[colour] for colour in COLOURS)
_LEGEND_ROOM = 32  # points above the axes, for two rows
_LEGEND: Any = {"frameon": False, "fontsize": 8, "handlelength": 1.8, "columnspacing": 1.2}
_DASHES = ("-", "--", ":", "-.")
# Both lie at the best epoch: a ring, and a diamond in it.
_LOOKS: dict[str, dict[str, Any]] = {
    "samples": {"linewidth": 0.5, "alpha": 0.6},
    "line": {"linewidth": 1.8, "markersize": 3},
    "best": {
        "linestyle": "none",
        "marker": "o",
        "markersize": 12,
        "fillstyle": "none",
        "markeredgewidth": 1.6,
        "zorder": 5,
    },
    "test": {"linestyle": "none", "marker": "D", "markersize": 6, "markeredgecolor": "white", "zorder": 5},
}
_STYLE: Any = {
    "font.family": [LATIN],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.25,
    "axes.titlesize": 11,
    "axes.edgecolor": "#555555",
    # A dollar sign in a name does not start a formula.
    "text.parse_math": False,
}


def try_to_draw(save: Callable[[], list[Path]], warn: Callable[[str], None] = print_warning) -> list[Path]:
    """Return the files that ``save`` writes; if it fails, warn and return none: a run must not fail for a picture."""
    try:
        return save()
    except Exception as error:  # matplotlib's settings and fonts may raise anything
        warn(f"a picture could not be drawn, so it is left out: {first_line(error)}")
        return []


def save_panels(panels: Sequence[Panel], path: Path, title: str = "") -> None:
    """Write panels as one picture, two per row; the file's ending decides the format.

    Args:
        title: above all panels.

    Raises:
        StorageError: the file cannot be written.
    """
    columns = min(2, len(panels))
    figure, axes = new_figure(columns, rows=math.ceil(len(panels) / columns))
    labels = [{line.label for line in panel.lines if line.label} for panel in panels]
    # If every panel shows the same runs, one legend is below all of them.
    share_legend = len(panels) > 1 and all(set.union(*labels) - {"best", "test"} <= each for each in labels)
    entries: dict[str, Artist] = {}
    for axis, panel in zip(axes, panels, strict=False):
        _draw_panel(axis, panel, with_legend=not share_legend)
        handles, names = axis.get_legend_handles_labels()
        entries |= dict(zip(names, handles, strict=True))
    if share_legend:
        figure.legend(entries.values(), entries.keys(), loc="outside lower left", ncols=2 * columns, **_LEGEND)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    if title:
        figure.suptitle(shortened(title, 80), fontweight="bold", x=0.01, ha="left")
    save_figure(figure, path)


def save_plot(runs: Sequence[RunCurves], options: PanelOptions, output: Path) -> list[Path]:
    """Write the curves of runs into a folder, or to one file where ``output`` has an ending. Return the files.

    Raises:
        UsageError: there are no curves.
        StorageError: a file cannot be written.
    """
    histories = [history for _, history in runs]
    if not any(history.losses or history.epochs or history.others for history in histories):
        bad = [f"; {key} is not finite" for history in histories for key in history.not_finite]
        raise UsageError(f"the run {histories[0].name} has recorded no curves yet{''.join(bad[:1])}")
    if output.suffix and not output.is_dir():
        save_panels(panels(histories, options), output, _title(histories))
        return [output]
    prefix = f"{runs[0].facts.short_id}-"
    if len(runs) > 1:
        # Another selection of as many runs gets other files.
        digest = hashlib.sha256("".join(facts.run_id for facts, _ in runs).encode()).hexdigest()[:6]
        prefix = f"{len(runs)}-runs-{digest}-"
    return save_curves(histories, options, output, prefix)


def save_curves(histories: Sequence[History], options: PanelOptions, folder: Path, prefix: str = "") -> list[Path]:
    """Write the two pictures of some runs, or one of the requested metrics. Return their files.

    Raises:
        StorageError: a file cannot be written.
    """
    shown = panels(histories, options)
    pictures = {"metrics": shown}
    if is_usual(histories, options):
        pictures = {"loss_by_step": shown[:1], "accuracy_and_loss_by_epoch": shown[1:3]}
    paths = [folder / f"{prefix}{name}.png" for name in pictures]
    for path, group in zip(paths, pictures.values(), strict=True):
        save_panels(group, path, _title(histories))
    return paths


def _title(histories: Sequence[History]) -> str:
    return histories[0].name if len(histories) == 1 else f"{len(histories)} runs"


def _draw_panel(axis: Axes, panel: Panel, *, with_legend: bool) -> None:
    points = [drawn_points(panel, line) for line in panel.lines]
    has_points = any(points)
    colours: Counter[str] = Counter()
    for line, pairs in zip(panel.lines, points, strict=True):
        if not pairs:
            continue
        look = {"color": HEX[line.colour], "label": shortened(line.label, 40) or "_nolegend_", **_LOOKS[line.kind]}
        if line.kind == "line":
            # Runs beyond the number of colours share a colour.
            look |= {
                "linestyle": _DASHES[colours[line.colour] % len(_DASHES)],
                "marker": "o" if len(pairs) <= 60 else "",
            }
            colours[line.colour] += 1
        axis.plot(*zip(*pairs, strict=True), **look)
    for mark in panel.marks:
        axis.axvline(mark.x, color=HEX[mark.colour], linestyle=":", linewidth=1.2, label=mark.label or None)
    axis.set_title(panel.title, loc="left", pad=_LEGEND_ROOM if with_legend else None)
    axis.set(xlabel=panel.x, ylabel=panel.y, yscale="log" if panel.log else "linear")
    if panel.log and has_points:
        _label_log_axis(axis.yaxis)
    if panel.whole:
        axis.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    if panel.y == "cross-entropy" and not panel.log:
        axis.set_ylim(bottom=0)
    if not has_points:
        axis.text(0.5, 0.5, "no points yet", transform=axis.transAxes, ha="center", color=HEX["grey"])
    elif with_legend and axis.get_legend_handles_labels()[0]:
        # Above the axes, where it covers no curve.
        axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.2, **_LEGEND)
    if panel.notes:
        note = "\n".join(shortened(note, 90) for note in panel.notes)
        axis.annotate(note, (1, 0), xytext=(0, -32), xycoords="axes fraction", textcoords="offset points",
                      ha="right", va="top", fontsize=7, color=HEX["orange"])  # fmt: skip


def save_contact_sheet(
    images: Iterable[Tensor], labels: Sequence[str], path: Path, *, side: int = 96, together: int = 1
) -> None:
    """Write a sheet of pictures with their labels.

    Args:
        images: (3, H, W) uint8 each, of any sizes; scaled to ``side``, in their own aspect ratio.
        labels: one per picture, of one line or several.
        side: of each picture on the sheet, in pixels.
        together: pictures per group; a group lies in one row.

    Raises:
        StorageError: the file cannot be written.
    """
    columns = min(8, max(1, math.ceil(math.sqrt(len(labels)))))
    columns = max(1, round(columns / together)) * together
    rows = math.ceil(len(labels) / columns)
    lines = max((label.count("\n") + 1 for label in labels), default=1)
    gap, line_height = 6, 14
    caption = line_height * lines + 2
    sheet = Image.new("RGB", (columns * (side + gap) + gap, rows * (side + caption + gap) + gap), "white")
    pen = ImageDraw.Draw(sheet)
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        x = gap + index % columns * (side + gap)
        y = gap + index // columns * (side + caption + gap)
        tile = scaled(image, side, enlarging=Image.Resampling.NEAREST)
        sheet.paste(tile, (x + (side - tile.width) // 2, y + (side - tile.height) // 2))
        for number, line in enumerate(label.split("\n")):
            font = _caption_font(file_for(line))
            text = _shorten_to_fit(drawable(safe_text(line)), pen, font, side)
            pen.text((x, y + side + 1 + number * line_height), text, fill="black", font=font)
    drawn = io.BytesIO()
    sheet.save(drawn, "PNG")
    with replacing(path) as file:
        file.write(drawn.getbuffer())


def save_confusion(confusion: np.ndarray, classes: Sequence[str], title: str, path: Path) -> None:
    """Write a confusion matrix: rows are true classes, colours are shares of the row; numbers where there is room.

    Args:
        confusion: (num_classes, num_classes) int64.

    Raises:
        StorageError: the file cannot be written.
    """
    count = len(classes)
    side = min(16.0, max(4.5, 1.8 + 0.5 * count)) if count <= _NUMBERED else 10.0
    figure, (axis,) = new_figure(1, (side + 1.2, side))
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    # The square root makes small shares visible: these are the errors.
    drawn = axis.imshow(shares, cmap="cividis", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    figure.colorbar(drawn, ax=axis, shrink=0.8, label="share of the true class")
    axis.grid(visible=False)
    axis.set(xlabel="predicted", ylabel="true", title=safe_text(title))
    if count <= _NAMED:
        names = [shortened(name, 20) for name in classes]
        axis.set_xticks(range(count), names, rotation=90 if count > 4 else 0, fontsize=8)
        axis.set_yticks(range(count), names, fontsize=8)
    if count <= _NUMBERED:
        for true, predicted in zip(*np.nonzero(confusion), strict=True):
            colour = "black" if shares[true, predicted] > 0.35 else "white"
            number = f"{confusion[true, predicted]:,}"
            axis.text(predicted, true, number, ha="center", va="center", color=colour, fontsize=7)
    save_figure(figure, path)


def save_reliability(reliability: Reliability, uncalibrated: Reliability | None, title: str, path: Path) -> None:
    """Write a reliability diagram of a model's probabilities, with and without its temperature.

    Raises:
        StorageError: the file cannot be written.
    """
    figure, (left, right) = new_figure(2)
    left.plot([0, 1], [0, 1], ":", color=HEX["grey"], label="calibrated")
    shown = [(reliability, HEX["blue"], "predicted")]
    if uncalibrated is not None:
        shown.append((uncalibrated, HEX["orange"], "without temperature"))
    width = 1 / 15 / (len(shown) + 0.5)
    for index, (curve, colour, label) in enumerate(shown):
        accuracies = [wilson(each.correct, each.count) for each in curve.bins]
        low, value, high = np.array([(each.low, each.value, each.high) for each in accuracies]).T
        left.errorbar([each.confidence for each in curve.bins], value, yerr=(value - low, high - value), fmt="o-",
                      color=colour, markersize=4, capsize=2, label=f"{label}: error {curve.ece:.2%}")  # fmt: skip
        middles = [(each.low + each.high) / 2 + (index - (len(shown) - 1) / 2) * width for each in curve.bins]
        right.bar(middles, [each.count for each in curve.bins], width, color=colour, label=label)
    left.set(xlabel="confidence (predicted probability)", ylabel="accuracy", title=safe_text(title))
    right.set(xlabel="confidence (predicted probability)", ylabel="images", title="images by confidence")
    for axis in (left, right):
        axis.legend(frameon=False)
    save_figure(figure, path)


def save_tradeoff(comparison: Comparison, path: Path) -> None:
    """Write accuracy, with its intervals, against the costs of inference and training.

    Raises:
        StorageError: the file cannot be written.
    """
    models = comparison.contenders
    costs: list[tuple[str, list[float]]] = [
        ("inference, ms per image", [1000 / (each.cost.images_per_second or math.inf) for each in models]),
        ("training, minutes", [(each.train_seconds or 0.0) / 60 for each in models]),
        ("parameters, millions", [each.cost.parameters / 1e6 for each in models]),
    ]
    # A cost of 0 means unknown.
    costs = [(label, values) for label, values in costs if any(values)][:2]
    figure, axes = new_figure(len(costs))
    largest = max(each.cost.parameters for each in models)
    for axis, (label, values) in zip(axes, costs, strict=True):
        for index, (model, accuracy, cost) in enumerate(zip(models, comparison.accuracies, values, strict=True)):
            if not cost:
                continue
            colour = MANY[index % len(MANY)]
            value, low, high = (100 * number for number in (accuracy.value, accuracy.low, accuracy.high))
            axis.errorbar([cost], [value], yerr=[[value - low], [high - value]], color=colour, capsize=3)
            axis.scatter([cost], [value], s=30 + 270 * model.cost.parameters / largest, color=colour, alpha=0.6)
            axis.annotate(shortened(model.name, 30), (cost, high), xytext=(0, 10), textcoords="offset points",
                          ha="center", fontsize=8, clip_on=False)  # fmt: skip
        is_wide = max(values) > 10 * min(filter(None, values))
        axis.set(xlabel=label, xscale="log" if is_wide else "linear")
        if is_wide:
            _label_log_axis(axis.xaxis)
        axis.margins(x=0.25, y=0.2)
    axes[0].set(ylabel="accuracy (%), 95% interval", title="accuracy against cost (area: parameters)")
    save_figure(figure, path)


def _label_log_axis(axis: Axis) -> None:
    """Label a logarithmic axis with plain numbers instead of powers."""
    low, high = axis.get_view_interval()
    # Where few powers of ten are visible, numbers between them get labels too.
    between = (1,) if high > 1e4 * low else (1, 2, 5) if high > 5 * low else (1, 2, 3, 4, 5, 6, 7, 8, 9)
    axis.set_major_locator(LogLocator(subs=between))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def new_figure(count: int, size: tuple[float, float] | None = None, *, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """Return a figure for ``save_figure``, in the style of all, and its axes row by row.

    Args:
        count: axes per row.
        size: in inches.
    """
    matplotlib.rcParams.update(_STYLE)
    # Without pyplot, which needs a backend and keeps a reference to the figure.
    figure = Figure(figsize=size or (6.4 * count, 4.4 * rows), layout="constrained")
    return figure, list(figure.subplots(rows, count, squeeze=False).flat)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure.

    Raises:
        StorageError: the file cannot be written.
    """
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_text(drawable(text.get_text()))
        text.set_fontfamily(families(text.get_text()))
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=130, format=path.suffix.removeprefix(".") or "png")
    with replacing(path) as file:
        file.write(drawn.getbuffer())


@cache
def _caption_font(file: str) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.truetype(file, 11)


def _shorten_to_fit(
    label: str, pen: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, side: int
) -> str:
    while label and pen.textlength(label, font) > side:
        label = label[:-2] + "…" if len(label) > 2 else ""
    return label

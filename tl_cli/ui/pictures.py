"""Pictures as files: curves by matplotlib, contact sheets of images by Pillow."""

import math
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from tl_cli.errors import StorageError
from tl_cli.evaluation.calibration import Reliability
from tl_cli.evaluation.comparison import Comparison
from tl_cli.evaluation.metrics import wilson
from tl_cli.training.history import EpochPoint, History
from tl_cli.ui.charts import smooth
from tl_cli.ui.console import safe_text, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Classes whose names, and whose numbers too, a confusion matrix has room for.
_NAMED, _NUMBERED = 60, 25

# Okabe and Ito (2008): told apart by colour-blind readers.
_TRAIN, _VAL, _TEST, _GREY = "#0072B2", "#D55E00", "#CC79A7", "#999999"
MANY = (_TRAIN, _VAL, _TEST, "#009E73", "#E69F00", "#56B4E9", "#000000")
_FONTS = ["DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "SimHei", "Arial Unicode MS"]


def save_loss_curve(history: History, path: Path) -> None:
    """Write the iteration loss: samples and running mean, the unfreezing marked.

    Raises:
        StorageError: the file cannot be written.
    """
    figure, axes = new_figure(1)
    (axis,) = axes
    steps = [step for step, _ in history.losses]
    axis.plot(steps, [loss for _, loss in history.losses], color=_GREY, linewidth=0.6, alpha=0.7, label="batch")
    mean = smooth([(float(step), loss) for step, loss in history.losses])
    axis.plot([x for x, _ in mean], [y for _, y in mean], color=_TRAIN, linewidth=1.8, label="running mean")
    if history.unfrozen_after:
        _mark(axis, history.unfrozen_after.step + 0.5)
    axis.set(xlabel="optimizer step", ylabel="cross-entropy", title=f"{safe_text(history.name)}: loss by iteration")
    axis.set_ylim(bottom=0)
    axis.legend(frameon=False)
    save_figure(figure, path)


def save_epoch_curves(history: History, path: Path) -> None:
    """Write accuracy and loss by epoch, training against validation, with the one test point.

    Raises:
        StorageError: the file cannot be written.
    """
    figure, (left, right) = new_figure(2)
    best = history.best
    for axis, train, val, test, scale in (
        (left, "train_accuracy", "val_accuracy", history.test_accuracy, 100.0),
        (right, "train_loss", "val_loss", history.test_loss, 1.0),
    ):
        _curve(axis, history.epochs, train, scale, _TRAIN, "train (as augmented)")
        _curve(axis, history.epochs, val, scale, _VAL, "validation")
        if best is not None and test is not None:
            axis.plot([best.epoch], [test * scale], "D", color=_TEST, markersize=7, label=f"test, epoch {best.epoch}")
        if history.unfrozen_after:
            _mark(axis, history.unfrozen_after.epoch + 0.5)
        axis.set_xlabel("epoch")
        axis.legend(frameon=False)
    left.set(ylabel="accuracy (%)", title=f"{safe_text(history.name)}: accuracy")
    right.set(ylabel="cross-entropy", title="loss", ylim=(0, None))
    save_figure(figure, path)


def save_contact_sheet(
    images: Iterable[Tensor], labels: Sequence[str], path: Path, *, side: int = 96, together: int = 1
) -> None:
    """Write a sheet of pictures with their labels.

    Args:
        images: (3, H, W) uint8 each, of any sizes; what is larger than its place is made smaller, its shape kept.
        labels: one a picture, of one line or several.
        side: of one picture on the sheet, in pixels.
        together: so many belong together and stand in one row.

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
    font = _caption_font()
    for place, (image, label) in enumerate(zip(images, labels, strict=True)):
        x = gap + place % columns * (side + gap)
        y = gap + place // columns * (side + caption + gap)
        tile = _tile(image, side)
        sheet.paste(tile, (x + (side - tile.width) // 2, y + (side - tile.height) // 2))
        for number, line in enumerate(label.split("\n")):
            text = _fitted(safe_text(line), pen, font, side)
            pen.text((x, y + side + 1 + number * line_height), text, fill="black", font=font)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(path)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error


def save_confusion(confusion: np.ndarray, classes: Sequence[str], title: str, path: Path) -> None:
    """Write a confusion matrix: rows are the truth, coloured by their shares; numbers where there is room.

    Args:
        confusion: (num_classes, num_classes) int64.

    Raises:
        StorageError: the file cannot be written.
    """
    from matplotlib.colors import PowerNorm

    count = len(classes)
    side = min(16.0, max(4.5, 1.8 + 0.5 * count)) if count <= _NUMBERED else 10.0
    figure, (axis,) = new_figure(1, (side + 1.2, side))
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    # By the root: mistakes are small shares, and what the matrix is looked at for.
    drawn = axis.imshow(shares, cmap="cividis", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    figure.colorbar(drawn, ax=axis, shrink=0.8, label="share of the true class")
    axis.grid(visible=False)
    axis.set(xlabel="answered", ylabel="true", title=safe_text(title))
    if count <= _NAMED:
        names = [shortened(name, 20) for name in classes]
        axis.set_xticks(range(count), names, rotation=90 if count > 4 else 0, fontsize=8)
        axis.set_yticks(range(count), names, fontsize=8)
    if count <= _NUMBERED:
        for true, said in zip(*np.nonzero(confusion), strict=True):
            colour = "black" if shares[true, said] > 0.35 else "white"
            axis.text(said, true, f"{confusion[true, said]:,}", ha="center", va="center", color=colour, fontsize=7)
    save_figure(figure, path)


def save_reliability(found: Reliability, calibrated: Reliability | None, title: str, path: Path) -> None:
    """Write a reliability diagram, as the probabilities are and with the temperature.

    Raises:
        StorageError: the file cannot be written.
    """
    figure, (left, right) = new_figure(2)
    left.plot([0, 1], [0, 1], ":", color=_GREY, label="calibrated")
    shown = [(found, _TRAIN, "as it is")] + ([(calibrated, _VAL, "with temperature")] if calibrated else [])
    for each, colour, label in shown:
        said = [one.confidence for one in each.bins]
        intervals = [wilson(one.correct, one.count) for one in each.bins]
        value = [interval.value for interval in intervals]
        errors = [[v - i.low for v, i in zip(value, intervals, strict=True)],
                  [i.high - v for v, i in zip(value, intervals, strict=True)]]  # fmt: skip
        name = f"{label}: error {each.ece:.2%}"
        left.errorbar(said, value, yerr=errors, fmt="o-", color=colour, markersize=4, capsize=2, label=name)
    width = 1 / 15 / (len(shown) + 0.5)
    for place, (each, colour, label) in enumerate(shown):
        middles = [(one.low + one.high) / 2 + (place - (len(shown) - 1) / 2) * width for one in each.bins]
        right.bar(middles, [one.count for one in each.bins], width, color=colour, label=label)
    left.set(xlabel="probability of the answer", ylabel="share of right answers", title=safe_text(title))
    left.legend(frameon=False)
    right.set(xlabel="probability of the answer", ylabel="images", title="how often each is said")
    right.legend(frameon=False)
    save_figure(figure, path)


def save_tradeoff(comparison: Comparison, path: Path) -> None:
    """Write accuracy, with its intervals, against what it costs to use and to train.

    Raises:
        StorageError: the file cannot be written.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    costs: list[tuple[str, list[float | None]]] = [
        ("inference, ms an image", [_milliseconds(each.cost.images_per_second) for each in comparison.contenders]),
        ("training, minutes", [_minutes(each.train_seconds) for each in comparison.contenders]),
        ("parameters, millions", [each.cost.parameters / 1e6 for each in comparison.contenders]),
    ]
    costs = [(label, values) for label, values in costs if any(values)][:2]
    figure, axes = new_figure(len(costs))
    largest = max(each.cost.parameters for each in comparison.contenders)
    for axis, (label, values) in zip(axes, costs, strict=True):
        for place, (model, accuracy, cost) in enumerate(
            zip(comparison.contenders, comparison.accuracies, values, strict=True)
        ):
            if cost is None:
                continue
            colour = MANY[place % len(MANY)]
            value, low, high = (100 * number for number in (accuracy.value, accuracy.low, accuracy.high))
            axis.errorbar([cost], [value], yerr=[[value - low], [high - value]], color=colour, capsize=3)
            axis.scatter([cost], [value], s=30 + 270 * model.cost.parameters / largest, color=colour, alpha=0.6)
            axis.annotate(
                shortened(model.name, 30), (cost, high), xytext=(0, 10), textcoords="offset points",
                ha="center", fontsize=8, clip_on=False,
            )  # fmt: skip
        known = [value for value in values if value is not None]
        is_wide = max(known) > 10 * min(known)
        axis.set(xlabel=label, xscale="log" if is_wide else "linear")
        if is_wide:
            # Numbers as they are written, not as mathematics.
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.xaxis.set_minor_formatter(NullFormatter())
        axis.margins(x=0.25, y=0.2)
    axes[0].set(ylabel="accuracy (%), 95% interval", title="accuracy against cost; areas are parameters")
    save_figure(figure, path)


def save_overlaid(names: Sequence[str], curves: Sequence[Sequence[History]], path: Path) -> None:
    """Write the curves of several models over each other: validation accuracy and loss by epoch.

    Raises:
        StorageError: the file cannot be written.
    """
    figure, (left, right) = new_figure(2)
    for place, (name, histories) in enumerate(zip(names, curves, strict=True)):
        colour = MANY[place % len(MANY)]
        for number, history in enumerate(histories):
            label = shortened(name, 30) if number == 0 else "_nolegend_"
            _curve(left, history.epochs, "val_accuracy", 100, colour, label)
            _curve(right, history.epochs, "val_loss", 1, colour, label)
    left.set(xlabel="epoch", ylabel="accuracy (%)", title="accuracy on validation images")
    right.set(xlabel="epoch", ylabel="cross-entropy", title="loss on validation images", ylim=(0, None))
    for axis in (left, right):
        axis.legend(frameon=False)
    save_figure(figure, path)


def _milliseconds(per_second: float | None) -> float | None:
    return 1000 / per_second if per_second else None


def _minutes(seconds: float | None) -> float | None:
    return seconds / 60 if seconds else None


def _tile(image: Tensor, side: int) -> Image.Image:
    tile = Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())
    scale = side / max(tile.size)
    size = tuple(max(1, round(length * scale)) for length in tile.size)
    return tile.resize((size[0], size[1]), Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)


def new_figure(count: int, size: tuple[float, float] | None = None, *, rows: int = 1) -> "tuple[Figure, list[Axes]]":
    """Return a figure in the house's style, to be given to ``save_figure``, and its axes row by row.

    Args:
        count: axes in a row.
        size: in inches.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    style: dict[Any, Any] = {
        "font.family": [name for name in _FONTS if name in installed] or ["sans-serif"],
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.25,
        "axes.titlesize": 11,
        # A name with dollars is a name, not mathematics.
        "text.parse_math": False,
    }
    with plt.rc_context(style):
        figure, axes = plt.subplots(
            rows, count, figsize=size or (6.4 * count, 4.2 * rows), layout="constrained", squeeze=False
        )
    return figure, list(axes.flat)


def _curve(axis: "Axes", epochs: list[EpochPoint], name: str, scale: float, colour: str, label: str) -> None:
    points = [(p.epoch, getattr(p, name)) for p in epochs if getattr(p, name) is not None]
    axis.plot(
        [x for x, _ in points], [y * scale for _, y in points], marker="o", markersize=3, color=colour, label=label
    )


def _mark(axis: "Axes", place: float) -> None:
    axis.axvline(place, color=_GREY, linestyle=":", linewidth=1.2, label="backbone unfrozen")


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a figure and forget it.

    Raises:
        StorageError: the file cannot be written.
    """
    import matplotlib.pyplot as plt

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            # A letter that no font here has is a box in the picture, and no line on the screen for each.
            warnings.filterwarnings("ignore", message="Glyph")
            figure.savefig(path, dpi=130)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        plt.close(figure)


def _caption_font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    from matplotlib.font_manager import FontProperties, findfont, fontManager

    installed = {font.name for font in fontManager.ttflist}
    names = [name for name in reversed(_FONTS) if name in installed]
    return ImageFont.truetype(findfont(FontProperties(family=names[:1] or ["DejaVu Sans"])), 11)


def _fitted(label: str, pen: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, side: int) -> str:
    while label and pen.textlength(label, font) > side:
        label = label[:-2] + "…" if len(label) > 2 else ""
    return label

"""Pictures as files: curves by matplotlib, contact sheets of images by Pillow."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from tl_cli.errors import StorageError
from tl_cli.training.history import EpochPoint, History
from tl_cli.ui.charts import smooth
from tl_cli.ui.console import safe_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito (2008): told apart by colour-blind readers.
_TRAIN, _VAL, _TEST, _GREY = "#0072B2", "#D55E00", "#CC79A7", "#999999"
_FONTS = ["DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "SimHei", "Arial Unicode MS"]


def save_loss_curve(history: History, path: Path) -> None:
    """Write the iteration loss: samples and running mean, the unfreezing marked.

    Raises:
        StorageError: the file cannot be written.
    """
    figure, axes = _figure(1)
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
    _save(figure, path)


def save_epoch_curves(history: History, path: Path) -> None:
    """Write accuracy and loss by epoch, training against validation, with the one test point.

    Raises:
        StorageError: the file cannot be written.
    """
    figure, (left, right) = _figure(2)
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
    _save(figure, path)


def save_contact_sheet(images: Tensor, labels: Sequence[str], path: Path, *, side: int = 96) -> None:
    """Write a sheet of pictures with their labels.

    Args:
        images: (B, 3, H, W) uint8.
        side: of one picture on the sheet, in pixels.

    Raises:
        StorageError: the file cannot be written.
    """
    columns = min(8, max(1, math.ceil(math.sqrt(len(images)))))
    rows = math.ceil(len(images) / columns)
    gap, caption = 6, 16
    sheet = Image.new("RGB", (columns * (side + gap) + gap, rows * (side + caption + gap) + gap), "white")
    pen = ImageDraw.Draw(sheet)
    font = _caption_font()
    for place, (image, label) in enumerate(zip(images, labels, strict=True)):
        x = gap + place % columns * (side + gap)
        y = gap + place // columns * (side + caption + gap)
        tile = Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())
        sheet.paste(tile.resize((side, side), Image.Resampling.NEAREST if side > tile.width else None), (x, y))
        pen.text((x, y + side + 1), _fitted(safe_text(label), pen, font, side), fill="black", font=font)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(path)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error


def _figure(count: int) -> "tuple[Figure, list[Axes]]":
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
        figure, axes = plt.subplots(1, count, figsize=(6.4 * count, 4.2), layout="constrained", squeeze=False)
    return figure, list(axes[0])


def _curve(axis: "Axes", epochs: list[EpochPoint], name: str, scale: float, colour: str, label: str) -> None:
    points = [(p.epoch, getattr(p, name)) for p in epochs if getattr(p, name) is not None]
    axis.plot(
        [x for x, _ in points], [y * scale for _, y in points], marker="o", markersize=3, color=colour, label=label
    )


def _mark(axis: "Axes", place: float) -> None:
    axis.axvline(place, color=_GREY, linestyle=":", linewidth=1.2, label="backbone unfrozen")


def _save(figure: "Figure", path: Path) -> None:
    import matplotlib.pyplot as plt

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
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

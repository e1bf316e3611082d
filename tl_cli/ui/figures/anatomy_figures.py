"""What is inside a model, as pictures in files."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from tl_cli.inspection.dissection import Anatomy
from tl_cli.inspection.drift import LayerDrift
from tl_cli.inspection.features import Neighbourhood
from tl_cli.inspection.residuals import Residual
from tl_cli.text import safe_text
from tl_cli.ui.figures.curve_figures import MANY, new_figure, save_contact_sheet, save_figure
from tl_cli.ui.terminal.anatomy import overlaid
from tl_cli.ui.terminal.console import shortened

_BLUE, _ORANGE, _GREY = MANY[0], MANY[1], "#999999"
_SIDE = 256


def save_residuals(anatomy: Anatomy, before: Anatomy | None, title: str, against: str, path: Path) -> None:
    """Write, along the depth, how long the branches are, how they stand to x, and what the network is without each.

    Raises:
        StorageError: the file cannot be written.
    """
    has_effects = any(anatomy.effects)
    count = len(anatomy.residuals)
    figure, axes = new_figure(
        1, (max(6.4, 0.28 * count + 2), 8.0 if has_effects else 5.6), rows=3 if has_effects else 2
    )
    names = [shortened(each.name, 28) for each in anatomy.residuals]
    depth = range(count)
    ratio, angle = axes[0], axes[1]
    width = 0.4 if before else 0.7
    if before:
        ratio.bar(
            [d - 0.2 for d in depth], [each.ratio for each in before.strengths], width, color=_GREY, label=against
        )
    shift = 0.2 if before else 0.0
    ratio.bar([d + shift for d in depth], [each.ratio for each in anatomy.strengths], width, color=_BLUE, label="now")
    for place, each in enumerate(anatomy.residuals):
        if each.shortcut != "identity":
            ratio.annotate("p", (place + shift, anatomy.strengths[place].ratio), ha="center", va="bottom", fontsize=7)
    ratio.set(ylabel="|F| / |x|")
    marked = "; p: x is pooled or projected" if any(each.shortcut != "identity" for each in anatomy.residuals) else ""
    ratio.set_title(f"residuals along the depth{marked}\n{safe_text(title)}", fontsize=9)
    if before:
        ratio.legend(frameon=False)
    cosines = [each.cosine for each in anatomy.strengths]
    angle.axhline(0, color=_GREY, linewidth=0.8)
    angle.plot(
        depth,
        [c if c is not None else float("nan") for c in cosines],
        "o-",
        color=_BLUE,
        markersize=4,
        label="cosine of x and F",
    )
    angle.plot(
        depth,
        [each.share for each in anatomy.strengths],
        "s-",
        color=_ORANGE,
        markersize=4,
        label="F's share of the energy",
    )
    angle.legend(frameon=False)
    if has_effects:
        _draw_effects(anatomy, axes[2])
    for axis in axes:
        axis.set_xlim(-0.6, count - 0.4)
        axis.set_xticks(list(depth), [])
    axes[-1].set_xticks(list(depth), names, rotation=90, fontsize=7 if count <= 40 else 5)
    save_figure(figure, path)


def save_parts(
    residual: Residual, picture: Tensor, parts: Sequence[Tensor], title: str, path: Path, *, channels: int = 4
) -> None:
    """Write a picture, and x, F(x) and their sum below each other: all channels, and those in which F is strongest.

    Args:
        picture: (3, H, W) uint8.
        parts: of x, F(x) and their sum, (C, h, w) each.

    Raises:
        StorageError: the file cannot be written.
    """
    chosen = parts[1].square().mean((1, 2)).topk(min(channels, len(parts[1]))).indices.tolist()
    figure, axes = new_figure(2 + len(chosen), (2.1 * (2 + len(chosen)), 6.6), rows=3)
    energies = [part.square().mean(0).sqrt() for part in parts]
    brightest = max(each.max().item() for each in energies)
    for row, (part, energy, name) in enumerate(zip(parts, energies, ("x", "F(x)", "x + F(x)"), strict=True)):
        first, second, *rest = axes[row * (2 + len(chosen)) : (row + 1) * (2 + len(chosen))]
        if row == 1:
            first.imshow(picture.permute(1, 2, 0).numpy())
            first.set_title("the picture", fontsize=9)
        first.set_axis_off()
        second.imshow(energy.numpy(), cmap="magma", vmin=0, vmax=brightest)
        second.set_ylabel(name, fontsize=12)
        if row == 0:
            second.set_title("all channels", fontsize=9)
        for axis, channel in zip(rest, chosen, strict=True):
            span = max(each[channel].abs().max().item() for each in parts) or 1.0
            axis.imshow(part[channel].numpy(), cmap="PuOr", vmin=-span, vmax=span)
            if row == 0:
                axis.set_title(f"channel {channel}", fontsize=9)
        for axis in (second, *rest):
            axis.set_xticks([])
            axis.set_yticks([])
            axis.grid(visible=False)
    figure.suptitle(f"{safe_text(title)}, {safe_text(residual.name)}", fontsize=11)
    save_figure(figure, path)


def save_drift(layers: Sequence[LayerDrift], title: str, path: Path) -> None:
    """Write, along the depth, how far weights have moved and how alike the outputs still are.

    Raises:
        StorageError: the file cannot be written.
    """
    figure, (moved, alike) = new_figure(1, (max(6.4, 0.28 * len(layers) + 2), 6.4), rows=2)
    depth = list(range(len(layers)))
    moved.bar(depth, [100 * (each.moved or 0.0) for each in layers], color=_BLUE, label="weights")
    statistics = [
        (d, 100 * each.statistics) for d, each in zip(depth, layers, strict=True) if each.statistics is not None
    ]
    if any(value for _, value in statistics):
        moved.plot(
            [d for d, _ in statistics],
            [v for _, v in statistics],
            "o",
            color=_ORANGE,
            markersize=4,
            label="BatchNorm statistics",
        )
        moved.legend(frameon=False)
    moved.set(ylabel="moved, % of its length")
    moved.set_title(f"what training moved\n{safe_text(title)}", fontsize=9)
    points = [(d, each.similarity) for d, each in zip(depth, layers, strict=True) if each.similarity is not None]
    alike.plot([d for d, _ in points], [v for _, v in points], "o-", color=_BLUE, markersize=4)
    alike.set(ylabel="CKA before and after", ylim=(min(0.0, *(v for _, v in points)) if points else 0.0, 1.02))
    for axis in (moved, alike):
        axis.set_xlim(-0.6, len(layers) - 0.4)
    moved.set_xticks(depth, [])
    alike.set_xticks(
        depth, [shortened(each.name, 28) for each in layers], rotation=90, fontsize=7 if len(layers) <= 40 else 5
    )
    save_figure(figure, path)


def save_map(found: Neighbourhood, classes: Sequence[str], title: str, path: Path) -> None:
    """Write the map of the features, its classes coloured and, where there are not too many, named in their middle.

    Raises:
        StorageError: the file cannot be written.
    """
    from matplotlib import colormaps

    figure, (axis,) = new_figure(1, (8.0, 6.4))
    present = sorted(set(found.labels.tolist()))
    palette = [*MANY, *(colormaps["tab20"](place) for place in range(20))]
    for place, label in enumerate(present):
        here = found.places[found.labels == label]
        colour = palette[place % len(palette)]
        axis.scatter(
            here[:, 0], here[:, 1], s=12, color=colour, alpha=0.75, linewidths=0, label=shortened(classes[label], 24)
        )
        if len(present) <= 30:
            x, y = (float(value) for value in torch.from_numpy(here).median(0).values)
            axis.annotate(
                shortened(classes[label], 20), (x, y), ha="center", fontsize=8,
                bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "alpha": 0.75, "edgecolor": colour},
            )  # fmt: skip
    axis.set(xticks=[], yticks=[], title=f"features by t-SNE\n{safe_text(title)}")
    axis.grid(visible=False)
    save_figure(figure, path)


def save_heat(pictures: Sequence[Tensor], heats: Sequence[Tensor], captions: Sequence[str], path: Path) -> None:
    """Write where a network looked: each picture as it saw it, and with heat over it.

    Args:
        pictures: (3, S, S) uint8 each.
        heats: (S, S) each, 0 to 1.

    Raises:
        StorageError: the file cannot be written.
    """
    tiles = [tile for picture, heat in zip(pictures, heats, strict=True) for tile in (picture, overlaid(picture, heat))]
    lines = [line for caption in captions for line in (caption, "where it looked")]
    save_contact_sheet(tiles, lines, path, side=_SIDE if len(pictures) == 1 else 160, together=2)


def _draw_effects(anatomy: Anatomy, axis: object) -> None:
    from matplotlib.axes import Axes

    assert isinstance(axis, Axes)
    depth = list(range(len(anatomy.residuals)))
    knows = anatomy.accuracy is not None
    for place, colour in zip(range(len(anatomy.effects[0])), (_ORANGE, _BLUE), strict=False):
        effects = [each[place] for each in anatomy.effects]
        values = [100 * ((each.accuracy or 0.0) if knows else each.kept) for each in effects]
        scale = effects[0].scale
        axis.plot(
            depth, values, "o-", color=colour, markersize=4, label="F left out" if scale == 0 else f"F times {scale:g}"
        )
    if knows:
        axis.axhline(100 * (anatomy.accuracy or 0.0), color=_GREY, linestyle=":", label="as it is")
    lowest = min(100 * ((each.accuracy or 0.0) if knows else each.kept) for row in anatomy.effects for each in row)
    axis.set(ylabel="accuracy (%)" if knows else "answers that stay (%)", ylim=(max(0.0, lowest - 5), 101))
    axis.legend(frameon=False)

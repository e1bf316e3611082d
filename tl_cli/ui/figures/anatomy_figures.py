"""Views of what is inside a model, as image files."""

from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib import colormaps
from matplotlib.axes import Axes

from tl_cli.api.inspection_results import (
    BlockMaps,
    CamResult,
    DriftResult,
    FeaturesResult,
    InspectionResult,
    ResidualsResult,
)
from tl_cli.inspection.drift import LayerDrift
from tl_cli.inspection.residual_effects import ResidualReport
from tl_cli.io.atomic import write_text
from tl_cli.text import json_text, safe_text
from tl_cli.ui.figures.curve_figures import MANY, new_figure, save_contact_sheet, save_figure
from tl_cli.ui.terminal.console import shortened
from tl_cli.ui.terminal.pictures import overlaid

_BLUE, _ORANGE, _GREY = MANY[0], MANY[1], "#999999"
_SIDE, _SMALL_SIDE = 256, 160  # pixels
_NAMED = 30  # most classes with a name on the map


def write_inspection(result: InspectionResult, folder: Path) -> list[Path]:
    """Write a view into a folder, as JSON and as figures, and return the paths.

    Raises:
        StorageError: a file cannot be written.
    """
    path = folder / f"{result.name}.json"
    write_text(path, json_text(result.to_dict()) + "\n")
    return [path, *save_inspection(result, folder)]


def save_inspection(result: InspectionResult, folder: Path) -> list[Path]:
    """Write the figures of a view into a folder and return their paths; the tree and the freeze plan have none.

    Raises:
        StorageError: a file cannot be written.
    """
    paths = []
    match result:
        case ResidualsResult(report=report) if report is not None:
            paths.append(folder / "residuals.png")
            save_residuals(report, result.before, result.title, result.against, paths[-1])
            if result.block is not None:
                paths.append(folder / "residual_parts.png")
                save_block_maps(result.block, result.title, paths[-1])
        case DriftResult():
            paths.append(folder / "drift.png")
            save_drift(result.layers, result.title, paths[-1])
        case FeaturesResult():
            paths.append(folder / "features.png")
            save_map(result, paths[-1])
        case CamResult() if result.heatmaps:
            paths.append(folder / "cam.png")
            save_heatmaps(result, paths[-1])
    return paths


def save_residuals(report: ResidualReport, before: ResidualReport | None, title: str, against: str, path: Path) -> None:
    """Write, along the depth, the norm of each branch, its direction, and predictions without it.

    Args:
        against: name of the state ``before``.

    Raises:
        StorageError: the file cannot be written.
    """
    has_effects = any(report.effects)
    count = len(report.residuals)
    size = (max(6.4, 0.28 * count + 2), 8.0 if has_effects else 5.6)
    figure, axes = new_figure(1, size, rows=3 if has_effects else 2)
    _draw_ratios(report, before, against, axes[0])
    projected = any(each.shortcut != "identity" for each in report.residuals)
    marked = "; p: x is pooled or projected" if projected else ""
    axes[0].set_title(f"residuals along the depth{marked}\n{safe_text(title)}", fontsize=9)
    _draw_directions(report, axes[1])
    if has_effects:
        _draw_effects(report, axes[2])
    _name_depth(axes, [each.name for each in report.residuals])
    save_figure(figure, path)


def _draw_ratios(report: ResidualReport, before: ResidualReport | None, against: str, axis: Axes) -> None:
    depth = range(len(report.residuals))
    width, shift = (0.4, 0.2) if before else (0.7, 0.0)
    if before:
        ratios = [each.ratio for each in before.strengths]
        axis.bar([d - shift for d in depth], ratios, width, color=_GREY, label=shortened(against, 40))
    ratios = [each.ratio for each in report.strengths]
    axis.bar([d + shift for d in depth], ratios, width, color=_BLUE, label="now")
    for index, (each, ratio) in enumerate(zip(report.residuals, ratios, strict=True)):
        if each.shortcut != "identity":
            axis.annotate("p", (index + shift, ratio), ha="center", va="bottom", fontsize=7)
    axis.set(ylabel="|F| / |x|")
    if before:
        axis.legend(frameon=False)


def _draw_directions(report: ResidualReport, axis: Axes) -> None:
    depth = range(len(report.residuals))
    cosines = [float("nan") if each.cosine is None else each.cosine for each in report.strengths]
    shares = [each.share for each in report.strengths]
    axis.axhline(0, color=_GREY, linewidth=0.8)
    axis.plot(depth, cosines, "o-", color=_BLUE, markersize=4, label="cosine of x and F")
    axis.plot(depth, shares, "s-", color=_ORANGE, markersize=4, label="F's share of the energy")
    axis.legend(frameon=False)


def _draw_effects(report: ResidualReport, axis: Axes) -> None:
    depth = range(len(report.residuals))
    is_labelled = report.accuracy is not None
    lowest = 100.0
    for index, colour in zip(range(len(report.effects[0])), (_ORANGE, _BLUE), strict=False):
        effects = [each[index] for each in report.effects]
        values = [100 * ((each.accuracy or 0.0) if is_labelled else each.kept) for each in effects]
        lowest, scale = min(lowest, *values), effects[0].scale
        label = "F removed" if scale == 0 else f"F times {scale:g}"
        axis.plot(depth, values, "o-", color=colour, markersize=4, label=label)
    if report.accuracy is not None:
        axis.axhline(100 * report.accuracy, color=_GREY, linestyle=":", label="unchanged")
    ylabel = "accuracy (%)" if is_labelled else "same prediction (%)"
    axis.set(ylabel=ylabel, ylim=(max(0.0, lowest - 5), 101))
    axis.legend(frameon=False)


def _name_depth(axes: Sequence[Axes], names: Sequence[str]) -> None:
    """Write the names below the last axes, one per position."""
    for axis in axes:
        axis.set_xlim(-0.6, len(names) - 0.4)
        axis.set_xticks(range(len(names)), [""] * len(names))
    labels = [shortened(name, 28) for name in names]
    axes[-1].set_xticks(range(len(names)), labels, rotation=90, fontsize=7 if len(names) <= 40 else 5)


def save_block_maps(block: BlockMaps, title: str, path: Path, *, channels: int = 4) -> None:
    """Write a picture, and x, F(x) and their sum in rows: all channels, then those in which F is largest.

    Raises:
        StorageError: the file cannot be written.
    """
    chosen = block.maps[1].square().mean((1, 2)).topk(min(channels, len(block.maps[1]))).indices.tolist()
    columns = 2 + len(chosen)
    figure, axes = new_figure(columns, (2.1 * columns, 6.6), rows=3)
    energies = [each.square().mean(0).sqrt() for each in block.maps]
    brightest = max(each.max().item() for each in energies)
    for row, (maps, energy, name) in enumerate(zip(block.maps, energies, ("x", "F(x)", "x + F(x)"), strict=True)):
        first, second, *rest = axes[row * columns : (row + 1) * columns]
        if row == 1:
            first.imshow(block.picture.permute(1, 2, 0).numpy())
            first.set_title("the picture", fontsize=9)
        first.set_axis_off()
        second.imshow(energy.numpy(), cmap="magma", vmin=0, vmax=brightest)
        second.set_ylabel(name, fontsize=12)
        if row == 0:
            second.set_title("all channels", fontsize=9)
        for axis, channel in zip(rest, chosen, strict=True):
            span = max(each[channel].abs().max().item() for each in block.maps) or 1.0
            axis.imshow(maps[channel].numpy(), cmap="PuOr", vmin=-span, vmax=span)
            if row == 0:
                axis.set_title(f"channel {channel}", fontsize=9)
        for axis in (second, *rest):
            axis.set_xticks([])
            axis.set_yticks([])
            axis.grid(visible=False)
    figure.suptitle(f"{safe_text(title)}, {safe_text(block.residual.name)}", fontsize=11)
    save_figure(figure, path)


def save_drift(layers: Sequence[LayerDrift], title: str, path: Path) -> None:
    """Write, along the depth, how far weights have moved and how similar outputs still are.

    Raises:
        StorageError: the file cannot be written.
    """
    figure, (moved, similar) = new_figure(1, (max(6.4, 0.28 * len(layers) + 2), 6.4), rows=2)
    moved.bar(range(len(layers)), [100 * (each.moved or 0.0) for each in layers], color=_BLUE, label="weights")
    statistics = [(d, 100 * each.statistics) for d, each in enumerate(layers) if each.statistics is not None]
    if any(value for _, value in statistics):
        moved.plot(*zip(*statistics, strict=True), "o", color=_ORANGE, markersize=4, label="BatchNorm statistics")
        moved.legend(frameon=False)
    moved.set(ylabel="moved, % of the norm")
    moved.set_title(f"change by training\n{safe_text(title)}", fontsize=9)
    points = [(d, each.similarity) for d, each in enumerate(layers) if each.similarity is not None]
    similar.plot([d for d, _ in points], [v for _, v in points], "o-", color=_BLUE, markersize=4)
    similar.set(ylabel="CKA before and after", ylim=(min(0.0, *(v for _, v in points)) if points else 0.0, 1.02))
    _name_depth((moved, similar), [each.name for each in layers])
    save_figure(figure, path)


def save_map(result: FeaturesResult, path: Path) -> None:
    """Write the map of the features with coloured classes, named at their median where there are not too many.

    Raises:
        StorageError: the file cannot be written.
    """
    figure, (axis,) = new_figure(1, (8.0, 6.4))
    found = result.found
    present = sorted(set(found.labels.tolist()))
    palette = [*MANY, *map(colormaps["tab20"], range(20))]
    for index, label in enumerate(present):
        name = result.classes[label]
        points = found.points[found.labels == label]
        colour = palette[index % len(palette)]
        axis.scatter(
            points[:, 0], points[:, 1], s=12, color=colour, alpha=0.75, linewidths=0, label=shortened(name, 24)
        )
        if len(present) <= _NAMED:
            x, y = (float(value) for value in torch.from_numpy(points).median(0).values)
            box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "alpha": 0.75, "edgecolor": colour}
            axis.annotate(shortened(name, 20), (x, y), ha="center", fontsize=8, bbox=box)
    axis.set(xticks=[], yticks=[], title=f"features by t-SNE\n{safe_text(result.title)}")
    axis.grid(visible=False)
    save_figure(figure, path)


def save_heatmaps(result: CamResult, path: Path) -> None:
    """Write each picture beside its heatmap.

    Raises:
        StorageError: the file cannot be written.
    """
    tiles = [tile for each in result.heatmaps for tile in (each.picture, overlaid(each.picture, each.heat))]
    lines = [line for each in result.heatmaps for line in (each.caption, "Grad-CAM")]
    side = _SIDE if len(result.heatmaps) == 1 else _SMALL_SIDE
    save_contact_sheet(tiles, lines, path, side=side, together=2)

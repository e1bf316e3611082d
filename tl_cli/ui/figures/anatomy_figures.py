"""Views of what is inside a model, as image files."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

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
    figures: dict[str, Figure] = {}
    match result:
        case ResidualsResult(report=report) if report is not None:
            figures["residuals.png"] = _draw_residuals(report, result)
            if result.block is not None:
                figures["residual_parts.png"] = _draw_block_maps(result.block, result.title)
        case DriftResult():
            figures["drift.png"] = _draw_drift(result.layers, result.title)
        case FeaturesResult():
            figures["features.png"] = _draw_map(result)
        case CamResult() if result.heatmaps:
            _save_heatmaps(result, folder / "cam.png")
            return [folder / "cam.png"]
    for name, figure in figures.items():
        save_figure(figure, folder / name)
    return [folder / name for name in figures]


def _draw_residuals(report: ResidualReport, result: ResidualsResult) -> Figure:
    """Return, along the depth, the norm of each branch, its direction, and predictions without it."""
    has_effects, names = any(report.effects), [each.name for each in report.residuals]
    size = (_width_for(names), 8.0 if has_effects else 5.6)
    figure, axes = new_figure(1, size, rows=3 if has_effects else 2)
    _draw_ratios(report, result.before, result.against, axes[0])
    projected = any(each.shortcut != "identity" for each in report.residuals)
    marked = "; p: x is pooled or projected" if projected else ""
    axes[0].set_title(f"residuals along the depth{marked}\n{safe_text(result.title)}", fontsize=9)
    _draw_directions(report, axes[1])
    if has_effects:
        _draw_effects(report, axes[2])
    _name_depth(axes, names)
    return figure


def _draw_ratios(report: ResidualReport, before: ResidualReport | None, against: str, axis: Axes) -> None:
    depth = np.arange(len(report.residuals))
    width, shift = (0.4, 0.2) if before else (0.7, 0.0)
    ratios = [each.ratio for each in report.strengths]
    axis.bar(depth + shift, ratios, width, color=_BLUE, label="now")
    if before:
        old = [each.ratio for each in before.strengths]
        axis.bar(depth - shift, old, width, color=_GREY, label=shortened(against, 40))
        axis.legend(frameon=False)
    for x, each, ratio in zip(depth + shift, report.residuals, ratios, strict=True):
        if each.shortcut != "identity":
            axis.annotate("p", (x, ratio), ha="center", va="bottom", fontsize=7)
    axis.set(ylabel="|F| / |x|")


def _draw_directions(report: ResidualReport, axis: Axes) -> None:
    cosines = [math.nan if each.cosine is None else each.cosine for each in report.strengths]
    axis.axhline(0, color=_GREY, linewidth=0.8)
    axis.plot(cosines, "o-", color=_BLUE, markersize=4, label="cosine of x and F")
    shares = [each.share for each in report.strengths]
    axis.plot(shares, "s-", color=_ORANGE, markersize=4, label="F's share of the energy")
    axis.legend(frameon=False)


def _draw_effects(report: ResidualReport, axis: Axes) -> None:
    is_labelled, lowest = report.accuracy is not None, 100.0
    for effects, colour in zip(zip(*report.effects, strict=True), (_ORANGE, _BLUE), strict=False):
        values = [100 * ((each.accuracy or 0.0) if is_labelled else each.kept) for each in effects]
        lowest, scale = min(lowest, *values), effects[0].scale
        axis.plot(values, "o-", color=colour, markersize=4, label="F removed" if scale == 0 else f"F times {scale:g}")
    if report.accuracy is not None:
        axis.axhline(100 * report.accuracy, color=_GREY, linestyle=":", label="unchanged")
    axis.set(ylabel="accuracy (%)" if is_labelled else "same prediction (%)", ylim=(max(0.0, lowest - 5), 101))
    axis.legend(frameon=False)


def _width_for(names: Sequence[str]) -> float:
    return max(6.4, 0.28 * len(names) + 2)


def _name_depth(axes: Sequence[Axes], names: Sequence[str]) -> None:
    """Write the names below the last axes, one per position."""
    for axis in axes:
        axis.set_xlim(-0.6, len(names) - 0.4)
        axis.set_xticks(range(len(names)), [""] * len(names))
    labels = [shortened(name, 28) for name in names]
    axes[-1].set_xticks(range(len(names)), labels, rotation=90, fontsize=7 if len(names) <= 40 else 5)


def _draw_block_maps(block: BlockMaps, title: str, *, channels: int = 4) -> Figure:
    """Return a picture, and x, F(x) and their sum in rows: all channels, then those in which F is largest."""
    chosen = block.maps[1].square().mean((1, 2)).topk(min(channels, len(block.maps[1]))).indices.tolist()
    columns = 2 + len(chosen)
    figure, axes = new_figure(columns, (2.1 * columns, 6.6), rows=3)
    energies = [each.square().mean(0).sqrt() for each in block.maps]
    brightest = max(each.max().item() for each in energies)
    for axis in axes:
        axis.set(xticks=[], yticks=[])
        axis.grid(visible=False)
    for axis in axes[::columns]:
        axis.set_axis_off()
    axes[columns].imshow(block.picture.permute(1, 2, 0).numpy())
    axes[columns].set_title("the picture", fontsize=9)
    for axis, heading in zip(axes[1:], ("all channels", *(f"channel {each}" for each in chosen)), strict=False):
        axis.set_title(heading, fontsize=9)
    for row, (maps, energy, name) in enumerate(zip(block.maps, energies, ("x", "F(x)", "x + F(x)"), strict=True)):
        _, first, *others = axes[row * columns : (row + 1) * columns]
        first.imshow(energy.numpy(), cmap="magma", vmin=0, vmax=brightest)
        first.set_ylabel(name, fontsize=12)
        for axis, channel in zip(others, chosen, strict=True):
            span = max(each[channel].abs().max().item() for each in block.maps) or 1.0
            axis.imshow(maps[channel].numpy(), cmap="PuOr", vmin=-span, vmax=span)
    figure.suptitle(f"{safe_text(title)}, {safe_text(block.residual.name)}", fontsize=11)
    return figure


def _draw_drift(layers: Sequence[LayerDrift], title: str) -> Figure:
    """Return, along the depth, how far weights have moved and how similar outputs still are."""
    names = [each.name for each in layers]
    figure, (moved, similar) = new_figure(1, (_width_for(names), 6.4), rows=2)
    moved.bar(range(len(layers)), [100 * (each.moved or 0.0) for each in layers], color=_BLUE, label="weights")
    statistics = [math.nan if each.statistics is None else 100 * each.statistics for each in layers]
    if any(value > 0 for value in statistics):
        moved.plot(statistics, "o", color=_ORANGE, markersize=4, label="BatchNorm statistics")
        moved.legend(frameon=False)
    moved.set(ylabel="moved, % of the norm")
    moved.set_title(f"change by training\n{safe_text(title)}", fontsize=9)
    points = [(depth, each.similarity) for depth, each in enumerate(layers) if each.similarity is not None]
    similar.plot([depth for depth, _ in points], [value for _, value in points], "o-", color=_BLUE, markersize=4)
    similar.set(ylabel="CKA before and after", ylim=(min(0.0, 1.02, *(value for _, value in points)), 1.02))
    _name_depth((moved, similar), names)
    return figure


def _draw_map(result: FeaturesResult) -> Figure:
    """Return the map of the features with coloured classes, named at their median where there are not too many."""
    figure, (axis,) = new_figure(1, (8.0, 6.4))
    features = result.neighbourhood
    present = sorted(set(features.labels.tolist()))
    palette = [*MANY, *map(colormaps["tab20"], range(20))]
    for index, label in enumerate(present):
        points = features.points[features.labels == label]
        colour = palette[index % len(palette)]
        axis.scatter(points[:, 0], points[:, 1], s=12, color=colour, alpha=0.75, linewidths=0)
        if len(present) <= _NAMED:
            box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "alpha": 0.75, "edgecolor": colour}
            name = shortened(result.classes[label], 20)
            axis.annotate(name, tuple(np.median(points, 0)), ha="center", fontsize=8, bbox=box)
    axis.set(xticks=[], yticks=[], title=f"features by t-SNE\n{safe_text(result.title)}")
    axis.grid(visible=False)
    return figure


def _save_heatmaps(result: CamResult, path: Path) -> None:
    """Write each picture beside its heatmap.

    Raises:
        StorageError: the file cannot be written.
    """
    tiles = [tile for each in result.heatmaps for tile in (each.picture, overlaid(each.picture, each.heat))]
    captions = [caption for each in result.heatmaps for caption in (each.caption, "Grad-CAM")]
    side = _SIDE if len(result.heatmaps) == 1 else _SMALL_SIDE
    save_contact_sheet(tiles, captions, path, side=side, together=2)

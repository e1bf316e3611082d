"""Views of what is inside a model, printed in a terminal: tree, freeze plan, residuals, drift, features, heatmaps."""

from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np
import torch
from matplotlib import colormaps
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text
from torch import Tensor

from tl_cli.api.inspection_results import (
    BlockMaps,
    CamResult,
    DriftResult,
    FeaturesResult,
    FreezePlanResult,
    InspectionResult,
    ResidualsResult,
    TreeResult,
)
from tl_cli.inspection.drift import LayerDrift
from tl_cli.inspection.features import Neighbourhood
from tl_cli.inspection.freeze_plan import ByName
from tl_cli.inspection.residual_effects import Effect, ResidualReport
from tl_cli.inspection.summary import Node, describe_preprocessing, head_reason
from tl_cli.ui.terminal import tables
from tl_cli.ui.terminal.console import is_ascii, plain, shortened
from tl_cli.ui.terminal.model_tables import format_count
from tl_cli.ui.terminal.pictures import thumbnail
from tl_cli.ui.terminal.progress import epoch_range

_GUIDES = {True: ("|-- ", "`-- ", "|   "), False: ("├── ", "└── ", "│   ")}
_SHORTCUTS = {"identity": "identity", "pooling": "pooled", "projection": "projected"}
_SHADES = " .:-=+*#%@"
_COLOURS = ("blue", "dark_orange", "magenta", "green", "yellow", "cyan", "red", "white")
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
_SHORTEST_TYPE = 8
_TILE, _SMALLEST_TILE = 24, 16  # columns


def print_inspection(console: Console, result: InspectionResult, *, depth: int = 2) -> None:
    """Print one view of a model.

    Args:
        depth: levels of the tree.
    """
    match result:
        case TreeResult():
            print_tree(console, result, depth)
        case FreezePlanResult():
            print_freeze_plan(console, result)
        case ResidualsResult():
            print_residuals(console, result)
        case DriftResult():
            print_drift(console, result)
        case FeaturesResult():
            print_features(console, result)
        case CamResult():
            print_heatmaps(console, result)


def print_tree(console: Console, result: TreeResult, depth: int) -> None:
    """Print a model's modules with shapes and costs, the totals, the head with its reason, the preprocessing.

    Args:
        depth: levels of the tree.
    """
    root = result.root
    console.print(plain(result.title, "bold"))
    for note in result.notes:
        console.print(plain(note, "dim", limit=4000))
    console.print()
    console.print(_tree_table(root, depth, console))
    console.print()
    facts = [
        ("parameters", f"{root.parameters:,}, {root.trainable:,} of them in the head"),
        ("MACs", f"{format_count(root.multiply_adds, '-')} per image"),
        (
            "activations",
            f"{_bytes(root.activation_bytes)} per image to train everything, in fp32 (attention fused as on a CPU)",
        ),
        *(("head" if number == 0 else "", reason) for number, reason in enumerate(head_reason(root))),
        ("preprocessing", describe_preprocessing(result.preprocessing)),
    ]
    _print_facts(console, facts)


def print_freeze_plan(console: Console, result: FreezePlanResult) -> None:
    """Print what trains in each phase, the optimizer's groups, and the effect of freezing by name."""
    strategy, config = result.strategy, result.config
    console.print(plain(result.title, "bold"))
    about = f"{config.recipe} recipe, {config.optimizer}, {config.schedule}, input {config.input_size} px"
    console.print(plain(about, "dim"))
    console.print()
    console.print(tables.freeze_table(result.parts, strategy.phases, console.width))
    if strategy.frozen_layers:
        frozen, layers = strategy.frozen_layers, len(strategy.layers)
        console.print(Text(f"frozen throughout: the first {frozen} of {layers} layers", style="dim"))
    _section(console, f"parameter groups of {config.optimizer}, peak learning rates", _groups_table(result))
    letters = result.by_name.letters
    _section(console, f"a common mistake: freezing all but names with '{letters}'", _by_name(result.by_name))


def print_residuals(console: Console, result: ResidualsResult) -> None:
    """Print a model's residual blocks: a table with bars along the depth, and what the numbers mean."""
    report, before = result.report, result.before
    console.print(plain(result.title, "bold"))
    if report is None:
        console.print("no residual connections: this network never adds a tensor to something computed from it")
        return
    scores = f", accuracy {report.accuracy:.2%}, loss {report.loss:.4f}" if report.accuracy is not None else ""
    console.print(plain(f"{report.images:,} images: {result.source}{scores}", "dim", limit=4000))
    console.print()
    console.print(_residual_table(report, before, console))
    console.print(_columns_explained(report, result.against if before else "", console))
    console.print()
    for line in result.sentences:
        console.print(plain(line, limit=4000))
    if result.block is not None:
        print_block_maps(console, result.block)


def print_block_maps(console: Console, block: BlockMaps) -> None:
    """Print a picture beside the maps of a residual block, x, F(x) and their sum: bright where they are large."""
    residual = block.residual
    console.print()
    kind = _SHORTCUTS[residual.shortcut]
    console.print(plain(f"{residual.name}: F is {' > '.join(residual.branch)}; shortcut {kind}", "bold", limit=4000))
    energies = [each.square().mean(0).sqrt() for each in block.maps]
    brightest = max(each.max().item() for each in energies) or 1.0
    titles = ("the picture", "x", "F(x)", "x + F(x)")
    tiles = [(_coloured(each / brightest, "magma") * 255).to(torch.uint8) for each in energies]
    console.print(_tiles([block.picture, *tiles], titles, console))
    console.print(Text("brightness: root mean square over channels, one scale for all three", style="dim"))


def print_drift(console: Console, result: DriftResult) -> None:
    """Print how far each layer has moved, with bars."""
    console.print(plain(result.title, "bold"))
    console.print(plain(f"outputs compared on {result.images:,} images: {result.source}", "dim", limit=4000))
    console.print()
    wide = console.width >= 70
    table = _table("layer", "moved", *(("statistics", "CKA", "parameters") if wide else ("CKA",)))
    bar_room = max(6, min(40, console.width - (68 if wide else 36)))
    table.add_column("", no_wrap=True)
    largest = max((each.moved or 0.0 for each in result.layers), default=0.0) or 1.0
    for each in result.layers:
        cells = [_share(each.moved)]
        cells += [_share(each.statistics)] if wide else []
        cells.append(_number(each.similarity, 3))
        cells += [f"{each.parameters:,}"] if wide else []
        bar = _bar((each.moved or 0.0) / largest, bar_room, console)
        name = plain(shortened(each.name, 22 if wide else 14), "mark" if each.is_head else "")
        table.add_row(name, *cells, bar)
    console.print(table)
    console.print()
    legend = (
        "moved: norm of the change divided by the norm before (a new head has none). CKA: similarity of the layer's "
        "outputs on the same images, 1 if they differ only by rotation and scale."
    )
    legend += " statistics: the relative change of BatchNorm means and variances." if wide else ""
    console.print(Text(legend, style="dim"))
    for line in _drift_in_words(result.layers):
        console.print(plain(line, limit=4000))


def print_features(console: Console, result: FeaturesResult) -> None:
    """Print how well the features classify without the head, and a map of them."""
    found = result.found
    console.print(plain(result.title, "bold"))
    about = f"{len(found.labels):,} of {result.images:,} images on the map: {result.source}"
    console.print(plain(about, "dim", limit=4000))
    console.print()
    facts = [("head", tables.format_accuracy(found.by_head))] if found.by_head else []
    facts.append((f"{found.neighbours}-NN", tables.format_accuracy(found.by_neighbours)))
    _print_facts(console, facts)
    console.print(plain(_in_words(found), limit=4000))
    console.print()
    console.print(Text("t-SNE map of the features: images that are close have similar features", style="bold"))
    for line in _scatter(found, result.classes, console):
        console.print(line, no_wrap=True, crop=True)


def print_heatmaps(console: Console, result: CamResult) -> None:
    """Print heatmaps over their pictures; as characters where there are no colours."""
    if not result.heatmaps:
        console.print(f"no mistakes among {result.images:,} images")
        return
    if console.color_system is None or is_ascii(console):
        for each in result.heatmaps:
            console.print(plain(each.caption.replace("\n", ", ")))
            console.print(_shaded(each.heat, min(32, console.width)))
    else:
        overlays = [overlaid(each.picture, each.heat) for each in result.heatmaps]
        captions = [each.caption for each in result.heatmaps]
        if len(overlays) == 1:
            tiles = [result.heatmaps[0].picture, *overlays]
            console.print(_tiles(tiles, ("model input", captions[0]), console, largest=40))
        else:
            console.print(_tiles(overlays, captions, console))
    console.print(Text(f"Grad-CAM at {result.layer}; bright: evidence for the predicted class", style="dim"))


def overlaid(picture: Tensor, heat: Tensor) -> Tensor:
    """Return a heatmap over its picture, (3, H, W) uint8: grey where the heat is 0.

    Args:
        picture: (3, H, W) uint8.
        heat: (H, W), 0 to 1.
    """
    grey = picture.float().mean(0, keepdim=True) / 255
    coloured = _coloured(heat, "inferno")
    share = 0.25 + 0.55 * heat
    return ((grey * (1 - share) + coloured * share).clamp(0, 1) * 255).round().to(torch.uint8)


def _tree_table(root: Node, depth: int, console: Console) -> Table:
    width = console.width
    rows = list(_rows(root, "", "", depth, ascii_only=is_ascii(console)))
    columns: list[tuple[str, list[Text]]] = []
    if width >= 72:
        shapes = (" x ".join(map(str, node.output[1:])) if node.output else "" for _, node in rows)
        columns.append(("output", [plain(shape, "train") for shape in shapes]))
    counts = [f"{node.parameters:,}" if width >= 60 else format_count(node.parameters or None, "") for _, node in rows]
    columns.append(("parameters" if width >= 60 else "params", [Text(count) for count in counts]))
    work = [Text(format_count(node.multiply_adds or None, "")) for _, node in rows]
    columns.append(("MACs", work))
    if width >= 60:
        columns.append(("memory", [Text(_bytes(n.activation_bytes) if n.activation_bytes else "") for _, n in rows]))
    if width >= 88:
        columns.append(("phase 1", [_state(node) for _, node in rows]))
    # Numbers are never cut; types are shortened first, then names.
    widths = [max(len(heading), *(cell.cell_len for cell in cells)) for heading, cells in columns]
    room = max(8, width - sum(widths) - 2 * len(widths))
    names = [_module(prefix, node, room, with_type=width >= 60) for prefix, node in rows]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("module", no_wrap=True, overflow="ellipsis", max_width=room)
    for (heading, _), widest in zip(columns, widths, strict=True):
        is_text = heading in ("output", "phase 1")
        table.add_column(heading, justify="left" if is_text else "right", no_wrap=True, width=widest)
    for index, name in enumerate(names):
        table.add_row(name, *(cells[index] for _, cells in columns))
    return table


def _module(prefix: str, node: Node, room: int, *, with_type: bool) -> Text:
    name = node.name.rpartition(".")[2] if node.name else node.type
    line = Text(prefix, style="dim")
    line.append(shortened(name, max(4, room - len(prefix))), style="bold mark" if node.is_head else "bold")
    left = room - line.cell_len - 1
    if node.name and with_type and left >= min(_SHORTEST_TYPE, len(node.type)):
        line.append(f" {shortened(node.type, left)}", style="dim")
    return line


def _rows(node: Node, prefix: str, below: str, depth: int, *, ascii_only: bool) -> Iterator[tuple[str, Node]]:
    yield prefix, node
    if depth == 0:
        return
    branch, last, line = _GUIDES[ascii_only]
    for index, child in enumerate(node.children):
        is_last = index == len(node.children) - 1
        start, rest = (last, "    ") if is_last else (branch, line)
        yield from _rows(child, below + start, below + rest, depth - 1, ascii_only=ascii_only)


def _state(node: Node) -> Text:
    if node.is_head:
        return Text("trains", style="mark")
    if not node.parameters or not node.name:
        return Text("")
    return Text("frozen" if node.trainable == 0 else "partly", style="dim")


def _groups_table(result: FreezePlanResult) -> Table:
    phases = result.strategy.phases
    table = _table("group", "parameters", "decay", *(epoch_range(each.first, each.last) for each in phases))
    for is_head, found in groupby(result.groups, key=lambda each: each.is_head):
        for group in found:
            name = Text("head" if is_head else "backbone", style="mark" if is_head else "")
            rates = [
                f"lr {rate:.3g}" + (f" ({count / group.parameters:.0%})" if count < group.parameters else "")
                if count
                else "frozen"
                for rate, count in zip(group.rates, group.trained, strict=True)
            ]
            table.add_row(name, f"{group.parameters:,}", f"{group.weight_decay:g}", *rates)
    return table


def _by_name(found: ByName) -> Group:
    total = found.frozen + found.trainable
    lines = [Text(f"would freeze {found.frozen:,} of {total:,} parameters, and train {found.trainable:,}.")]
    if found.head_frozen:
        lines.append(plain(f"the new head ({', '.join(found.head_frozen)}) would stay frozen at random weights", "bad"))
    if found.body_trained:
        more = f" and {found.body_trained - 1:,} others" if found.body_trained > 1 else ""
        lines.append(plain(f"{found.example}{more} in the backbone would train, because of their names", "bad"))
    if not found.trainable:
        lines.append(Text("nothing would train", style="bad"))
    if found.is_right:
        lines.append(Text("correct for this model, except that BatchNorm statistics would still change", style="good"))
    return Group(*lines)


def _residual_table(report: ResidualReport, before: ResidualReport | None, console: Console) -> Table:
    width = console.width
    wide, medium = width >= 110, width >= 64
    headings = ["block"]
    headings += ["shortcut"] if medium else []
    headings += ["|x|", "|F|"] if wide else []
    headings += ["before", "|F|/|x|"] if before and medium else ["|F|/|x|"]
    headings += ["cosine", "share"] if medium else []
    headings += (["no F", "half F"] if medium else ["no F"]) if any(report.effects) else []
    table = _table(*headings)
    longest = max((len(each.name) for each in report.residuals), default=5)
    used = sum(11 if name == "shortcut" else 9 for name in headings[1:])
    bar_room = max(0, min(40, width - used - min(longest, 26) - 4))
    if bar_room >= 6:
        table.add_column("", no_wrap=True)
    name_room = max(10, width - used - (bar_room + 2 if bar_room >= 6 else 0) - 2)
    largest = max((each.ratio for each in report.strengths), default=1.0) or 1.0
    for index, (residual, strength) in enumerate(zip(report.residuals, report.strengths, strict=True)):
        cells: list[RenderableType] = [plain(shortened(residual.name, name_room))]
        if medium:
            cells.append(Text(_SHORTCUTS[residual.shortcut], style="" if residual.shortcut == "identity" else "val"))
        cells += [f"{strength.x_norm:.4g}", f"{strength.branch_norm:.4g}"] if wide else []
        if before and medium:
            cells.append(Text(f"{before.strengths[index].ratio:.2f}", style="dim"))
        cells.append(f"{strength.ratio:.2f}")
        cells += [_number(strength.cosine, 2), f"{round(strength.share, 2) + 0.0:.0%}"] if medium else []
        if any(report.effects):
            shown = report.effects[index] if medium else report.effects[index][:1]
            cells += [_effect(each, report) for each in shown]
        if bar_room >= 6:
            cells.append(_bar(strength.ratio / largest, bar_room, console))
        table.add_row(*cells)
    return table


def _effect(effect: Effect, report: ResidualReport) -> Text:
    if effect.accuracy is not None and report.accuracy is not None:
        change = 100 * (effect.accuracy - report.accuracy)
        style = "dim" if not effect.is_significant else "bad" if change <= -10 else "val"
        return Text(("" if effect.is_significant else "~") + f"{change:+.1f}", style=style)
    return Text(f"{effect.kept:.0%}", style="bad" if effect.kept < 0.5 else "val" if effect.kept < 0.8 else "")


def _columns_explained(report: ResidualReport, against: str, console: Console) -> Text:
    medium = console.width >= 64
    legend = ["|F|/|x|: norm of the branch's output divided by the shortcut's"]
    if against and medium:
        legend.append(f"before: the same ratio in {against}")
    if medium:
        legend.append("share: F's share of the energy of x + F")
    if any(report.effects):
        what = "change in accuracy, points" if report.accuracy is not None else "predictions that stay the same"
        columns, done = ("no F, half F", "removed or halved") if medium else ("no F", "removed")
        chance = ", ~ where not significant" if report.accuracy is not None else ""
        legend.append(f"{columns}: {what}, with F {done}{chance}")
    return plain("; ".join(legend), "dim", limit=4000)


def _drift_in_words(layers: Sequence[LayerDrift]) -> list[str]:
    body = [each for each in layers if not each.is_head and each.moved is not None]
    if not body:
        return []
    if all(each.moved == 0 for each in body):
        return ["The backbone has not moved at all: it was frozen throughout."]
    most = max(body, key=lambda each: each.moved or 0.0)
    lines = [f"{most.name} moved most, by {most.moved:.1%} of its norm."]
    still = sum(each.moved == 0 for each in body)
    if still:
        lines.append("1 layer has not moved at all." if still == 1 else f"{still} layers have not moved at all.")
    compared = [each for each in body if each.similarity is not None]
    if compared:
        least = min(compared, key=lambda each: each.similarity or 0.0)
        lines.append(f"The outputs of {least.name} changed most (CKA {least.similarity:.3f}).")
    return lines


def _in_words(found: Neighbourhood) -> str:
    voters = f"{found.neighbours} nearest neighbours by cosine among {found.known:,} training images"
    if found.by_head is None or found.agree is None:
        return f"{voters}; the model was not trained on these classes, so this estimates what a new head could reach."
    gap = found.by_head.value - found.by_neighbours.value
    meaning = (
        "the head adds little: the features alone separate the classes" if abs(gap) < 0.02
        else "the head separates the classes better than the nearest neighbours do" if gap > 0
        else "the nearest neighbours beat the head: train the head for longer, or a new one"
    )  # fmt: skip
    return f"{voters} agree with the head on {found.agree:.1%} of the images; {meaning}."


def _scatter(found: Neighbourhood, classes: Sequence[str], console: Console) -> list[Text]:
    """Return the map as lines, with the letter of the most frequent class in each cell, then the legend."""
    width = min(console.width, 100)
    height = max(8, min(28, width // 3))
    points = found.points - found.points.min(0)
    points = points / np.maximum(points.max(0), 1e-12)
    cells: dict[tuple[int, int], list[int]] = {}
    for (across, up), label in zip(points.tolist(), found.labels.tolist(), strict=True):
        cells.setdefault((round((1 - up) * (height - 1)), round(across * (width - 1))), []).append(label)
    lines = []
    for row in range(height):
        line = Text()
        for column in range(width):
            labels = cells.get((row, column))
            if labels:
                most = max(sorted(set(labels)), key=labels.count)
                line.append(_letter(most), style=_COLOURS[most % len(_COLOURS)])
            else:
                line.append(" ")
        line.rstrip()
        lines.append(line)
    legend, room = Text(), width
    present = sorted(set(found.labels.tolist()))
    for label in present[: len(_LETTERS)]:
        entry = Text(f"{_letter(label)} ", style=_COLOURS[label % len(_COLOURS)])
        entry.append_text(plain(shortened(classes[label], 18))).append("  ")
        if entry.cell_len > room and legend:
            lines.append(legend)
            legend, room = Text(), width
        legend.append_text(entry)
        room -= entry.cell_len
    return [*lines, legend]


def _letter(label: int) -> str:
    return _LETTERS[label % len(_LETTERS)]


def _tiles(pictures: Sequence[Tensor], captions: Sequence[str], console: Console, *, largest: int = _TILE) -> Table:
    """Return pictures in a grid, each with its caption."""
    if console.color_system is None or is_ascii(console):
        grid = Table.grid(padding=(0, 2, 1, 0))
        size = min(largest, console.width)
        for picture, caption in zip(pictures, captions, strict=True):
            grid.add_row(Group(plain(caption), _shaded(picture.float().mean(0) / 255, size)))
        return grid
    # As many per row as stay large enough, and rows of equal length where possible.
    columns = max(1, min(len(pictures), (console.width + 2) // (_SMALLEST_TILE + 2)))
    columns = next((each for each in range(columns, columns // 2, -1) if len(pictures) % each == 0), columns)
    size = min(largest, (console.width + 2) // columns - 2)
    grid = Table.grid(padding=(0, 2, 1, 0), pad_edge=False)
    for _ in range(columns):
        grid.add_column(width=size, overflow="fold")
    for start in range(0, len(pictures), columns):
        row = zip(pictures[start : start + columns], captions[start : start + columns], strict=True)
        grid.add_row(
            *(
                Group(thumbnail(picture, size), Text("\n").join(plain(line) for line in caption.split("\n")))
                for picture, caption in row
            )
        )
    return grid


def _coloured(values: Tensor, colours: str) -> Tensor:
    """Return numbers 0 to 1 (H, W) as a picture (3, H, W) float32, 0 to 1.

    Args:
        colours: name of a colormap of matplotlib.
    """
    return torch.from_numpy(colormaps[colours](values.numpy())[..., :3]).permute(2, 0, 1).float()


def _shaded(values: Tensor, columns: int) -> Text:
    """Return numbers 0 to 1 (H, W) as characters, denser for more, with half as many rows as columns."""
    small = torch.nn.functional.interpolate(values[None, None].float(), (max(1, columns // 2), columns), mode="area")[
        0, 0
    ]
    top = len(_SHADES) - 1
    return Text("\n".join("".join(_SHADES[min(top, int(v * top + 0.5))] for v in row) for row in small.tolist()))


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    words = ("block", "layer", "group", "shortcut", "shape")
    for heading in headings:
        is_text = heading in words or heading.startswith("epoch")
        table.add_column(heading, justify="left" if is_text else "right", no_wrap=True)
    return table


def _bar(share: float, room: int, console: Console) -> Text:
    # A thin character, so that rows stay apart.
    return Text(("=" if is_ascii(console) else "━") * round(share * room), style="train")


def _number(value: float | None, digits: int) -> str:
    # Rounded first, so that there is no negative zero.
    return "-" if value is None else f"{round(value, digits) + 0.0:.{digits}f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}" if value < 10 else f"{value:.0f}x"


def _bytes(count: int) -> str:
    return f"{count / 2**20:,.1f} MB" if count >= 2**20 // 10 else f"{count / 1024:,.1f} kB"


def _section(console: Console, title: str, content: RenderableType) -> None:
    console.print()
    console.print(plain(title, "bold"))
    console.print(content)


def _print_facts(console: Console, facts: Sequence[tuple[str, str]]) -> None:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in facts:
        grid.add_row(Text(name, style="dim"), plain(value, limit=4000))
    console.print(grid)

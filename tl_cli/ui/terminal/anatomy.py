"""Views of what is inside a model, printed in a terminal: tree, freeze plan, residuals, drift, features, heatmaps."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from rich.console import Console, Group
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
from tl_cli.ui.terminal.formats import epoch_range, format_count, or_dash
from tl_cli.ui.terminal.layout import (
    Cells,
    facts_grid,
    flow,
    grid_of,
    print_section,
    print_title,
    room_for_bar,
    table_of,
    text_bar,
    width_of,
)
from tl_cli.ui.terminal.pictures import coloured, has_pictures, overlaid, shaded, thumbnail

_GUIDES = {True: ("|-- ", "`-- ", "|   "), False: ("├── ", "└── ", "│   ")}
_SHORTCUTS = {"identity": "identity", "pooling": "pooled", "projection": "projected"}
_COLOURS = ("blue", "dark_orange", "magenta", "green", "yellow", "cyan", "red", "white")
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
_BARS = "━="  # thin, so that rows stay apart
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
    memory = f"{_bytes(root.activation_bytes)} per image to train everything, in fp32 (attention fused as on a CPU)"
    facts = [
        ("parameters", f"{root.parameters:,}, {root.trainable:,} of them in the head"),
        ("MACs", f"{format_count(root.multiply_adds, '-')} per image"),
        ("activations", memory),
        ("head", "\n".join(head_reason(root))),
        ("preprocessing", describe_preprocessing(result.preprocessing)),
    ]
    console.print(facts_grid((name, _lines(value)) for name, value in facts))


def print_freeze_plan(console: Console, result: FreezePlanResult) -> None:
    """Print what trains in each phase, the optimizer's groups, and the effect of freezing by name."""
    strategy, config = result.strategy, result.config
    about = f"{config.recipe} recipe, {config.optimizer}, {config.schedule}, input {config.input_size} px"
    print_title(console, result.title, about)
    console.print(tables.freeze_table(result.parts, strategy.phases, console.width))
    if strategy.frozen_layers:
        frozen, layers = strategy.frozen_layers, len(strategy.layers)
        console.print(Text(f"frozen throughout: the first {frozen} of {layers} layers", style="dim"))
    print_section(console, f"parameter groups of {config.optimizer}, peak learning rates", _groups_table(result))
    letters = result.by_name.letters
    print_section(
        console,
        f"a common mistake: freezing all but names with '{letters}'",
        *_explain_freezing_by_name(result.by_name),
    )


def print_residuals(console: Console, result: ResidualsResult) -> None:
    """Print a model's residual blocks: a table with bars along the depth, and what the numbers mean."""
    report, before = result.report, result.before
    if report is None:
        console.print(plain(result.title, "bold"))
        console.print("no residual connections: this network never adds a tensor to something computed from it")
        return
    scores = f", accuracy {report.accuracy:.2%}, loss {report.loss:.4f}" if report.accuracy is not None else ""
    print_title(console, result.title, f"{report.images:,} images: {result.source}{scores}")
    console.print(_residual_table(report, before, console))
    console.print(_explain_columns(report, result.against if before else "", console))
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
    tiles = [(coloured(each / brightest, "magma") * 255).to(torch.uint8) for each in energies]
    console.print(_tiles([block.picture, *tiles], titles, console))
    console.print(Text("brightness: root mean square over channels, one scale for all three", style="dim"))


def print_drift(console: Console, result: DriftResult) -> None:
    """Print how far each layer has moved, with bars."""
    print_title(console, result.title, f"outputs compared on {result.images:,} images: {result.source}")
    wide, layers = console.width >= 70, result.layers
    names = [plain(shortened(each.name, 22 if wide else 14), "mark" if each.is_head else "") for each in layers]
    columns: dict[str, Cells] = {"layer": names, "moved": [or_dash(each.moved, _share) for each in layers]}
    if wide:
        columns["statistics"] = [or_dash(each.statistics, _share) for each in layers]
    columns["CKA"] = [or_dash(each.similarity, "{:z.3f}".format) for each in layers]
    if wide:
        columns["parameters"] = [f"{each.parameters:,}" for each in layers]
    room = room_for_bar(columns, console.width)
    largest = max((each.moved or 0.0 for each in layers), default=0.0) or 1.0
    columns[""] = [text_bar((each.moved or 0.0) / largest, room, console, symbols=_BARS) for each in layers]
    console.print(table_of(columns, left=("layer",)))
    console.print()
    legend = (
        "moved: norm of the change divided by the norm before (a new head has none). CKA: similarity of the layer's "
        "outputs on the same images, 1 if they differ only by rotation and scale."
    )
    legend += " statistics: the relative change of BatchNorm means and variances." if wide else ""
    console.print(Text(legend, style="dim"))
    for line in _explain_drift(layers):
        console.print(plain(line, limit=4000))


def print_features(console: Console, result: FeaturesResult) -> None:
    """Print how well the features classify without the head, and a map of them."""
    features = result.neighbourhood
    about = f"{len(features.labels):,} of {result.images:,} images on the map: {result.source}"
    print_title(console, result.title, about)
    facts = [("head", tables.format_accuracy(features.by_head))] if features.by_head else []
    facts.append((f"{features.neighbours}-NN", tables.format_accuracy(features.by_neighbours)))
    console.print(facts_grid(facts))
    console.print(plain(_explain_features(features), limit=4000))
    print_section(console, "t-SNE map of the features: images that are close have similar features")
    for line in _scatter(features, result.classes, console):
        console.print(line, no_wrap=True, crop=True)


def print_heatmaps(console: Console, result: CamResult) -> None:
    """Print heatmaps over their pictures; as characters where there are no colours."""
    if not result.heatmaps:
        console.print(f"no mistakes among {result.images:,} images")
        return
    overlays = [overlaid(each.picture, each.heat) for each in result.heatmaps]
    captions = [each.caption for each in result.heatmaps]
    if not has_pictures(console):
        for each in result.heatmaps:
            console.print(plain(each.caption.replace("\n", ", ")))
            console.print(shaded(each.heat, min(32, console.width)))
    elif len(overlays) == 1:
        tiles = [result.heatmaps[0].picture, *overlays]
        console.print(_tiles(tiles, ("model input", captions[0]), console, largest=40))
    else:
        console.print(_tiles(overlays, captions, console))
    console.print(Text(f"Grad-CAM at {result.layer}; bright: evidence for the predicted class", style="dim"))


def _tree_table(root: Node, depth: int, console: Console) -> Table:
    width = console.width
    wide = width >= 60
    rows = list(_rows(root, "", "", depth, ascii_only=is_ascii(console)))
    nodes = [node for _, node in rows]
    columns: dict[str, Cells] = {}
    if width >= 72:
        shapes = (" x ".join(map(str, node.output[1:])) if node.output else "" for node in nodes)
        columns["output"] = [plain(shape, "train") for shape in shapes]
    if wide:
        columns["parameters"] = [f"{node.parameters:,}" for node in nodes]
    else:
        columns["params"] = [format_count(node.parameters or None, "") for node in nodes]
    columns["MACs"] = [format_count(node.multiply_adds or None, "") for node in nodes]
    if wide:
        columns["memory"] = [_bytes(node.activation_bytes) if node.activation_bytes else "" for node in nodes]
    if width >= 88:
        columns["phase 1"] = [_state(node) for node in nodes]
    # Numbers are never cut; types are shortened first, then names.
    room = max(8, width - width_of(columns) - 2)
    names = [_module(prefix, node, room, with_type=wide) for prefix, node in rows]
    return table_of({"module": names, **columns}, left=("module", "output", "phase 1"))


def _module(prefix: str, node: Node, room: int, *, with_type: bool) -> Text:
    name = node.name.rpartition(".")[2] if node.name else node.type
    line = Text(prefix, style="dim")
    line.append(shortened(name, max(4, room - len(prefix))), style="bold mark" if node.is_head else "bold")
    left = room - line.cell_len - 1
    if node.name and with_type and left >= min(_SHORTEST_TYPE, len(node.type)):
        line.append(f" {shortened(node.type, left)}", style="dim")
    line.truncate(room, overflow="ellipsis")
    return line


def _rows(node: Node, prefix: str, below: str, depth: int, *, ascii_only: bool) -> Iterator[tuple[str, Node]]:
    yield prefix, node
    if depth == 0:
        return
    branch, last, line = _GUIDES[ascii_only]
    for child in node.children:
        start, rest = (last, "    ") if child is node.children[-1] else (branch, line)
        yield from _rows(child, below + start, below + rest, depth - 1, ascii_only=ascii_only)


def _state(node: Node) -> Text:
    if node.is_head:
        return Text("trains", style="mark")
    if not node.parameters or not node.name:
        return Text("")
    return Text("frozen" if node.trainable == 0 else "partly", style="dim")


def _groups_table(result: FreezePlanResult) -> Table:
    groups, ranges = result.groups, [epoch_range(each.first, each.last) for each in result.strategy.phases]
    columns: dict[str, Cells] = {
        "group": [Text("head", "mark") if each.is_head else "backbone" for each in groups],
        "parameters": [f"{each.parameters:,}" for each in groups],
        "decay": [f"{each.weight_decay:g}" for each in groups],
    }
    for index, name in enumerate(ranges):
        columns[name] = [_rate(each.rates[index], each.trained[index], each.parameters) for each in groups]
    return table_of(columns, left=("group", *ranges))


def _rate(rate: float, trained: int, parameters: int) -> str:
    if not trained:
        return "frozen"
    return f"lr {rate:.3g}" + (f" ({trained / parameters:.0%})" if trained < parameters else "")


def _explain_freezing_by_name(effect: ByName) -> list[Text]:
    total = effect.frozen + effect.trainable
    lines = [Text(f"would freeze {effect.frozen:,} of {total:,} parameters, and train {effect.trainable:,}.")]
    if effect.head_frozen:
        lines.append(
            plain(f"the new head ({', '.join(effect.head_frozen)}) would stay frozen at random weights", "bad")
        )
    if effect.body_trained:
        more = f" and {effect.body_trained - 1:,} others" if effect.body_trained > 1 else ""
        lines.append(plain(f"{effect.example}{more} in the backbone would train, because of their names", "bad"))
    if not effect.trainable:
        lines.append(Text("nothing would train", style="bad"))
    if effect.is_right:
        lines.append(Text("correct for this model, except that BatchNorm statistics would still change", style="good"))
    return lines


def _residual_table(report: ResidualReport, before: ResidualReport | None, console: Console) -> Table:
    width, strengths = console.width, report.strengths
    wide, medium = width >= 110, width >= 64
    columns: dict[str, Cells] = {}
    if medium:
        kinds = [each.shortcut for each in report.residuals]
        columns["shortcut"] = [Text(_SHORTCUTS[kind], "" if kind == "identity" else "val") for kind in kinds]
    if wide:
        columns["|x|"] = [f"{each.x_norm:.4g}" for each in strengths]
        columns["|F|"] = [f"{each.branch_norm:.4g}" for each in strengths]
    if before and medium:
        columns["before"] = [Text(f"{each.ratio:.2f}", "dim") for each in before.strengths]
    columns["|F|/|x|"] = [f"{each.ratio:.2f}" for each in strengths]
    if medium:
        columns["cosine"] = [or_dash(each.cosine, "{:z.2f}".format) for each in strengths]
        columns["share"] = [f"{each.share:z.0%}" for each in strengths]
    if any(report.effects):
        for index, heading in enumerate(("no F", "half F") if medium else ("no F",)):
            columns[heading] = [_effect(each[index], report) for each in report.effects]
    longest = max((len(each.name) for each in report.residuals), default=5)
    room = min(40, width - width_of(columns) - min(longest, 26) - 2)
    name_room = max(10, width - width_of(columns) - (room + 2 if room >= 6 else 0) - 2)
    if room >= 6:
        largest = max((each.ratio for each in strengths), default=1.0) or 1.0
        columns[""] = [text_bar(each.ratio / largest, room, console, symbols=_BARS) for each in strengths]
    names = [shortened(each.name, name_room) for each in report.residuals]
    return table_of({"block": names, **columns}, left=("block", "shortcut"))


def _effect(effect: Effect, report: ResidualReport) -> Text:
    if effect.accuracy is not None and report.accuracy is not None:
        change = 100 * (effect.accuracy - report.accuracy)
        style = "dim" if not effect.is_significant else "bad" if change <= -10 else "val"
        return Text(("" if effect.is_significant else "~") + f"{change:+.1f}", style=style)
    return Text(f"{effect.kept:.0%}", style="bad" if effect.kept < 0.5 else "val" if effect.kept < 0.8 else "")


def _explain_columns(report: ResidualReport, against: str, console: Console) -> Text:
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


def _explain_drift(layers: Sequence[LayerDrift]) -> list[str]:
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


def _explain_features(features: Neighbourhood) -> str:
    voters = f"{features.neighbours} nearest neighbours by cosine among {features.known:,} training images"
    if features.by_head is None or features.agree is None:
        return f"{voters}; the model was not trained on these classes, so this estimates what a new head could reach."
    gap = features.by_head.value - features.by_neighbours.value
    meaning = (
        "the head adds little: the features alone separate the classes" if abs(gap) < 0.02
        else "the head separates the classes better than the nearest neighbours do" if gap > 0
        else "the nearest neighbours beat the head: train the head for longer, or a new one"
    )  # fmt: skip
    return f"{voters} agree with the head on {features.agree:.1%} of the images; {meaning}."


def _scatter(features: Neighbourhood, classes: Sequence[str], console: Console) -> list[Text]:
    """Return the map as lines, with the letter of the most frequent class in each cell, then the legend."""
    width = min(console.width, 100)
    height = max(8, min(28, width // 3))
    points = features.points - features.points.min(0)
    points = points / np.maximum(points.max(0), 1e-12)
    cells: dict[tuple[int, int], list[int]] = {}
    for (across, up), label in zip(points.tolist(), features.labels.tolist(), strict=True):
        cells.setdefault((round((1 - up) * (height - 1)), round(across * (width - 1))), []).append(label)
    lines = []
    for row in range(height):
        line = Text()
        for column in range(width):
            labels = cells.get((row, column), [])
            # If several classes are equally frequent, the first.
            line.append(_letter(max(sorted(set(labels)), key=labels.count)) if labels else " ")
        line.rstrip()
        lines.append(line)
    entries = [
        _letter(label).append(f" {shortened(classes[label], 18)}", style="default")
        for label in sorted(set(features.labels.tolist()))[: len(_LETTERS)]
    ]
    return [*lines, *flow(entries, width)]


def _letter(label: int) -> Text:
    return Text(_LETTERS[label % len(_LETTERS)], _COLOURS[label % len(_COLOURS)])


def _tiles(pictures: Sequence[Tensor], captions: Sequence[str], console: Console, *, largest: int = _TILE) -> Table:
    """Return pictures in a grid, each with its caption."""
    if not has_pictures(console):
        size = min(largest, console.width)
        rows = zip(captions, pictures, strict=True)
        return grid_of(
            [Group(plain(text), shaded(each.float().mean(0) / 255, size)) for text, each in rows], 1, size, below=1
        )
    # As many per row as fit at the smallest size, and rows of equal length if possible.
    columns = max(1, min(len(pictures), (console.width + 2) // (_SMALLEST_TILE + 2)))
    columns = next((each for each in range(columns, columns // 2, -1) if len(pictures) % each == 0), columns)
    size = min(largest, (console.width + 2) // columns - 2)
    cells = [Group(thumbnail(each, size), _lines(text)) for each, text in zip(pictures, captions, strict=True)]
    return grid_of(cells, columns, size, below=1)


def _lines(text: str) -> Text:
    """Return safe text of several lines."""
    return Text("\n").join(plain(line, limit=4000) for line in text.split("\n"))


def _share(value: float) -> str:
    return f"{value:.2%}" if value < 10 else f"{value:.0f}x"


def _bytes(count: int) -> str:
    return f"{count / 2**20:,.1f} MB" if count >= 2**20 // 10 else f"{count / 1024:,.1f} kB"

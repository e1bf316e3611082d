"""What is inside a model, as it looks in a terminal: trees, plans, residuals, drift, maps and heat."""

from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np
import torch
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text
from torch import Tensor

from tl_cli.contract import Preprocessing
from tl_cli.inspection.dissection import Anatomy, Effect, explain
from tl_cli.inspection.drift import LayerDrift
from tl_cli.inspection.features import Neighbourhood
from tl_cli.inspection.freeze_plan import ByName, Part
from tl_cli.inspection.residuals import Residual
from tl_cli.inspection.summary import Node, head_reason
from tl_cli.training.config import TrainConfig
from tl_cli.training.stage import Group as ParameterGroup
from tl_cli.training.stage import Strategy
from tl_cli.ui.terminal import tables
from tl_cli.ui.terminal.console import is_ascii, plain, shortened
from tl_cli.ui.terminal.eval_report import thumbnail
from tl_cli.ui.terminal.model_tables import format_count
from tl_cli.ui.terminal.progress import epoch_range

_GUIDES = {True: ("|-- ", "`-- ", "|   "), False: ("├── ", "└── ", "│   ")}
_SHORTCUTS = {"identity": "identity", "pooling": "pooled", "projection": "projected"}
_SHADES = " .:-=+*#%@"
_COLOURS = ("blue", "dark_orange", "magenta", "green", "yellow", "cyan", "red", "white")
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
_SHORTEST_TYPE = 8
_TILE, _SMALLEST_TILE = 24, 16  # columns


def print_tree(console: Console, title: str, lines: Sequence[str], root: Node, depth: int, how: Preprocessing) -> None:
    """Print a model's modules with what each makes and costs, the totals, the head with its reason, the preprocessing.

    Args:
        lines: what else there is to say of the model.
        depth: levels of the tree.
    """
    console.print(plain(title, "bold"))
    for line in lines:
        console.print(plain(line, "dim", limit=4000))
    console.print()
    console.print(_tree_table(root, depth, console))
    console.print()
    facts = [
        ("parameters", f"{root.parameters:,}, of which the head has {root.trainable:,}"),
        ("multiply-adds", f"{format_count(root.multiply_adds, '-')} an image"),
        (
            "activations",
            f"{_bytes(root.activation_bytes)} per image to train everything, in fp32 (attention fused as on a CPU)",
        ),
        *(("head" if number == 0 else "", reason) for number, reason in enumerate(head_reason(root))),
        ("preprocessing", describe_preprocessing(how)),
    ]
    _print_facts(console, facts)


def describe_preprocessing(how: Preprocessing) -> str:
    """Return how a picture becomes an input, in a line."""
    side = {"center": "short side", "squash": "both sides", "border": "long side"}[how.crop_mode]
    square = "padded to" if how.crop_mode == "border" and how.resize <= how.crop else "centre"
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (how.mean, how.std))
    depth = (
        f", deeper than 8 bits: {how.pixel_range[0]:g} black, {how.pixel_range[1]:g} white" if how.pixel_range else ""
    )
    return (
        f"{side} to {how.resize} px ({how.interpolation}), {square} {how.crop} x {how.crop}, mean ({mean}), std ({std})"
        f"{depth}"
    )


def print_freeze_plan(
    console: Console,
    title: str,
    config: TrainConfig,
    strategy: Strategy,
    parts: Sequence[Part],
    groups: Sequence[ParameterGroup],
    by_name: ByName,
) -> None:
    """Print what would train in which phase, the optimizer's groups, and what freezing by name would have done."""
    console.print(plain(title, "bold"))
    about = f"{config.recipe} recipe, {config.optimizer}, {config.schedule}, input {config.input_size} px"
    console.print(plain(about, "dim"))
    console.print()
    console.print(tables.freeze_table(parts, strategy.phases, console.width))
    if strategy.frozen_layers:
        count, layers = strategy.frozen_layers, len(strategy.layers)
        console.print(Text(f"frozen throughout: the first {count} of {layers} layers", style="dim"))
    _section(console, f"parameter groups of {config.optimizer}, peak learning rates", _groups_table(strategy, groups))
    _section(console, f"the classic mistake: freeze unless '{by_name.letters}' is in the name", _by_name(by_name))


def print_residuals(
    console: Console,
    title: str,
    source: str,
    anatomy: Anatomy,
    before: Anatomy | None,
    *,
    against: str = "",
    notes: Sequence[str] = (),
) -> None:
    """Print a network's residual blocks: a table with bars along the depth, and what is seen in plain words.

    Args:
        source: the images.
        before: the same of another state of the network.
        against: what that state is called.
        notes: what a person should know.
    """
    console.print(plain(title, "bold"))
    judged = f", accuracy {anatomy.accuracy:.2%}, loss {anatomy.loss:.4f}" if anatomy.accuracy is not None else ""
    console.print(plain(f"{anatomy.images:,} images: {source}{judged}", "dim", limit=4000))
    console.print()
    console.print(_residual_table(anatomy, before, console))
    console.print(_columns_explained(anatomy, before, against, console))
    console.print()
    for line in (*explain(anatomy), *notes):
        console.print(plain(line, limit=4000))


def print_found(console: Console, title: str, residuals: Sequence[Residual]) -> None:
    """Print that a network has no residual blocks, or the blocks alone."""
    console.print(plain(title, "bold"))
    if not residuals:
        console.print("no residual connections: nowhere in this network is a tensor added to what was computed from it")
        return
    table = _table("block", "shortcut", "shape")
    for each in residuals:
        table.add_row(plain(each.name), _SHORTCUTS[each.shortcut], " x ".join(map(str, each.shape[1:])))
    console.print(table)


def print_parts(console: Console, residual: Residual, picture: Tensor, energies: Sequence[Tensor]) -> None:
    """Print a picture beside what a residual makes of it: x, F(x) and their sum, bright where they are strong.

    Args:
        picture: (3, H, W) uint8.
        energies: root mean square over channels of x, F(x) and the sum, (h, w) each.
    """
    console.print()
    kind = _SHORTCUTS[residual.shortcut]
    console.print(plain(f"{residual.name}: F is {' > '.join(residual.branch)}; shortcut {kind}", "bold", limit=4000))
    brightest = max(each.max().item() for each in energies) or 1.0
    titles = ("the picture", "x", "F(x)", "x + F(x)")
    shown = [_grey(each / brightest) for each in energies]
    console.print(_tiles([picture, *shown], titles, console))
    console.print(Text("bright: long vectors of channels, all three by one scale", style="dim"))


def print_drift(console: Console, title: str, source: str, layers: Sequence[LayerDrift]) -> None:
    """Print how far each layer has moved, with bars."""
    console.print(plain(title, "bold"))
    console.print(plain(source, "dim", limit=4000))
    console.print()
    wide = console.width >= 70
    table = _table("layer", "moved", *(("statistics", "CKA", "parameters") if wide else ("CKA",)))
    bar_room = max(6, min(40, console.width - (68 if wide else 36)))
    table.add_column("", no_wrap=True)
    largest = max((each.moved or 0.0 for each in layers), default=0.0) or 1.0
    for each in layers:
        cells = [_share(each.moved)]
        cells += [_share(each.statistics)] if wide else []
        cells.append(_number(each.similarity, 3))
        cells += [f"{each.parameters:,}"] if wide else []
        bar = _bar((each.moved or 0.0) / largest, bar_room, console)
        name = plain(shortened(each.name, 22 if wide else 14), "mark" if each.is_head else "")
        table.add_row(name, *cells, bar)
    console.print(table)
    console.print()
    console.print(
        Text(
            "moved: length of the change in lengths of what was there; a new head has no before. CKA: how alike the "
            "layer's outputs are on the same images, 1 where only rotated or scaled."
            + (" statistics: the same for BatchNorm's means and variances." if wide else ""),
            style="dim",
        )
    )
    for line in _drift_in_words(layers):
        console.print(plain(line, limit=4000))


def print_neighbourhood(
    console: Console, title: str, source: str, found: Neighbourhood, classes: Sequence[str]
) -> None:
    """Print what the features are worth without the head, and a map of them."""
    console.print(plain(title, "bold"))
    console.print(plain(source, "dim", limit=4000))
    console.print()
    facts = [("head", tables.format_accuracy(found.by_head))] if found.by_head else []
    facts.append((f"{found.neighbours}-NN", tables.format_accuracy(found.by_neighbours)))
    _print_facts(console, facts)
    console.print(plain(_in_words(found), limit=4000))
    console.print()
    console.print(Text("the features, flattened by t-SNE: what is near looks alike to the network", style="bold"))
    for line in _scatter(found, classes, console):
        console.print(line, no_wrap=True, crop=True)


def print_heat(
    console: Console, pictures: Sequence[Tensor], heats: Sequence[Tensor], captions: Sequence[str], layer: str
) -> None:
    """Print where a network looked, over the pictures; as shades where there are no colours.

    Args:
        pictures: (3, S, S) uint8 each, as the network saw them.
        heats: (S, S) each, 0 to 1.
        captions: one each, of one or more lines.
    """
    if console.color_system is None or is_ascii(console):
        for heat, caption in zip(heats, captions, strict=True):
            console.print(plain(caption.replace("\n", ", ")))
            console.print(_shaded(heat, min(32, console.width)))
    else:
        tiles = [
            tile for picture, heat in zip(pictures, heats, strict=True) for tile in (picture, overlaid(picture, heat))
        ]
        if len(pictures) == 1:
            console.print(_tiles(tiles, ("as the network saw it", captions[0]), console, largest=40))
        else:
            console.print(_tiles(tiles[1::2], captions, console))
    console.print(Text(f"Grad-CAM at {layer}; bright: spoke for that class", style="dim"))


def overlaid(picture: Tensor, heat: Tensor) -> Tensor:
    """Return a picture with heat over it, (3, H, W) uint8: grey where nothing is, the brighter the hotter.

    Args:
        picture: (3, H, W) uint8.
        heat: (H, W), 0 to 1.
    """
    from matplotlib import colormaps

    grey = picture.float().mean(0, keepdim=True) / 255
    coloured = torch.from_numpy(colormaps["inferno"](heat.numpy())[..., :3]).permute(2, 0, 1).float()
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
    columns.append(("mult-adds" if width >= 60 else "m-adds", work))
    if width >= 60:
        columns.append(("memory", [Text(_bytes(n.activation_bytes) if n.activation_bytes else "") for _, n in rows]))
    if width >= 88:
        columns.append(("at first", [_state(node) for _, node in rows]))
    # Numbers are never cut; names are, the types behind them first.
    widths = [max(len(heading), *(cell.cell_len for cell in cells)) for heading, cells in columns]
    room = max(8, width - sum(widths) - 2 * len(widths))
    names = [_module(prefix, node, room, with_type=width >= 60) for prefix, node in rows]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("module", no_wrap=True, overflow="ellipsis", max_width=room)
    for (heading, _), widest in zip(columns, widths, strict=True):
        is_text = heading in ("output", "at first")
        table.add_column(heading, justify="left" if is_text else "right", no_wrap=True, width=widest)
    for place, name in enumerate(names):
        table.add_row(name, *(cells[place] for _, cells in columns))
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
    for place, child in enumerate(node.children):
        is_last = place == len(node.children) - 1
        start, rest = (last, "    ") if is_last else (branch, line)
        yield from _rows(child, below + start, below + rest, depth - 1, ascii_only=ascii_only)


def _state(node: Node) -> Text:
    if node.is_head:
        return Text("trains", style="mark")
    if not node.parameters or not node.name:
        return Text("")
    return Text("frozen" if node.trainable == 0 else "partly", style="dim")


def _groups_table(strategy: Strategy, groups: Sequence[ParameterGroup]) -> Table:
    phases = strategy.phases
    table = _table("group", "parameters", "decay", *(epoch_range(each.first, each.last) for each in phases))
    for is_head, found in groupby(groups, key=lambda each: each.is_head):
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
    lines = [
        Text(f"would freeze {found.frozen:,} of {found.frozen + found.trainable:,} parameters, and train "
             f"{found.trainable:,}.")
    ]  # fmt: skip
    if found.head_frozen:
        lines.append(plain(f"the head ({', '.join(found.head_frozen)}) is frozen, random as it is", "bad"))
    if found.body_trained:
        more = f" and {found.body_trained - 1:,} others" if found.body_trained > 1 else ""
        lines.append(plain(f"inside the backbone {found.example}{more} would train, as their names hold it", "bad"))
    if not found.trainable:
        lines.append(Text("nothing would train at all", style="bad"))
    if found.is_right:
        lines.append(
            Text("here it happens to be right, but BatchNorm statistics would move all the same", style="good")
        )
    return Group(*lines)


def _residual_table(anatomy: Anatomy, before: Anatomy | None, console: Console) -> Table:
    width = console.width
    wide, medium = width >= 110, width >= 64
    headings = ["block"]
    headings += ["shortcut"] if medium else []
    headings += ["|x|", "|F|"] if wide else []
    headings += ["before", "|F|/|x|"] if before and medium else ["|F|/|x|"]
    headings += ["cosine", "share"] if medium else []
    headings += ["no F", "half F"] if any(anatomy.effects) and medium else ["no F"] if any(anatomy.effects) else []
    table = _table(*headings)
    longest = max((len(each.name) for each in anatomy.residuals), default=5)
    used = sum({"shortcut": 11, "|x|": 9, "|F|": 9}.get(name, 9) for name in headings[1:])
    bar_room = max(0, min(40, width - used - min(longest, 26) - 4))
    if bar_room >= 6:
        table.add_column("", no_wrap=True)
    name_room = max(10, width - used - (bar_room + 2 if bar_room >= 6 else 0) - 2)
    largest = max((each.ratio for each in anatomy.strengths), default=1.0) or 1.0
    for place, (residual, strength) in enumerate(zip(anatomy.residuals, anatomy.strengths, strict=True)):
        cells: list[RenderableType] = [plain(shortened(residual.name, name_room))]
        if medium:
            cells.append(Text(_SHORTCUTS[residual.shortcut], style="" if residual.shortcut == "identity" else "val"))
        cells += [f"{strength.x_norm:.4g}", f"{strength.branch_norm:.4g}"] if wide else []
        if before and medium:
            cells.append(Text(f"{before.strengths[place].ratio:.2f}", style="dim"))
        cells.append(f"{strength.ratio:.2f}")
        cells += [_number(strength.cosine, 2), f"{round(strength.share, 2) + 0.0:.0%}"] if medium else []
        if any(anatomy.effects):
            shown = anatomy.effects[place] if medium else anatomy.effects[place][:1]
            cells += [_effect(each, anatomy) for each in shown]
        if bar_room >= 6:
            cells.append(_bar(strength.ratio / largest, bar_room, console))
        table.add_row(*cells)
    return table


def _effect(effect: Effect, anatomy: Anatomy) -> Text:
    if effect.accuracy is not None and anatomy.accuracy is not None:
        change = 100 * (effect.accuracy - anatomy.accuracy)
        style = "dim" if not effect.is_told else "bad" if change <= -10 else "val"
        return Text(("" if effect.is_told else "~") + f"{change:+.1f}", style=style)
    return Text(f"{effect.kept:.0%}", style="bad" if effect.kept < 0.5 else "val" if effect.kept < 0.8 else "")


def _columns_explained(anatomy: Anatomy, before: Anatomy | None, against: str, console: Console) -> Text:
    medium = console.width >= 64
    said = ["|F|/|x|: length of what the branch adds, in lengths of what passes by"]
    if before and medium:
        said.append(f"before: the same in {against}")
    if medium:
        said.append("share: of the sum's energy that F brings")
    if any(anatomy.effects):
        what = "points of accuracy" if anatomy.accuracy is not None else "answers that stay"
        columns, done = ("no F, half F", "left out or halved") if medium else ("no F", "left out")
        told = ", ~ where that may be chance" if anatomy.accuracy is not None else ""
        said.append(f"{columns}: {what} with F {done}{told}")
    return plain("; ".join(said), "dim", limit=4000)


def _drift_in_words(layers: Sequence[LayerDrift]) -> list[str]:
    body = [each for each in layers if not each.is_head and each.moved is not None]
    if not body:
        return []
    if all(each.moved == 0 for each in body):
        return ["The backbone has not moved at all: it was frozen throughout."]
    most = max(body, key=lambda each: each.moved or 0.0)
    lines = [f"{most.name} moved most, by {most.moved:.1%} of its length."]
    still = sum(each.moved == 0 for each in body)
    if still:
        lines.append("1 layer has not moved at all." if still == 1 else f"{still} layers have not moved at all.")
    compared = [each for each in body if each.similarity is not None]
    if compared:
        least = min(compared, key=lambda each: each.similarity or 0.0)
        lines.append(f"What {least.name} makes of images changed most (CKA {least.similarity:.3f}).")
    return lines


def _in_words(found: Neighbourhood) -> str:
    said = f"{found.neighbours} nearest of {found.known:,} training images vote, by cosine"
    if found.by_head is None or found.agree is None:
        return f"{said}; the network was never trained on these classes, so this says what a new head can hope for."
    gap = found.by_head.value - found.by_neighbours.value
    meaning = (
        "the head adds little: classes are told apart by the features alone" if abs(gap) < 0.02
        else "the head makes more of the features than their neighbourhoods show" if gap > 0
        else "the features hold more than the head makes of them: train the head longer, or anew"
    )  # fmt: skip
    return f"{said} and agree with the head on {found.agree:.1%}; {meaning}."


def _scatter(found: Neighbourhood, classes: Sequence[str], console: Console) -> list[Text]:
    """Return the map as lines: in each cell the letter of the class with most images there, then which is which."""
    width = min(console.width, 100)
    height = max(8, min(28, width // 3))
    places = found.places - found.places.min(0)
    places = places / np.maximum(places.max(0), 1e-12)
    cells: dict[tuple[int, int], list[int]] = {}
    for (across, up), label in zip(places.tolist(), found.labels.tolist(), strict=True):
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
    """Return pictures beside and below each other, each with its caption."""
    if console.color_system is None or is_ascii(console):
        grid = Table.grid(padding=(0, 2, 1, 0))
        size = min(largest, console.width)
        for picture, caption in zip(pictures, captions, strict=True):
            grid.add_row(Group(plain(caption), _shaded(picture.float().mean(0) / 255, size)))
        return grid
    # As many in a row as stay large enough, and rows of equal length where that can be.
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


def _grey(values: Tensor) -> Tensor:
    """Return numbers 0 to 1 as a picture (3, h, w), in steps that are seen on a dark ground."""
    from matplotlib import colormaps

    return (
        torch.from_numpy(colormaps["magma"](values.clamp(0, 1).numpy())[..., :3] * 255).permute(2, 0, 1).to(torch.uint8)
    )


def _shaded(values: Tensor, columns: int) -> Text:
    """Return numbers (H, W), 0 to 1, as characters, darker for less, half as many rows as columns."""
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
    # Thin: rows stay apart.
    return Text(("=" if is_ascii(console) else "━") * round(share * room), style="train")


def _number(value: float | None, digits: int) -> str:
    # Rounded first, so that no zero is negative.
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

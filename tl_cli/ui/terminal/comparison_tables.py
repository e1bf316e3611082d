"""A comparison as tables that fit the terminal, as Markdown and CSV, and as pictures."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tl_cli.evaluation.intervals import Measure
from tl_cli.evaluation.ranking import Comparison, Contender, advice, differences, rows, verdicts
from tl_cli.text import csv_text, safe_text
from tl_cli.training.history import History
from tl_cli.ui.figures import curve_figures
from tl_cli.ui.panels import overlaid
from tl_cli.ui.terminal import charts
from tl_cli.ui.terminal.charts import Canvas
from tl_cli.ui.terminal.console import plain, shortened
from tl_cli.ui.terminal.progress import format_seconds

_NAME = 32  # cells

Number = TypeVar("Number", int, float)
Series = Sequence[Sequence[History]]


def print_comparison(console: Console, comparison: Comparison, curves: Series) -> None:
    """Print accuracy, cost, what can be claimed, when to choose which, and the curves one over the other.

    Args:
        curves: of each contender's trainings, in the contenders' order.
    """
    counts = [len(model.trainings) for model in comparison.contenders]
    fewest, most = min(counts), max(counts)
    by = f", {fewest} to {most} trainings each" if fewest < most else f", {most} trainings each" if most > 1 else ""
    console.print(
        Text(f"{len(comparison.contenders)} models on the same {comparison.images:,} images{by}", style="bold")
    )
    console.print(plain(comparison.data, "dim", limit=4000))
    for title, columns in (
        ("accuracy; gap: training images less these", _accuracy_columns(comparison)),
        ("cost; multiply-adds an image, images/s", _cost_columns(comparison)),
    ):
        console.print()
        console.print(Text(title, style="bold"))
        console.print(_table(columns, comparison.contenders, console))
    apart = _differences(comparison)
    if apart:
        console.print()
        console.print(Text("different settings", style="bold"))
        for sentence in apart:
            console.print(plain(f"- {sentence}", limit=4000))
    console.print()
    console.print(Text("what can be claimed", style="bold"))
    for sentence in verdicts(comparison):
        console.print(plain(f"- {sentence}", limit=4000))
    console.print()
    console.print(Text("when to choose which", style="bold"))
    for sentence in advice(comparison):
        console.print(plain(f"- {sentence}", limit=4000))
    if any(history.epochs for each in curves for history in each):
        console.print()
        canvas = Canvas.on(console, min(console.width, 120), 14)
        accuracy, _ = overlaid([model.name for model in comparison.contenders], curves)
        for line in charts.heading(accuracy, canvas):
            console.print(line)
        console.print(charts.draw(accuracy, canvas))


def markdown(comparison: Comparison) -> str:
    """Return both tables, the verdicts and the advice."""
    lines: list[str] = []
    for columns in (_accuracy_columns(comparison), _cost_columns(comparison)):
        names = ["model", *columns]
        lines += [*([""] if lines else []), "| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
        for place, model in enumerate(comparison.contenders):
            cells = [safe_text(model.name), *(values[place] for values in columns.values())]
            escaped = (cell.replace("\\", "\\\\").replace("|", "\\|") for cell in cells)
            lines.append("| " + " | ".join(escaped) + " |")
    about = f"{safe_text(comparison.data)}: {comparison.images:,} images; intervals are 95%; gap: clean training images"
    lines += ["", f"{about} less these; multiply-adds are of one image; inference and tuning in images/s.", ""]
    lines += [f"- {safe_text(sentence, limit=4000)}" for sentence in verdicts(comparison)]
    apart = _differences(comparison)
    if apart:
        lines += ["", "Different settings:", "", *(f"- {safe_text(sentence, limit=4000)}" for sentence in apart)]
    lines += ["", "When to choose which:", ""]
    lines += [f"- {safe_text(sentence, limit=4000)}" for sentence in advice(comparison)]
    return "\n".join(lines) + "\n"


def _differences(comparison: Comparison) -> list[str]:
    """Return a line for each setting that is not the same for all, with the value for each model."""
    models = [model.name for model in comparison.contenders]
    return [
        f"{name}: " + "; ".join(f"{model} {value}" for model, value in zip(models, values, strict=True))
        for name, values in differences(comparison).items()
    ]


def as_csv(comparison: Comparison) -> str:
    """Return one row a model, numbers as they are."""
    found = rows(comparison)
    return csv_text([list(found[0]), *([_cell(value) for value in row.values()] for row in found)])


def _cell(value: object) -> object:
    return ";".join(map(str, value)) if isinstance(value, list) else value


def save_pictures(comparison: Comparison, curves: Series, folder: Path) -> list[Path]:
    """Write accuracy against cost, and the curves one over the other where there are any.

    Raises:
        StorageError: a file cannot be written.
    """
    paths = [folder / "accuracy_against_cost.png"]
    curve_figures.save_tradeoff(comparison, paths[0])
    if any(history.epochs for each in curves for history in each):
        paths.append(folder / "curves.png")
        curve_figures.save_panels(overlaid([model.name for model in comparison.contenders], curves), paths[-1])
    return paths


def _accuracy_columns(comparison: Comparison) -> dict[str, list[str]]:
    columns = {
        "accuracy": [f"{each.value:.2%}" for each in comparison.accuracies],
        "95% interval": [_interval(each) for each in comparison.accuracies],
        "behind the first": [_behind(comparison, place) for place in range(len(comparison.contenders))],
        "gap": [_or_dash(model.gap, lambda gap: f"{100 * gap:+.1f}") for model in comparison.contenders],
    }
    if any(len(model.trainings) > 1 for model in comparison.contenders):
        columns["each training"] = [
            " ".join(f"{100 * value.mean():.1f}" for value in model.right) for model in comparison.contenders
        ]
    return columns


def _cost_columns(comparison: Comparison) -> dict[str, list[str]]:
    models = comparison.contenders
    return {
        "params": [f"{each.cost.parameters / 1e6:.2f} M" for each in models],
        "mult-adds": [_or_dash(each.cost.multiply_adds, lambda n: f"{n / 1e6:,.0f} M") for each in models],
        "on disk": [f"{each.cost.size_bytes / 1e6:.1f} MB" for each in models],
        "inference": [_or_dash(each.cost.images_per_second, lambda n: f"{n:,.0f}/s") for each in models],
        "tuning": [_or_dash(each.training_speed, lambda n: f"{n:,.0f}/s") for each in models],
        "training": [_or_dash(each.train_seconds, format_seconds) for each in models],
    }


def _behind(comparison: Comparison, place: int) -> str:
    if place == 0:
        return ""
    difference = comparison.pair(0, place).paired.difference
    # Adding zero makes nothing of a negative one.
    return (
        f"{0.0 - 100 * difference.value:+.2f} ({0.0 - 100 * difference.high:+.2f} to {0.0 - 100 * difference.low:+.2f})"
    )


def _table(columns: dict[str, list[str]], models: Sequence[Contender], console: Console) -> Table:
    """Return a row a model, or a block of rows a model where the terminal is narrow."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    widest = max(cell_len(shortened(model.name, _NAME)) for model in models)
    needed = widest + sum(2 + max(map(len, [name, *values])) for name, values in columns.items())
    if needed <= console.width:
        table.add_column("model", no_wrap=True)
        for name in columns:
            table.add_column(name, justify="right", no_wrap=True)
        for place, model in enumerate(models):
            label = Text(shortened(model.name, _NAME), "bold" if place == 0 else "")
            table.add_row(label, *(values[place] for values in columns.values()))
        return table
    table.show_header = False
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for place, model in enumerate(models):
        table.add_row(Text(shortened(model.name, _NAME), "bold"))
        for name, values in columns.items():
            if values[place]:
                table.add_row(Text(f"  {name}", style="dim"), values[place])
    return table


def _interval(measure: Measure) -> str:
    return f"{100 * measure.low:.2f}-{100 * measure.high:.2f}"


def _or_dash(value: Number | None, shown: Callable[[Number], str]) -> str:
    return "-" if value is None else shown(value)

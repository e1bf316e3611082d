"""A comparison as tables that fit the terminal, as Markdown, CSV and JSON, and as image files."""

import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Literal, TypeVar

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tl_cli.api.comparison_run import CompareObserver, CompareResult, Report
from tl_cli.evaluation.intervals import Measure
from tl_cli.evaluation.ranking import Comparison, Contender, advice, differences, rows, verdicts
from tl_cli.io.atomic import write_text
from tl_cli.io.download import Unit
from tl_cli.text import csv_text, json_text, safe_text
from tl_cli.training.history import History
from tl_cli.ui.figures import curve_figures
from tl_cli.ui.panels import overlaid
from tl_cli.ui.terminal import charts
from tl_cli.ui.terminal.charts import Canvas
from tl_cli.ui.terminal.console import plain, print_error, print_warning, shortened, try_to_show
from tl_cli.ui.terminal.progress import FileProgress, format_seconds

_NAME = 32  # cells

Number = TypeVar("Number", int, float)
Series = Sequence[Sequence[History]]
Format = Literal["table", "markdown", "csv", "json"]


class ComparisonReport(CompareObserver):
    """Shows a comparison as it is made: trainings and progress, then the result, which it also writes to files.

    Args:
        console: for the result.
        aside: for everything else; on stderr where stdout is for programs.
        form: of the result.
        output: folder for files; None writes none, except for those that are recorded.
    """

    def __init__(self, console: Console, aside: Console, form: Format, output: Path | None) -> None:
        self._console, self._aside, self._form, self._output = console, aside, form, output
        self._open, self._bar = ExitStack(), ExitStack()
        self._progress: FileProgress | None = None
        self._written: list[Path] = []
        self._broken_pipe: BrokenPipeError | None = None

    def close(self) -> None:
        """Remove the progress bar and temporary files."""
        self._close_progress()
        self._open.close()

    def warn(self, message: str) -> None:
        """Print a warning to stderr."""
        print_warning(message)

    def progress(self, what: str, done: int, total: int | None, unit: Unit = "items") -> None:
        """Draw or redraw the line of ``what``."""
        if self._progress is None:
            self._progress = self._bar.enter_context(FileProgress(self._aside))
        self._progress(what, done, total, unit)

    def training(self, title: str, number: int, total: int) -> None:
        """Print the title of a training, which draws its own progress."""
        self._close_progress()
        self._aside.print(plain(f"training {number} of {total}: {title}", "bold mark"))

    def compared(self, result: CompareResult) -> Report:
        """Print the result and write its files; also where the reader of stdout is gone, so that it is recorded."""
        self._close_progress()
        self._broken_pipe = try_to_show(lambda: _show(self._console, result, self._form))
        if self._output is not None:
            self._written = write_files(result, self._output)
        if result.run_id is None:
            return Report("")
        files = self._written or write_files(result, Path(self._open.enter_context(tempfile.TemporaryDirectory())))
        return Report(markdown(result.comparison), tuple(files))

    def finish(self, result: CompareResult, uri_flag: str) -> None:
        """Print which files were written, how to see the comparison again, and what failed.

        Args:
            uri_flag: what a command needs to find the same store.

        Raises:
            BrokenPipeError: the reader of stdout is gone.
        """
        if self._broken_pipe is not None:
            raise self._broken_pipe
        for path in self._written:
            self._aside.print(str(path), markup=False, soft_wrap=True, style="dim")
        if result.run_id is not None:
            again = f"tl compare {result.run_id[:8]}{uri_flag}"
            self._aside.print(f"\nrecorded; to see it again: {again}", style="dim", markup=False, soft_wrap=True)
        if result.failed:
            print_error(f"not trained, and not in the comparison: {', '.join(result.failed)}")

    def _close_progress(self) -> None:
        self._bar.close()
        self._progress = None


def _show(console: Console, result: CompareResult, form: Format) -> None:
    if form == "table":
        print_comparison(console, result.comparison, result.curves)
        return
    texts = {"markdown": markdown, "csv": as_csv}
    text = texts[form](result.comparison) if form in texts else json_text(result.to_dict()) + "\n"
    sys.stdout.write(text)
    sys.stdout.flush()


def write_files(result: CompareResult, folder: Path) -> list[Path]:
    """Write the comparison as Markdown, CSV, JSON and image files; return their paths.

    Raises:
        StorageError: a file cannot be written.
    """
    comparison = result.comparison
    texts = {"md": markdown(comparison), "csv": as_csv(comparison), "json": json_text(result.to_dict()) + "\n"}
    paths = [folder / f"comparison.{ending}" for ending in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        write_text(path, text)
    return paths + curve_figures.drawn(lambda: save_pictures(comparison, result.curves, folder))


def print_comparison(console: Console, comparison: Comparison, curves: Series) -> None:
    """Print accuracy, cost, different settings, significant differences, advice, and the curves in one chart.

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
        ("accuracy (gap: accuracy on training images minus this one)", _accuracy_columns(comparison)),
        ("cost (MACs per image; speeds in images/s)", _cost_columns(comparison)),
    ):
        console.print()
        console.print(Text(title, style="bold"))
        console.print(_table(columns, comparison.contenders, console))
    for title, sentences in (
        ("different settings", _differences(comparison)),
        ("significant differences", verdicts(comparison)),
        ("when to choose which", advice(comparison)),
    ):
        if sentences:
            console.print()
            console.print(Text(title, style="bold"))
        for sentence in sentences:
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
        for index, model in enumerate(comparison.contenders):
            cells = [safe_text(model.name), *(values[index] for values in columns.values())]
            escaped = (cell.replace("\\", "\\\\").replace("|", "\\|") for cell in cells)
            lines.append("| " + " | ".join(escaped) + " |")
    about = (
        f"{safe_text(comparison.data)}: {comparison.images:,} images; 95% intervals; gap: accuracy on training images"
    )
    lines += ["", f"{about} minus this one; MACs per image; inference and fine-tuning in images/s."]
    for title, sentences in (
        ("", verdicts(comparison)),
        ("Different settings:", _differences(comparison)),
        ("When to choose which:", advice(comparison)),
    ):
        if sentences:
            lines += ["", *([title, ""] if title else [])]
            lines += [f"- {safe_text(sentence, limit=4000)}" for sentence in sentences]
    return "\n".join(lines) + "\n"


def _differences(comparison: Comparison) -> list[str]:
    """Return a line for each setting that differs, with the value for each model."""
    models = [model.name for model in comparison.contenders]
    return [
        f"{name}: " + "; ".join(f"{model} {value}" for model, value in zip(models, values, strict=True))
        for name, values in differences(comparison).items()
    ]


def as_csv(comparison: Comparison) -> str:
    """Return one row per model, with unrounded numbers."""
    found = rows(comparison)
    return csv_text([list(found[0]), *([_cell(value) for value in row.values()] for row in found)])


def _cell(value: object) -> object:
    return ";".join(map(str, value)) if isinstance(value, list) else value


def save_pictures(comparison: Comparison, curves: Series, folder: Path) -> list[Path]:
    """Write accuracy against cost and, where there are any, the curves in one picture.

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
        "difference to best": [_behind(comparison, index) for index in range(len(comparison.contenders))],
        "gap": [_or_dash(model.gap, lambda gap: f"{100 * gap:+.1f}") for model in comparison.contenders],
    }
    if any(len(model.trainings) > 1 for model in comparison.contenders):
        columns["each training"] = [
            " ".join(f"{100 * value.mean():.1f}" for value in model.correct) for model in comparison.contenders
        ]
    return columns


def _cost_columns(comparison: Comparison) -> dict[str, list[str]]:
    models = comparison.contenders
    return {
        "params": [f"{each.cost.parameters / 1e6:.2f} M" for each in models],
        "MACs": [_or_dash(each.cost.multiply_adds, lambda n: f"{n / 1e6:,.0f} M") for each in models],
        "on disk": [f"{each.cost.size_bytes / 1e6:.1f} MB" for each in models],
        "inference": [_or_dash(each.cost.images_per_second, lambda n: f"{n:,.0f}/s") for each in models],
        "fine-tuning": [_or_dash(each.training_speed, lambda n: f"{n:,.0f}/s") for each in models],
        "training": [_or_dash(each.train_seconds, format_seconds) for each in models],
    }


def _behind(comparison: Comparison, index: int) -> str:
    if index == 0:
        return ""
    difference = comparison.pair(0, index).paired.difference
    # Zero minus zero is 0.0 where its negation would be -0.0.
    return (
        f"{0.0 - 100 * difference.value:+.2f} ({0.0 - 100 * difference.high:+.2f} to {0.0 - 100 * difference.low:+.2f})"
    )


def _table(columns: dict[str, list[str]], models: Sequence[Contender], console: Console) -> Table:
    """Return one row per model, or a block of rows per model where the terminal is narrow."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    widest = max(cell_len(shortened(model.name, _NAME)) for model in models)
    needed = widest + sum(2 + max(map(len, [name, *values])) for name, values in columns.items())
    if needed <= console.width:
        table.add_column("model", no_wrap=True)
        for name in columns:
            table.add_column(name, justify="right", no_wrap=True)
        for index, model in enumerate(models):
            label = Text(shortened(model.name, _NAME), "bold" if index == 0 else "")
            table.add_row(label, *(values[index] for values in columns.values()))
        return table
    table.show_header = False
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for index, model in enumerate(models):
        table.add_row(Text(shortened(model.name, _NAME), "bold"))
        for name, values in columns.items():
            if values[index]:
                table.add_row(Text(f"  {name}", style="dim"), values[index])
    return table


def _interval(measure: Measure) -> str:
    return f"{100 * measure.low:.2f}-{100 * measure.high:.2f}"


def _or_dash(value: Number | None, shown: Callable[[Number], str]) -> str:
    return "-" if value is None else shown(value)

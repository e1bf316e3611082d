"""A comparison as tables that fit the terminal, as Markdown, CSV and JSON, and as image files."""

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tl_cli.api.comparison_run import CompareObserver, CompareResult, Report
from tl_cli.evaluation.ranking import Comparison, Contender, advice, differences, rows, verdicts
from tl_cli.io.atomic import write_text
from tl_cli.text import csv_text, json_text, safe_text
from tl_cli.training.history import History
from tl_cli.ui.figures import curve_figures
from tl_cli.ui.panels import overlaid
from tl_cli.ui.terminal import charts
from tl_cli.ui.terminal.charts import Canvas
from tl_cli.ui.terminal.console import plain, print_error, shortened, try_to_show
from tl_cli.ui.terminal.formats import format_seconds, or_dash
from tl_cli.ui.terminal.layout import Cells, make_table, print_section, table_of, width_of
from tl_cli.ui.terminal.observer import TerminalObserver

_NAME = 32  # cells

Series = Sequence[Sequence[History]]
Format = Literal["table", "markdown", "csv", "json"]


class ComparisonReport(TerminalObserver, CompareObserver):
    """Shows the trainings and the progress of a comparison, then the result, which it also writes to files.

    Args:
        console: for the result.
        aside: for everything else; on stderr if stdout is for programs.
        form: of the result.
        output: folder for files; None writes none, except for those that are recorded.
    """

    def __init__(self, console: Console, aside: Console, form: Format, output: Path | None) -> None:
        super().__init__(aside)
        self._console, self._aside, self._form, self._output = console, aside, form, output
        self._temporary = ExitStack()
        self._written: list[Path] = []
        self._broken_pipe: BrokenPipeError | None = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        self._temporary.close()

    def training(self, title: str, number: int, total: int) -> None:
        """Print the title of a training, which draws its own progress."""
        self.close()
        self._aside.print(plain(f"training {number} of {total}: {title}", "bold mark"))

    def compared(self, result: CompareResult) -> Report:
        """Print the result and write its files; if the pipe of stdout is closed, continue, so that it is recorded."""
        self.close()
        self._broken_pipe = try_to_show(lambda: _show(self._console, result, self._form))
        if self._output is not None:
            self._written = write_files(result, self._output)
        if result.run_id is None:
            return Report("")
        files = self._written or write_files(result, Path(self._temporary.enter_context(tempfile.TemporaryDirectory())))
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


def _texts(result: CompareResult) -> dict[str, str]:
    return {
        "markdown": markdown(result.comparison),
        "csv": as_csv(result.comparison),
        "json": json_text(result.to_dict()) + "\n",
    }


def _show(console: Console, result: CompareResult, form: Format) -> None:
    if form == "table":
        print_comparison(console, result.comparison, result.curves)
    else:
        print(_texts(result)[form], end="", flush=True)


def write_files(result: CompareResult, folder: Path) -> list[Path]:
    """Write the comparison as Markdown, CSV, JSON and image files; return their paths.

    Raises:
        StorageError: a file cannot be written.
    """
    paths = [folder / f"comparison.{ending}" for ending in ("md", "csv", "json")]
    for path, text in zip(paths, _texts(result).values(), strict=True):
        write_text(path, text)
    return paths + curve_figures.try_to_draw(lambda: save_pictures(result.comparison, result.curves, folder))


def print_comparison(console: Console, comparison: Comparison, curves: Series) -> None:
    """Print accuracy, cost, different settings, significant differences, advice, and the curves in one chart.

    Args:
        curves: of each contender's trainings, in the contenders' order.
    """
    counts = [len(model.trainings) for model in comparison.contenders]
    fewest, most = min(counts), max(counts)
    by = f", {fewest} to {most} trainings each" if fewest < most else f", {most} trainings each" if most > 1 else ""
    console.print(Text(f"{len(counts)} models on the same {comparison.images:,} images{by}", style="bold"))
    console.print(plain(comparison.data, "dim", limit=4000))
    for title, columns in (
        ("accuracy (gap: accuracy on training images minus this one)", _accuracy_columns(comparison)),
        ("cost (MACs per image; speeds in images/s)", _cost_columns(comparison)),
    ):
        print_section(console, title, _table(columns, comparison.contenders, console))
    for title, sentences in (
        ("different settings", _differences(comparison)),
        ("significant differences", verdicts(comparison)),
        ("when to choose which", advice(comparison)),
    ):
        if sentences:
            print_section(console, title, *(plain(f"- {sentence}", limit=4000) for sentence in sentences))
    if any(history.epochs for each in curves for history in each):
        console.print()
        canvas = Canvas.on(console, min(console.width, 120), 14)
        accuracy, _ = overlaid([model.name for model in comparison.contenders], curves)
        console.print(*charts.heading(accuracy, canvas), charts.draw(accuracy, canvas), sep="\n")


def markdown(comparison: Comparison) -> str:
    """Return both tables, the verdicts and the advice."""
    models = [safe_text(model.name) for model in comparison.contenders]
    lines: list[str] = []
    for columns in (_accuracy_columns(comparison), _cost_columns(comparison)):
        lines += [*[""] * bool(lines), f"| model | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
        for row in zip(models, *columns.values(), strict=True):
            escaped = (cell.replace("\\", "\\\\").replace("|", "\\|") for cell in row)
            lines.append(f"| {' | '.join(escaped)} |")
    about = f"{safe_text(comparison.data)}: {comparison.images:,} images; 95% intervals; gap: accuracy on training"
    lines += ["", f"{about} images minus this one; MACs per image; inference and fine-tuning in images/s."]
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
    data = rows(comparison)
    cells = ([";".join(map(str, v)) if isinstance(v, list) else v for v in row.values()] for row in data)
    return csv_text([list(data[0]), *cells])


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
        "95% interval": [f"{100 * each.low:.2f}-{100 * each.high:.2f}" for each in comparison.accuracies],
        "difference to best": [_difference_to_best(comparison, index) for index in range(len(comparison.contenders))],
        "gap": [or_dash(model.gap, lambda gap: f"{100 * gap:+.1f}") for model in comparison.contenders],
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
        "MACs": [or_dash(each.cost.multiply_adds, lambda count: f"{count / 1e6:,.0f} M") for each in models],
        "on disk": [f"{each.cost.size_bytes / 1e6:.1f} MB" for each in models],
        "inference": [or_dash(each.cost.images_per_second, "{:,.0f}/s".format) for each in models],
        "fine-tuning": [or_dash(each.training_speed, "{:,.0f}/s".format) for each in models],
        "training": [or_dash(each.train_seconds, format_seconds) for each in models],
    }


def _difference_to_best(comparison: Comparison, index: int) -> str:
    if index == 0:
        return ""
    difference = comparison.pair(0, index).paired.difference
    value, low, high = (f"{-100 * number:+z.2f}" for number in (difference.value, difference.high, difference.low))
    return f"{value} ({low} to {high})"


def _table(columns: dict[str, list[str]], models: Sequence[Contender], console: Console) -> Table:
    """Return one row per model, or a block of rows per model where the terminal is narrow."""
    names = [Text(shortened(model.name, _NAME), "" if index else "bold") for index, model in enumerate(models)]
    whole: dict[str, Cells] = {"model": names, **columns}
    if width_of(whole) - 2 <= console.width:
        return table_of(whole, left=("model",))
    table = make_table("", "")
    table.show_header, table.columns[1].no_wrap, table.columns[1].overflow = False, False, "fold"
    for index, model in enumerate(models):
        table.add_row(Text(shortened(model.name, _NAME), "bold"))
        for name, values in columns.items():
            if values[index]:
                table.add_row(Text(f"  {name}", style="dim"), values[index])
    return table

"""The curves of recorded runs in the terminal: printed once, or followed while a run trains."""

import statistics
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.text import Text

from tl_cli.api.run_curves import CurvesResult, FollowObserver
from tl_cli.tracking.facts import RunFacts
from tl_cli.training.history import History
from tl_cli.ui.panels import COLOURS, Panel, PanelOptions, is_usual, panels
from tl_cli.ui.terminal import charts
from tl_cli.ui.terminal.charts import Canvas
from tl_cli.ui.terminal.console import is_live, is_terminal, plain, shortened
from tl_cli.ui.terminal.epochs import best_line, epoch_line, epoch_table
from tl_cli.ui.terminal.formats import time_left
from tl_cli.ui.terminal.layout import charts_per_row, progress_bar
from tl_cli.ui.terminal.screen import full_screen

Runs = Sequence[tuple[RunFacts, History]]
_MIN_ROWS, _MAX_ROWS = 8, 22  # rows of a chart
_WAITING = "no run is training yet; waiting for one (Ctrl-C to stop, tl plot --terminal for the latest)"
_ENDS = {
    "finished": "is complete",
    "failed": "has failed",
    "killed": "was stopped; tl train --resume continues it",
    "dead": "is dead: its process is gone; tl train --resume continues it, tl runs close records its end",
    "silent": "has not reported for minutes; its machine may have lost the server",
}


def print_curves(console: Console, runs: Runs, options: PanelOptions) -> None:
    """Print the charts of some runs, their legend, and the results of a single run."""
    histories = [history for _, history in runs]
    shown = panels(histories, options)
    console.print(*_titles(console, runs, shown), sep="\n")
    if not shown:
        console.print(Text("no points yet", style="dim"))
        return
    # Four charts below each other do not fit a screen, and scroll anyway.
    fits = is_terminal(console) and charts_per_row(len(shown), console.width) > 1
    room = console.height - len(runs) - 4 if fits else 0
    grid, canvas = _grid(console, shown, console.width, room, single=len(runs) == 1)
    console.print(grid)
    lines = charts.mark_lines(shown, canvas)
    if len(runs) > 1 and any(line.kind in ("best", "test") and line.points for panel in shown for line in panel.lines):
        lines.append(charts.points_line(canvas))
    for line in [*lines, *_results(runs)]:
        console.print(line)


def print_left(console: Console, runs: Runs) -> None:
    """Print how to follow the runs again."""
    names = " ".join(facts.short_id for facts, _ in runs)
    console.print(plain(f"left; the run continues. To follow it again: tl plot --follow {names}"), soft_wrap=True)


def print_ended(console: Console, result: CurvesResult, options: PanelOptions) -> None:
    """Print the curves of followed runs, and how each ended."""
    print_curves(console, result.runs, replace(options, metrics=result.metrics))
    for facts, _ in result.runs:
        name = facts.name if len(result.runs) > 1 else "the run"
        console.print(plain(f"{name} {_ENDS.get(facts.status, facts.status)}"), soft_wrap=True)


class Follower(FollowObserver):
    """Shows runs while they train.

    Args:
        options: its metrics are replaced by those that are recorded.

    Attributes:
        screen: a context manager, entered before the curves are first read.
    """

    def __init__(self, console: Console, options: PanelOptions) -> None:
        self.runs: Runs = ()
        self.screen: AbstractContextManager[object] = nullcontext()
        self._console, self._options = console, options

    def curves(self, result: CurvesResult, trouble: str = "") -> None:
        """Keep the curves; ``trouble``: why they may be out of date."""
        self.runs, self._options = result.runs, replace(self._options, metrics=result.metrics)


def open_follower(console: Console, options: PanelOptions) -> Follower:
    """Return a screen that is redrawn where the terminal can show one, else plain lines."""
    return FollowScreen(console, options) if is_live(console) else FollowLines(console, options)


class FollowLines(Follower):
    """Prints one line per epoch, for pipes, logs and dumb terminals."""

    def __init__(self, console: Console, options: PanelOptions) -> None:
        super().__init__(console, options)
        self._epochs: dict[str, int] = {}
        self._steps: dict[tuple[str, str], int] = {}
        self._trouble = ""

    def waiting(self) -> None:
        """Print that no run trains yet."""
        self._console.print(_WAITING)

    def curves(self, result: CurvesResult, trouble: str = "") -> None:
        """Print the epochs that have ended since the last time; of other metrics the latest value."""
        super().curves(result, trouble)
        if trouble and trouble != self._trouble:
            self._console.print(plain(trouble, "yellow", limit=400), soft_wrap=True)
        self._trouble = trouble
        for facts, history in self.runs:
            name = f"{facts.name}  " if len(self.runs) > 1 else ""
            if is_usual([history], self._options):
                self._print_epochs(facts, history, name)
                continue
            for metric, points in history.others.items():
                if points and points[-1][0] > self._steps.get((facts.run_id, metric), -1):
                    step, value = points[-1]
                    self._steps[facts.run_id, metric] = step
                    self._console.print(plain(f"{name}step {step:,}  {metric} {value:.6g}"), soft_wrap=True)

    def _print_epochs(self, facts: RunFacts, history: History, name: str) -> None:
        printed = self._epochs.get(facts.run_id, 0)
        for index, point in enumerate(history.epochs[printed:], printed):
            is_best = history.keep == "best" and History(epochs=history.epochs[: index + 1]).best is point
            line = epoch_line(point, facts.epochs_wanted, is_best=is_best)
            self._console.print(plain(f"{name}{line}"), soft_wrap=True)
        self._epochs[facts.run_id] = max(printed, len(history.epochs))


class FollowScreen(Follower):
    """A full screen with the name of a run, its progress and its curves."""

    def __init__(self, console: Console, options: PanelOptions) -> None:
        super().__init__(console, options)
        self._readings = 0
        self._trouble, self._empty = "", "reading the run"
        self._drawn: tuple[object, RenderableType] | None = None
        self.screen = full_screen(console, self, refresh_per_second=2)

    def waiting(self) -> None:
        """Show, with the next refresh, that no run trains yet."""
        self._empty = _WAITING

    def curves(self, result: CurvesResult, trouble: str = "") -> None:
        """Show the curves with the next refresh."""
        super().curves(result, trouble)
        self._trouble = trouble
        self._readings += 1

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Lay the screen out for the size that the terminal has now."""
        width, height = options.max_width, options.height or console.height
        if not self.runs:
            yield Text(self._empty, style="dim")
            return
        state = (width, height, self._trouble, self._readings)
        if self._drawn is None or self._drawn[0] != state:
            self._drawn = (state, Group(*self._lines(console, width, height)))
        yield self._drawn[1]

    def _lines(self, console: Console, width: int, height: int) -> list[RenderableType]:
        single, (_, history) = len(self.runs) == 1, self.runs[0]
        shown = panels([history for _, history in self.runs], self._options)
        top = [*_titles(console, self.runs, shown), *(_progress(*run, width, named=not single) for run in self.runs)]
        foot = [*([plain(self._trouble, "yellow")] if self._trouble else []), *_results(self.runs)]
        foot.append(Text("Ctrl-C leaves; the run continues", style="dim"))
        room = height - len(top) - len(foot)
        table = []
        if single and history.epochs:
            rows = min(6, max(1, room // 5))
            room -= rows + 1
            table.append(epoch_table(history.epochs[-rows:], history.best, width))
        # The first panels, as many full rows as fit.
        fitting = shown[: room // (_MIN_ROWS + 2) * charts_per_row(len(shown), width)]
        grid = [_grid(console, fitting, width, room, single=single)[0]] if fitting else []
        return [*top, *grid, *table, *foot]


def _titles(console: Console, runs: Runs, shown: Sequence[Panel]) -> list[Text]:
    """Return one line per run: its name and, of several runs, the colour and symbol of its curves."""
    if len(runs) == 1:
        facts, _ = runs[0]
        title = plain(shortened(facts.name, max(8, console.width - 24)), "bold")
        title.append(f"  {facts.short_id}  {facts.status}", style="dim")
        return [title]
    lines = []
    canvas = Canvas.on(console, console.width, 10)
    for index, (facts, _) in enumerate(runs):
        symbol = "-"
        if shown and index < len(shown[0].lines):
            symbol = charts.symbol_of(shown[0], shown[0].lines[index], canvas).replace("braille", "━")
        scores = {"val": facts.val_accuracy, "test": facts.test_accuracy}
        parts = [facts.short_id] if console.width >= 60 else []
        rest = "  ".join([*parts, *(f"{value:.2%} {name}" for name, value in scores.items() if value is not None)])
        name = shortened(facts.name, max(8, console.width - len(rest) - 4))
        line = Text(f"{symbol} {name}", style=canvas.style_of(COLOURS[index % len(COLOURS)]))
        lines.append(line.append(f"  {rest}", style="dim" if canvas.colour else ""))
    return lines


def _grid(
    console: Console, shown: Sequence[Panel], width: int, room: int, *, single: bool
) -> tuple[RenderableType, Canvas]:
    """Return the charts in rows that fill ``room`` rows of text; 0 is no limit."""
    columns = charts_per_row(len(shown), width)
    rows = -(-len(shown) // columns)
    chart_width = (width - 2 * (columns - 1)) // columns
    wide = Canvas.on(console, chart_width, 10)
    headings = [charts.heading(panel, wide, with_legend=single) for panel in shown]
    height = max(_MIN_ROWS, min(_MAX_ROWS, room // rows - max(map(len, headings)))) if room else 14
    canvas = Canvas.on(console, chart_width, height)
    return charts.arrange(shown, canvas, columns, headings), canvas


def _progress(facts: RunFacts, history: History, width: int, *, named: bool) -> RenderableType:
    done, total = len(history.epochs), facts.epochs_wanted
    of = f"{done}/{total}" if total else f"{done}"
    left = _time_left(facts, history) if facts.status == "running" else facts.status
    label, note = (shortened(facts.name, 20), f"{of}, {left}".removesuffix(", ")) if named else (f"epoch {of}", left)
    return progress_bar(label, done, total or max(1, done), note, width)


def _time_left(facts: RunFacts, history: History) -> str:
    """Return the time left in the phase, estimated from its latest epochs; empty before the first one."""
    done, total = len(history.epochs), facts.epochs_wanted
    if not total or total <= done:
        return ""
    # Epochs of another phase may take a hundredth of the time.
    ends = [0, *(end for end in facts.phase_ends if end < total), total]
    start, end = max(end for end in ends if end <= done), min(end for end in ends if end > done)
    latest = [epoch.seconds for epoch in history.epochs[start:][-3:] if epoch.seconds is not None]
    return time_left(statistics.median(latest) * (end - done), is_last=end == total) if latest else ""


def _results(runs: Runs) -> list[Text]:
    """Return the results of a single run."""
    if len(runs) > 1:
        return []
    _, history = runs[0]
    lines = [Text(best, style="good")] if (best := best_line(history)) else []
    if history.test_accuracy is not None:
        lines.append(Text(f"test: {history.test_accuracy:.2%}"))
    return lines

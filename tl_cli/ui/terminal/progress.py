"""The progress of a run: a full screen in a terminal, one plain line per epoch anywhere else."""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.filesize import decimal
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tl_cli.evaluation.scores import EPOCH_SCORES, EpochEnded, Score
from tl_cli.io.download import Unit
from tl_cli.training.events import (
    Event,
    Noticed,
    PhaseStarted,
    StepEnded,
    StoppedEarly,
    Worked,
)
from tl_cli.training.history import History
from tl_cli.ui import panels
from tl_cli.ui.panels import Panel
from tl_cli.ui.terminal import charts
from tl_cli.ui.terminal.charts import Canvas
from tl_cli.ui.terminal.console import is_live, plain
from tl_cli.ui.terminal.screen import Display

Clock = Callable[[], float]
_REFRESH_PER_SECOND = 4
# Smaller drops of accuracy between two epochs are usual.
_DROP = 0.01
# Scores first, then rates and times; a longer number than the cell is rare.
_SHOWN = sorted(EPOCH_SCORES, key=lambda name: EPOCH_SCORES[name].better is None)
_CELL = 7
_PHASE_TITLES = {"head": "head only", "fine-tune": "fine-tuning"}


@dataclass(frozen=True, slots=True)
class Title:
    """What is running, for the top of the screen."""

    run_name: str
    machine: str
    epochs: int


class Screen(Protocol):
    """An observer with a lifetime."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def __call__(self, event: Event) -> None:
        """Show the event."""


def open_screen(console: Console, title: Title, history: History) -> Screen:
    """Return the live screen where the terminal can show one, else the plain lines."""
    return LiveScreen(console, title, history) if is_live(console) else PlainLines(console, title)


class PlainLines:
    """One line per epoch, for pipes, logs and dumb terminals; silent once the disk of the log is full."""

    def __init__(self, console: Console, title: Title) -> None:
        self._console = console
        self._title = title
        self._previous: EpochEnded | None = None
        self._is_full = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def __call__(self, event: Event) -> None:
        """Print one line if an epoch or a phase ends, training stops early, or there is a notice."""
        if isinstance(event, PhaseStarted):
            self._print(_phase_line(event))
        elif isinstance(event, EpochEnded):
            self._print(epoch_line(event, self._title.epochs, is_best=event.is_best))
            note = unfreezing_note(self._previous, event)
            if note is not None:
                self._print(note)
            self._previous = event
        elif isinstance(event, StoppedEarly):
            self._print(_stop_line(event))
        elif isinstance(event, Noticed):
            self._print(event.message)

    def _print(self, line: str) -> None:
        if self._is_full:
            return
        try:
            self._console.print(plain(line), soft_wrap=True)
        except OSError:  # a full disk of the log does not end the training
            self._is_full = True


class LiveScreen:
    """A full-screen display of the events so far, redrawn four times per second.

    It uses the terminal's alternate screen: resizing leaves nothing behind, and the previous content comes back.
    What libraries write to stderr in the meantime is printed afterwards.
    """

    def __init__(self, console: Console, title: Title, history: History, clock: Clock = time.monotonic) -> None:
        self._console = console
        self._title = title
        self._history = history
        self._clock = clock
        self._started = clock()
        self._phase: PhaseStarted | None = None
        self._phase_started = self._started
        self._phase_steps = 0
        self._epoch = 0
        self._images = 0
        self._step = 0
        self._epoch_ended_at_step = 0
        self._work: Worked | None = None
        self._speed = 0.0
        self._last_step_at = self._started
        self._notes: list[str] = []
        self._drawn: dict[str, tuple[object, list[Text], Text]] = {}
        self._live = Display(
            get_renderable=lambda: self,
            console=console,
            screen=True,
            auto_refresh=True,
            refresh_per_second=_REFRESH_PER_SECOND,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._stderr = _held_stderr()

    def __enter__(self) -> Self:
        with ExitStack() as opened:
            opened.enter_context(self._stderr)
            self._live.__enter__()
            opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._live.__exit__(kind, error, trace)
        finally:
            self._stderr.__exit__(None, None, None)
        with suppress(OSError):  # the terminal may be gone
            for note in self._notes:
                self._console.print(plain(note, "yellow"), soft_wrap=True)

    def __call__(self, event: Event) -> None:
        """Keep the event; the next refresh shows it."""
        now = self._clock()
        if isinstance(event, StepEnded):
            self._work = None
            self._step, self._epoch = event.step, event.epoch
            self._phase_steps += 1
            rate = event.images / max(1e-9, now - self._last_step_at)
            self._speed = rate if self._speed == 0 else 0.95 * self._speed + 0.05 * rate
            self._last_step_at = now
        elif isinstance(event, PhaseStarted):
            self._phase, self._phase_started, self._phase_steps = event, now, 0
            self._epoch_ended_at_step = max(event.step, event.ended)
            self._step = self._epoch_ended_at_step + event.into
            self._epoch = max(event.epochs[0], len(self._history.epochs) + 1)
            self._work, self._speed = None, 0.0
            self._last_step_at = now
        elif isinstance(event, Worked):
            self._work = event
            self._last_step_at = now
        elif isinstance(event, EpochEnded):
            self._work = None
            self._epoch_ended_at_step = event.step
            self._last_step_at = now
            note = unfreezing_note(*self._history.epochs[-2:]) if len(self._history.epochs) > 1 else None
            self._notes += [] if note is None else [note]
        elif isinstance(event, StoppedEarly):
            self._notes.append(_stop_line(event))
        elif isinstance(event, Noticed):
            self._notes.append(event.message)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Lay the screen out for the size that the terminal has now."""
        width, height = options.max_width, options.height or console.height
        top: list[Text | Table] = [self._headline(), *self._bars(width)]
        if self._phase is None:
            yield Group(*top)
            return
        foot = [self._best_line()]
        for note in self._notes[-2:]:
            foot += plain(note, "yellow").wrap(console, width)
        room = height - len(top) - 2 - len(foot)
        rows = max(1, min(8, room // 3))
        chart_height = room - rows - 2
        yield Group(*top, *self._charts(width, chart_height), self._table(rows, width), *foot)

    def _headline(self) -> Text:
        text = Text(no_wrap=True, overflow="ellipsis")
        text.append_text(plain(self._title.run_name, "bold"))
        text.append_text(plain(f"  {self._title.machine}", "dim"))
        return text

    def _bars(self, width: int) -> list[Table | Text]:
        phase = self._phase
        if phase is None:
            return [self._work_bar(width)]
        share = f"{phase.trainable:,} of {phase.trainable + phase.frozen:,} parameters train"
        what = Text(no_wrap=True, overflow="ellipsis")
        what.append(f"{_PHASE_TITLES[phase.name]}", style="bold mark")
        what.append(f"  {share}{'  cached features' if phase.cached else ''}", style="dim")
        if self._work is not None:
            current = self._work_bar(width)
        else:
            done = self._step - self._epoch_ended_at_step
            # The phase's last epoch may be cut short.
            rest = phase.step + phase.steps - self._epoch_ended_at_step
            current = bar(
                f"epoch {self._epoch}/{self._title.epochs}",
                done,
                max(1, min(phase.steps_per_epoch, rest)),
                f"{self._speed:,.0f} images/s",
                width,
            )
        whole = bar("run", len(self._history.epochs), self._title.epochs, self._eta(phase), width)
        return [what, current, whole]

    def _work_bar(self, width: int) -> Table:
        work = self._work or Worked("caching features", 0, 1)
        return bar(work.activity, work.done, work.total, f"{work.done:,}/{work.total:,}", width)

    def _eta(self, phase: PhaseStarted) -> str:
        if self._phase_steps < 3:
            return "estimating"
        first = phase.epochs[0] - 1
        # Steps in the complete epochs of this phase, and in the current one.
        taken = (len(self._history.epochs) - first) * phase.steps_per_epoch + self._step - self._epoch_ended_at_step
        left = phase.steps - taken
        elapsed = self._clock() - self._phase_started
        seconds = elapsed / self._phase_steps * max(0, left)
        return time_left(seconds, is_last=phase.epochs[1] == self._title.epochs)

    def _charts(self, width: int, height: int) -> list[Table | Text]:
        if height < 6:
            return []
        count = 3 if width >= 150 else 2 if width >= 72 else 1
        stacked = count == 1 and height >= 14
        each = height // 2 if stacked else height
        canvas = Canvas.on(self._console, (width - 2 * (count - 1)) // count, each - 1)
        shown = [self._chart(panels.loss_by_step, canvas)]
        if count == 3:
            shown.append(self._chart(panels.loss_by_epoch, canvas))
        if count > 1 or stacked:
            shown.append(self._chart(panels.accuracy_by_epoch, canvas))
        return [charts.arrange(shown, canvas.width, count)]

    def _chart(self, make: Callable[[Sequence[History]], Panel], canvas: Canvas) -> tuple[list[Text], Text]:
        """Return a panel with one line of title and legend, drawn again only if there are new points."""
        state = (canvas, len(self._history.losses), len(self._history.epochs))
        kept = self._drawn.get(make.__name__)
        if kept is not None and kept[0] == state:
            return kept[1], kept[2]
        panel = make([self._history])
        title, *_ = charts.heading(panel, canvas)
        drawn = charts.draw(panel, canvas)
        self._drawn[make.__name__] = (state, [title], drawn)
        return [title], drawn

    def _table(self, rows: int, width: int) -> Table | Text:
        epochs = self._history.epochs[-rows:]
        return epoch_table(epochs, self._history.best, width) if epochs else Text()

    def _best_line(self) -> Text:
        best = self._history.best
        if best is None or best.validation is None:
            return Text("no epoch has ended yet", style="dim")
        which = " (averaged weights)" if best.averaged else ""
        return Text(f"best: {best.validation[0]:.2%} on validation, epoch {best.epoch}{which}", style="good")


def epoch_table(epochs: Sequence[EpochEnded], best: EpochEnded | None, width: int) -> Table:
    """Return the epochs as a table that fits the width: the scores that were recorded, the lowest ranks first."""
    names = _columns(epochs, width)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("epoch", *(EPOCH_SCORES[name].heading for name in names)):
        table.add_column(heading, justify="right", no_wrap=True)
    for epoch in epochs:
        is_best = best is not None and epoch.epoch == best.epoch
        cells = [_cell(EPOCH_SCORES[name], getattr(epoch, name)) for name in names]
        table.add_row(f"{epoch.epoch}{'*' * is_best}", *cells, style="good" if is_best else "")
    return table


def _columns(epochs: Sequence[EpochEnded], width: int) -> list[str]:
    """Return the scores that were recorded and have room, by their fields."""
    recorded = [name for name in _SHOWN if any(getattr(epoch, name) is not None for epoch in epochs)]
    room = {name: 2 + max(len(EPOCH_SCORES[name].heading), _CELL) for name in recorded}
    shown: list[str] = []
    for rank in sorted({EPOCH_SCORES[name].rank for name in recorded}):
        fitting = [name for name in recorded if EPOCH_SCORES[name].rank <= rank]
        if len("epoch") + sum(room[name] for name in fitting) > width:
            break
        shown = fitting
    return shown


def _cell(score: Score, value: float | None) -> str:
    if value is None:
        return "-"
    if score.unit == "learning rate" and value == 0:
        return "frozen"
    return format_seconds(value) if score.unit == "s" else f"{value:{score.format}}"


def epoch_line(epoch: EpochEnded, epochs: int | None, *, is_best: bool) -> str:
    """Return an epoch as one plain line.

    Args:
        epochs: of the whole run; None if unknown.
    """
    parts = [f"epoch {epoch.epoch}/{epochs}" if epochs else f"epoch {epoch.epoch}"]
    for name in _SHOWN:
        score, value = EPOCH_SCORES[name], getattr(epoch, name)
        if score.in_line and value is not None:
            parts.append(f"{score.title} {score.text(value)}".strip())
    return "  ".join([*parts, *(["best"] if is_best else [])])


def unfreezing_note(before: EpochEnded | None, after: EpochEnded) -> str | None:
    """Return an explanation if validation accuracy fell from the last frozen epoch to the first unfrozen one."""
    if before is None or before.lr_backbone or not after.lr_backbone:
        return None
    if (before.val_accuracy or 0.0) - (after.val_accuracy or 0.0) <= _DROP:
        return None
    return (
        f"validation fell from {before.val_accuracy:.2%} to {after.val_accuracy:.2%} on unfreezing, as pretrained "
        "layers begin to change; it usually recovers within a few epochs; otherwise lower --unfreeze-lr"
    )


def epoch_range(first: int, last: int) -> str:
    """Return ``epochs 1-5``, or ``epoch 1``."""
    return f"epochs {first}-{last}" if last > first else f"epoch {first}"


def format_seconds(seconds: float) -> str:
    """Return a duration for people: ``48 s``, ``3:05``, ``2:10:00``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class FileProgress:
    """Work of some seconds, such as downloads and decoding: a bar in a terminal, nothing in a pipe."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Display(console=console, transient=True, refresh_per_second=_REFRESH_PER_SECOND)
        self._shown = is_live(console) and not console.quiet

    def __enter__(self) -> Self:
        if self._shown:
            self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shown:
            self._live.__exit__(kind, error, trace)

    def __call__(self, what: str, done: int, total: int | None, unit: Unit = "items") -> None:
        """Show how far a file or a pass over files is."""
        if self._shown:
            shown = decimal if unit == "bytes" else "{:,}".format
            amount = "/".join(shown(number) for number in (done, total) if number is not None)
            self._live.update(bar(what, done, total or done, amount, self._console.width))


def time_left(seconds: float, *, is_last: bool) -> str:
    """Return the time that is left in a phase; how long later phases take cannot be estimated during it."""
    return f"{format_seconds(seconds)} left" + ("" if is_last else " in this phase")


def bar(label: str, done: float, total: float, note: str, width: int) -> Table:
    """Return a progress bar with its label and a note, as wide as the terminal."""
    grid = Table.grid(padding=(0, 1), expand=False)
    label_width = min(30, max(12, width // 4))
    note_width = min(28, max(14, width // 4))
    bar_width = max(4, width - label_width - note_width - 4)
    grid.add_column(width=label_width, no_wrap=True, overflow="ellipsis")
    grid.add_column(width=bar_width)
    grid.add_column(width=note_width, no_wrap=True, overflow="ellipsis")
    bar = ProgressBar(total=max(total, 1), completed=min(done, max(total, 1)), width=bar_width)
    grid.add_row(plain(label), bar, plain(note, "dim"))
    return grid


def _phase_line(event: PhaseStarted) -> str:
    first, last = event.epochs
    features = "features kept from an earlier run" if event.reused else "features computed once"
    cached = f", on {features}" if event.cached else ""
    total = event.trainable + event.frozen
    counts = f"{event.trainable:,} of {total:,} parameters train"
    return f"{epoch_range(first, last)}: {_PHASE_TITLES[event.name]}, {counts}{cached}"


def _stop_line(event: StoppedEarly) -> str:
    return f"stopped after epoch {event.epoch}: no validation improvement for {event.patience} epochs"


@contextmanager
def _held_stderr() -> Iterator[None]:
    """Hold what Python and C libraries write to stderr, and print each line once when the block is left."""
    sys.stderr.flush()
    try:
        descriptor = sys.stderr.fileno()
    except (OSError, ValueError):
        yield
        return
    saved = os.dup(descriptor)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), descriptor)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(saved, descriptor)
            os.close(saved)
            held.seek(0)
            lines = dict.fromkeys(held.read().decode(errors="replace").splitlines())
            with suppress(OSError):  # the terminal may be gone
                sys.stderr.write("".join(f"{line}\n" for line in lines))

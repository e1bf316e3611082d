"""A run as it goes on: one calm screen in a terminal, one plain line an epoch anywhere else."""

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
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tl_cli.io.download import Unit
from tl_cli.training.events import (
    EpochEnded,
    Event,
    Noticed,
    PhaseStarted,
    StepEnded,
    StoppedEarly,
    Worked,
)
from tl_cli.training.history import EpochPoint, History, point_of
from tl_cli.ui import panels
from tl_cli.ui.panels import Panel
from tl_cli.ui.terminal import charts
from tl_cli.ui.terminal.charts import Canvas
from tl_cli.ui.terminal.console import is_live, plain
from tl_cli.ui.terminal.screen import Display

Clock = Callable[[], float]
_REFRESH_PER_SECOND = 4
# A smaller change between two epochs is usual.
_DROP = 0.01
_PHASE_TITLES = {"head": "head only", "fine-tune": "fine-tuning"}


@dataclass(frozen=True, slots=True)
class Title:
    """What is running: lines for the top of the screen."""

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
    """One line an epoch, for pipes, logs and dumb terminals; silent once there is no room for them any more."""

    def __init__(self, console: Console, title: Title) -> None:
        self._console = console
        self._title = title
        self._previous: EpochPoint | None = None
        self._is_full = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def __call__(self, event: Event) -> None:
        """Print the line of an ended epoch, of a new phase, of an early stop, or a notice."""
        if isinstance(event, PhaseStarted):
            self._print(_phase_line(event))
        elif isinstance(event, EpochEnded):
            point = point_of(event)
            self._print(epoch_line(point, self._title.epochs, is_best=event.is_best))
            note = unfreezing_note(self._previous, point)
            if note is not None:
                self._print(note)
            self._previous = point
        elif isinstance(event, StoppedEarly):
            self._print(_stop_line(event))
        elif isinstance(event, Noticed):
            self._print(event.message)

    def _print(self, line: str) -> None:
        if self._is_full:
            return
        try:
            self._console.print(plain(line), soft_wrap=True)
        except OSError:  # a training does not end because the disk of its log is full
            self._is_full = True


class LiveScreen:
    """A full-screen display that is redrawn four times a second from what it was told.

    It uses the terminal's alternate screen: a resize leaves nothing behind, and what was there before comes back.
    Whatever libraries write to stderr meanwhile is held and printed afterwards.
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
        """Take note; the next refresh shows it."""
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
        # Whole epochs of this phase are over, and some steps of the next.
        over = (len(self._history.epochs) - first) * phase.steps_per_epoch + self._step - self._epoch_ended_at_step
        left = phase.steps - over
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
        """Return a panel with one line of title and legend, drawn anew only where something has changed."""
        state = (canvas, len(self._history.losses), len(self._history.epochs))
        kept = self._drawn.get(make.__name__)
        if kept is not None and kept[0] == state:
            return kept[1], kept[2]
        panel = make([self._history])
        title, *_ = charts.heading(panel, canvas)
        drawn = charts.draw(panel, canvas)
        self._drawn[make.__name__] = (state, [title], drawn)
        return [title], drawn

    def _table(self, rows: int, width: int) -> Table:
        return epoch_table(self._history.epochs[-rows:], self._history.best, width)

    def _best_line(self) -> Text:
        best = self._history.best
        if best is None or best.judged is None:
            return Text("no epoch is over yet", style="dim")
        which = " (averaged weights)" if best.averaged else ""
        return Text(f"best: {best.judged[0]:.2%} on validation, epoch {best.epoch}{which}", style="good")


def epoch_table(points: list[EpochPoint], best: EpochPoint | None, width: int) -> Table:
    """Return the epochs as a table that fits the width."""
    wide, middle = width >= 72, width >= 52
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("epoch", "train loss", "val loss", "val acc"):
        table.add_column(heading if middle else heading.replace(" loss", "").replace("train", "loss"), justify="right")
    if middle:
        table.add_column("train acc", justify="right")
    averaged = middle and any(point.ema_val_accuracy is not None for point in points)
    if averaged:
        table.add_column("ema acc", justify="right")
    rates = width >= (84 if averaged else 72)
    if rates:
        table.add_column("lr", justify="right", no_wrap=True)
    if wide:
        table.add_column("time", justify="right")
    for point in points:
        is_best = best is not None and point.epoch == best.epoch
        cells = [
            f"{point.epoch}{'*' if is_best else ''}",
            _number(point.train_loss),
            _number(point.val_loss),
            _share(point.val_accuracy),
        ]
        if middle:
            cells.append(_share(point.train_accuracy))
        if averaged:
            cells.append(_share(point.ema_val_accuracy))
        if rates:
            cells.append(" / ".join(_rate(rate) for rate in (point.lr_head, point.lr_backbone)))
        if wide:
            cells.append("-" if point.seconds is None else format_seconds(point.seconds))
        table.add_row(*cells, style="good" if is_best else "")
    return table


def epoch_line(point: EpochPoint, epochs: int | None, *, is_best: bool) -> str:
    """Return an epoch as one plain line."""
    parts = [f"epoch {point.epoch}/{epochs}" if epochs else f"epoch {point.epoch}"]
    for name, value, shown in (
        ("loss", point.train_loss, "{:.4f}"),
        ("val loss", point.val_loss, "{:.4f}"),
        ("val accuracy", point.val_accuracy, "{:.2%}"),
        ("averaged", point.ema_val_accuracy, "{:.2%}"),
        ("", point.images_per_second, "{:,.0f} images/s"),
        ("", point.seconds, "{:.1f} s"),
    ):
        if value is not None:
            parts.append(f"{name} {shown.format(value)}".strip())
    return "  ".join([*parts, *(["best"] if is_best else [])])


def unfreezing_note(before: EpochPoint | None, after: EpochPoint) -> str | None:
    """Return why validation accuracy fell from the last frozen epoch to the first one of more layers, if it fell."""
    if before is None or before.lr_backbone or not after.lr_backbone:
        return None
    if (before.val_accuracy or 0.0) - (after.val_accuracy or 0.0) <= _DROP:
        return None
    return (
        f"validation fell from {before.val_accuracy:.2%} to {after.val_accuracy:.2%} on unfreezing, as pretrained "
        "layers begin to change; it usually recovers within a few epochs, else lower --unfreeze-lr"
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
    """Downloads and decoding, before the run begins: a bar in a terminal, nothing in a pipe."""

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
            counted = f"{done:,}" if total is None else f"{done:,}/{total:,}"
            amount = f"{done / 1e6:,.1f} MB" if unit == "bytes" else counted
            self._live.update(bar(what, done, total or done, amount, self._console.width))


def time_left(seconds: float, *, is_last: bool) -> str:
    """Return how long a phase still takes; how long the phases after it take is not known while it goes on."""
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
    features = "features kept from an earlier run" if event.found else "features computed once"
    cached = f", on {features}" if event.cached else ""
    total = event.trainable + event.frozen
    counts = f"{event.trainable:,} of {total:,} parameters train"
    return f"{epoch_range(first, last)}: {_PHASE_TITLES[event.name]}, {counts}{cached}"


def _stop_line(event: StoppedEarly) -> str:
    return f"stopped after epoch {event.epoch}: validation has not become better for {event.patience} epochs"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _rate(value: float | None) -> str:
    if value is None:
        return "-"
    return "frozen" if value == 0 else f"{value:.1e}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"


@contextmanager
def _held_stderr() -> Iterator[None]:
    """Keep what anything (C libraries too) writes to stderr, and print it when the block is left."""
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

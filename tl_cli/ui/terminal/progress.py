"""The progress of a training: a full screen in a terminal, one plain line per epoch anywhere else."""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from tl_cli.training.events import (
    EpochEnded,
    Event,
    LossSampled,
    Noticed,
    Observer,
    PhaseStarted,
    StepEnded,
    StoppedEarly,
    Worked,
)
from tl_cli.training.history import History
from tl_cli.ui import panels
from tl_cli.ui.terminal import charts
from tl_cli.ui.terminal.charts import Canvas
from tl_cli.ui.terminal.console import is_live, plain
from tl_cli.ui.terminal.epochs import best_line, epoch_line, epoch_table, unfreezing_note
from tl_cli.ui.terminal.formats import epoch_range, time_left
from tl_cli.ui.terminal.layout import charts_per_row, progress_bar
from tl_cli.ui.terminal.screen import full_screen

_PHASE_TITLES = {"head": "head only", "fine-tune": "fine-tuning"}


@dataclass(frozen=True, slots=True)
class Title:
    """The run and the machine, for the top of the screen."""

    run_name: str
    machine: str
    epochs: int


def open_screen(console: Console, title: Title, history: History) -> AbstractContextManager[Observer]:
    """Return the live screen where the terminal can show one, else the plain lines.

    Args:
        history: must receive each event before the screen does.
    """
    if is_live(console):
        return LiveScreen(console, title, history)
    return nullcontext(PlainLines(console, title, history))


def _note(event: Event, history: History) -> str | None:
    """Return the message that both displays show of an event, if there is one."""
    if isinstance(event, EpochEnded):
        return unfreezing_note(history.epochs)
    if isinstance(event, StoppedEarly):
        return f"stopped after epoch {event.epoch}: no validation improvement for {event.patience} epochs"
    return event.message if isinstance(event, Noticed) else None


class PlainLines:
    """One line per epoch, for pipes, logs and dumb terminals; silent once the disk of the log is full."""

    def __init__(self, console: Console, title: Title, history: History) -> None:
        self._console = console
        self._title = title
        self._history = history
        self._is_full = False

    def __call__(self, event: Event) -> None:
        """Print one line if an epoch or a phase ends, training stops early, or there is a notice."""
        if isinstance(event, PhaseStarted):
            self._print(_phase_line(event))
        elif isinstance(event, EpochEnded):
            self._print(epoch_line(event, self._title.epochs, is_best=event.is_best and self._history.keep == "best"))
        if note := _note(event, self._history):
            self._print(note)

    def _print(self, line: str) -> None:
        if self._is_full:
            return
        try:
            self._console.print(plain(line), soft_wrap=True)
        except OSError:  # a full disk of the log does not end the training
            self._is_full = True


class LiveScreen:
    """A full-screen display of the events so far, redrawn four times per second.

    What libraries write to stderr in the meantime is printed afterwards.
    """

    def __init__(
        self, console: Console, title: Title, history: History, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console = console
        self._title = title
        self._history = history
        self._clock = clock
        self._phase: PhaseStarted | None = None
        self._phase_started = self._last_step_at = clock()
        self._phase_steps = 0
        self._epoch = 0
        self._step = 0
        self._epoch_ended_at_step = 0
        self._work: Worked | None = None
        self._speed = 0.0
        self._notes: list[str] = []
        self._drawn: tuple[object, list[Table]] = (None, [])
        self._live = full_screen(console, self)
        self._stderr = _hold_stderr()

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
            self._step, self._epoch = event.step, event.epoch
            self._phase_steps += 1
            rate = event.images / max(1e-9, now - self._last_step_at)
            self._speed = rate if self._speed == 0 else 0.95 * self._speed + 0.05 * rate
        elif isinstance(event, PhaseStarted):
            self._phase, self._phase_started, self._phase_steps, self._speed = event, now, 0, 0.0
            self._epoch_ended_at_step = max(event.step, event.ended)
            self._step = self._epoch_ended_at_step + event.into
            self._epoch = max(event.epochs[0], len(self._history.epochs) + 1)
        elif isinstance(event, EpochEnded):
            self._epoch_ended_at_step = event.step
        if not isinstance(event, LossSampled | Noticed | StoppedEarly):
            self._work = event if isinstance(event, Worked) else None
            self._last_step_at = now
        if note := _note(event, self._history):
            self._notes.append(note)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Lay the screen out for the size that the terminal has now."""
        width, height = options.max_width, options.height or console.height
        title = plain(self._title.run_name, "bold").append_text(plain(f"  {self._title.machine}", "dim"))
        top: list[RenderableType] = [_in_one_line(title), *self._bars(width)]
        if self._phase is None:
            yield Group(*top)
            return
        foot = [Text(best, "good") if (best := best_line(self._history)) else Text("no epoch has ended yet", "dim")]
        for note in self._notes[-2:]:
            foot += plain(note, "yellow").wrap(console, width)
        room = height - len(top) - 2 - len(foot)
        rows = max(1, min(8, room // 3))
        epochs = self._history.epochs[-rows:]
        table = epoch_table(epochs, self._history.best, width) if epochs else Text()
        yield Group(*top, *self._charts(width, room - rows - 2), table, *foot)

    def _bars(self, width: int) -> list[RenderableType]:
        phase, done = self._phase, self._step - self._epoch_ended_at_step
        if self._work is not None or phase is None:
            work = self._work or Worked("caching features", 0, 1)
            current = progress_bar(work.activity, work.done, work.total, f"{work.done:,}/{work.total:,}", width)
        else:
            # The phase's last epoch may be cut short.
            steps = max(1, min(phase.steps_per_epoch, phase.step + phase.steps - self._epoch_ended_at_step))
            label = f"epoch {self._epoch}/{self._title.epochs}"
            current = progress_bar(label, done, steps, f"{self._speed:,.0f} images/s", width)
        if phase is None:
            return [current]
        title = Text(_PHASE_TITLES[phase.name], "bold mark")
        title.append(f"  {_trainable(phase)}{'  cached features' if phase.cached else ''}", "dim")
        whole = progress_bar("run", len(self._history.epochs), self._title.epochs, self._time_left(phase), width)
        return [_in_one_line(title), current, whole]

    def _time_left(self, phase: PhaseStarted) -> str:
        if self._phase_steps < 3:
            return "estimating"
        # Steps in the complete epochs of this phase, and in the current one.
        complete = len(self._history.epochs) - phase.epochs[0] + 1
        taken = complete * phase.steps_per_epoch + self._step - self._epoch_ended_at_step
        per_step = (self._clock() - self._phase_started) / self._phase_steps
        return time_left(per_step * max(0, phase.steps - taken), is_last=phase.epochs[1] == self._title.epochs)

    def _charts(self, width: int, height: int) -> list[Table]:
        """Return the charts, one line of title and legend above each; drawn again only if there are new points."""
        state = (width, height, len(self._history.losses), len(self._history.epochs))
        if self._drawn[0] != state:
            self._drawn = (state, self._draw_charts(width, height) if height >= 6 else [])
        return self._drawn[1]

    def _draw_charts(self, width: int, height: int) -> list[Table]:
        columns = charts_per_row(3, width)
        is_stacked = columns == 1 and height >= 14
        makers = [panels.loss_by_step]
        makers += [panels.loss_by_epoch] if columns == 3 else []
        makers += [panels.accuracy_by_epoch] if columns > 1 or is_stacked else []
        rows = height // 2 if is_stacked else height
        canvas = Canvas.on(self._console, (width - 2 * (columns - 1)) // columns, rows - 1)
        shown = [make([self._history]) for make in makers]
        return [charts.arrange(shown, canvas, columns, [charts.heading(panel, canvas)[:1] for panel in shown])]


def _in_one_line(text: Text) -> Text:
    text.no_wrap, text.overflow = True, "ellipsis"
    return text


def _trainable(phase: PhaseStarted) -> str:
    return f"{phase.trainable:,} of {phase.trainable + phase.frozen:,} parameters train"


def _phase_line(event: PhaseStarted) -> str:
    features = "features kept from an earlier run" if event.reused else "features computed once"
    cached = f", on {features}" if event.cached else ""
    return f"{epoch_range(*event.epochs)}: {_PHASE_TITLES[event.name]}, {_trainable(event)}{cached}"


@contextmanager
def _hold_stderr() -> Iterator[None]:
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

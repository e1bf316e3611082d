"""Consoles with captured output."""

import io

from rich.console import Console
from rich.text import Text

from tl_cli.training.events import EpochEnded, Event, LossSampled, PhaseStarted, StepEnded, Worked
from tl_cli.ui.terminal.console import THEME

HOSTILE = "[red]\x1b[31mb\u202ed"


def make_screen(width: int, height: int = 40, *, colour: bool = False, encoding: str = "utf-8") -> Console:
    """Return a console that writes to memory; a character that its encoding lacks is an error."""
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict", newline="")
    system = "truecolor" if colour else None
    return Console(
        theme=THEME, width=width, height=height, file=file, force_terminal=colour, color_system=system, highlight=False
    )


def printed(screen: Console) -> str:
    """Return what was printed, with escape codes."""
    screen.file.flush()
    return screen.file.buffer.getvalue().decode(screen.file.encoding)  # type: ignore[attr-defined]


def shown(screen: Console) -> str:
    """Return what was printed, without escape codes."""
    return Text.from_ansi(printed(screen)).plain


def two_phase_events() -> list[Event]:
    """Return the events of two phases of two epochs of ten steps."""
    events: list[Event] = []
    for name, first in (("head", 1), ("fine-tune", 3)):
        trainable = 12_810 if name == "head" else 4_020_358
        events.append(Worked("caching features", 50, 100))
        events.append(
            PhaseStarted(
                name, (first, first + 1), 10, 20, (first - 1) * 10, trainable, 4_020_358 - trainable, name == "head"
            )
        )
        for epoch in (first, first + 1):
            for step in range(1, 11):
                number = (epoch - 1) * 10 + step
                events.append(LossSampled(number, epoch, 2 / number, 1e-3, 0.0 if name == "head" else 1e-4))
                events.append(StepEnded(number, epoch, 64))
            accuracy = 0.5 + epoch / 10
            events.append(EpochEnded(epoch, epoch * 10, 1 / epoch, accuracy, 1.1 / epoch, accuracy - 0.05, 1e-3,
                                     0.0 if name == "head" else 1e-4, 12.5, images_per_second=640.0,
                                     is_best=True))  # fmt: skip
    return events


class Terminal(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self) -> bool:
        return True

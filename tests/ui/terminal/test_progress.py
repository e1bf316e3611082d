import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from rich.text import Text

from tests.support.screens import two_phase_events
from tl_cli.training.events import EpochEnded, Event, StepEnded, StoppedEarly
from tl_cli.training.history import History
from tl_cli.ui.terminal.console import THEME, make_console
from tl_cli.ui.terminal.progress import (
    LiveScreen,
    PlainLines,
    Title,
    open_screen,
)

TITLE = Title("digits [/] run\x1b[31m", "CPU, 2 threads, fp32", 4)


def screen(width: int, height: int, upto: int, **options: object) -> str:
    console = Console(theme=THEME, file=io.StringIO(), width=width, height=height, force_terminal=True, **options)
    history = History(TITLE.run_name)
    times = iter(range(10_000))
    live = LiveScreen(console, TITLE, history, clock=lambda: float(next(times)))
    for event in two_phase_events()[:upto]:
        history(event)
        live(event)
    console.print(live)
    return Text.from_ansi(console.file.getvalue()).plain


@pytest.mark.parametrize(("width", "height"), [(40, 24), (80, 24), (200, 50), (24, 10), (80, 8)])
@pytest.mark.parametrize("upto", [0, 1, 2, 5, 23, 40, len(two_phase_events())])
def test_the_screen_fits_at_every_size_and_moment(width: int, height: int, upto: int) -> None:
    lines = screen(width, height, upto).rstrip("\n").splitlines()
    assert max((len(line) for line in lines), default=0) <= width
    if height >= 20:
        assert len(lines) <= height


def test_the_screen_shows_the_phase_its_progress_and_the_best_epoch() -> None:
    text = screen(120, 40, len(two_phase_events()) - 2)
    for expected in ("fine-tuning", "4,020,358 of 4,020,358 parameters train", "epoch 4/4", "images/s", "left",
                 "best: 75.00% on validation, epoch 3", "validation", "frozen"):  # fmt: skip
        assert expected in text
    assert "\x1b" not in text.replace("\\x1b", "")
    assert "digits [/] run\\x1b[31m" in text


def test_the_bars_are_correct_in_the_second_phase() -> None:
    events = two_phase_events()
    end = next(i for i, event in enumerate(events) if isinstance(event, StepEnded) and event.step == 25)
    text = screen(100, 30, end + 1)
    assert "epoch 3/4" in text
    assert "this phase" not in text


def test_ascii_terminals_get_ascii() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    console = Console(theme=THEME, file=stream, width=80, height=30, force_terminal=True, no_color=True)
    history = History("run")
    live = LiveScreen(console, Title("run", "CPU", 4), history)
    for event in two_phase_events():
        history(event)
        live(event)
    console.print(live)
    stream.flush()
    assert stream.buffer.getvalue()


def test_a_pipe_gets_one_plain_line_per_epoch() -> None:
    console = Console(theme=THEME, file=io.StringIO(), width=80)
    with open_screen(console, TITLE, History()) as lines:
        assert isinstance(lines, PlainLines)
        for event in two_phase_events():
            lines(event)
        lines(StoppedEarly(4, 2))
    printed = console.file.getvalue().splitlines()
    assert len(printed) == 2 + 4 + 1
    assert "epoch 3/4" in printed[4]
    assert "val accuracy 75.00%" in printed[4]
    assert "\x1b" not in console.file.getvalue()


def test_a_closed_pipe_does_not_end_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    pipe = os.fdopen(writer, "w")
    monkeypatch.setattr(sys, "stdout", pipe)
    with open_screen(make_console(), TITLE, History()) as lines:
        for event in two_phase_events():
            lines(event)
    with pytest.raises(BrokenPipeError):
        pipe.close()


def events_with_accuracy(accuracy: float) -> list[Event]:
    """Return the events with this validation accuracy in epoch 3, the first one after unfreezing; it was 0.65 before."""
    return [
        replace(event, val_accuracy=accuracy) if isinstance(event, EpochEnded) and event.epoch == 3 else event
        for event in two_phase_events()
    ]


@pytest.mark.parametrize(("accuracy", "explained"), [(0.25, 1), (0.645, 0), (0.75, 0)])
def test_a_fall_of_accuracy_on_unfreezing_is_explained_once(accuracy: float, explained: int) -> None:
    console, history = Console(theme=THEME, file=io.StringIO(), width=80), History()
    lines = PlainLines(console, TITLE, history)
    for event in events_with_accuracy(accuracy):
        history(event)
        lines(event)
    output = console.file.getvalue()
    assert output.count("on unfreezing") == explained
    assert output.count("validation fell from 65.00% to 25.00%") == explained
    history = History()
    live = LiveScreen(Console(theme=THEME, file=io.StringIO(), width=40, height=30), TITLE, history)
    for event in events_with_accuracy(accuracy):
        history(event)
        live(event)
    live._console.print(live)
    shown = live._console.file.getvalue()
    assert ("validation fell from 65.00% to 25.00%" in shown) is bool(explained)
    assert len(shown.splitlines()) <= 30
    assert max(map(len, shown.splitlines())) <= 40


def test_quiet_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with open_screen(make_console(quiet=True), TITLE, History()) as lines:
        for event in two_phase_events():
            lines(event)
    assert capsys.readouterr().out == ""


@contextmanager
def one_stream(path: Path) -> Iterator[None]:
    """Redirect stdout and stderr of Python and C libraries to one file, in order, as a terminal shows them."""
    kept = {descriptor: os.dup(descriptor) for descriptor in (1, 2)}
    try:
        with path.open("ab") as stream:
            for descriptor in kept:
                os.dup2(stream.fileno(), descriptor)
        out, err = (os.fdopen(descriptor, "w", closefd=False) for descriptor in kept)
        with out, err, redirect_stdout(out), redirect_stderr(err):
            yield
    finally:
        for descriptor, saved in kept.items():
            os.dup2(saved, descriptor)
            os.close(saved)


def test_stderr_of_libraries_is_printed_at_the_end(tmp_path: Path) -> None:
    with one_stream(tmp_path / "stream"):
        console = Console(force_terminal=True, width=80, height=24)
        with LiveScreen(console, TITLE, History()):
            for _ in range(3):
                sys.stderr.write("a library's warning\n")
            os.write(2, b"from C\n")
            sys.stderr.flush()
            console.file.flush()
            os.write(1, b"INSIDE")
        os.write(1, b"AFTER")
    inside, _, after = (tmp_path / "stream").read_text().partition("INSIDE")
    assert "warning" not in inside
    assert "from C" not in inside
    assert after.count("a library's warning") == 1
    assert "from C" in after

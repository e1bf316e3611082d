import io
import re
from dataclasses import replace

import pytest
from rich.console import Console
from rich.text import Text

from tests.support.histories import FACTS, HOSTILE, history
from tl_cli.api.run_curves import CurvesResult
from tl_cli.training.history import History
from tl_cli.ui.panels import PanelOptions
from tl_cli.ui.terminal.console import THEME
from tl_cli.ui.terminal.curve_view import FollowLines, FollowScreen, open_follower, print_curves


def shown(count: int = 1, **options: object):
    return [
        (replace(FACTS, run_id=f"{number}" * 32, name=f"{HOSTILE} {number}"), history(name=f"{HOSTILE} {number}", **options))
        for number in range(count)
    ]  # fmt: skip


def console(width: int, height: int = 40, *, terminal: bool = True) -> Console:
    file = io.StringIO()
    file.isatty = lambda: terminal  # type: ignore[method-assign]
    return Console(theme=THEME, file=file, width=width, height=height, force_terminal=terminal)


def text_of(screen: Console) -> str:
    return Text.from_ansi(screen.file.getvalue()).plain


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200, 250])
@pytest.mark.parametrize("count", [1, 3, 9])
def test_curves_fit_every_width(width: int, count: int) -> None:
    screen = console(width)
    print_curves(screen, shown(count), PanelOptions())
    lines = text_of(screen).splitlines()
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert "learning rate" in text
    assert "backbone unfrozen after epoch 5" in text
    assert ("best epoch" in text) == (count > 1)


def test_a_pipe_gets_no_escape_codes_and_an_escape_in_a_name_never_passes() -> None:
    pipe = console(80, terminal=False)
    print_curves(pipe, shown(2), PanelOptions())
    assert "\x1b" not in pipe.file.getvalue()
    screen = console(80)
    print_curves(screen, shown(1), PanelOptions())
    assert "\x1b[31m" not in screen.file.getvalue()
    assert r"\x1b[31m" in text_of(screen)


def test_on_a_terminal_the_panels_fit_the_screen() -> None:
    for height in (24, 40, 50):
        screen = console(120, height)
        print_curves(screen, shown(1), PanelOptions())
        assert len(text_of(screen).splitlines()) <= max(height, 29)


def test_a_run_without_points_is_labelled() -> None:
    screen = console(80)
    print_curves(screen, [(FACTS, History("empty"))], PanelOptions())
    assert "no points yet" in text_of(screen)


@pytest.mark.parametrize(("width", "height"), [(40, 24), (45, 30), (80, 24), (100, 40), (200, 50), (24, 10)])
@pytest.mark.parametrize("epochs", [0, 1, 10])
@pytest.mark.parametrize("count", [1, 2])
def test_the_screen_of_a_followed_run_fits_and_ends_with_its_footer(
    width: int, height: int, epochs: int, count: int
) -> None:
    screen = console(width, height)
    follower = FollowScreen(screen, PanelOptions())
    follower.curves(CurvesResult(shown(count, epochs=epochs)), "the server does not answer; trying again")
    screen.print(follower, height=height)
    lines = text_of(screen).rstrip("\n").splitlines()
    assert max(map(len, lines)) <= width
    if height >= 24:
        assert len([line for line in lines if line.strip()]) <= height
        assert any("Ctrl-C leaves" in line for line in lines)
        assert any("does not answer" in line for line in lines)
        if epochs == 10 and count == 1:
            assert any(line.strip().startswith("10*") for line in lines), "the latest epoch is in the table"


def test_a_followed_run_shows_its_progress() -> None:
    screen = console(100)
    follower = FollowScreen(screen, PanelOptions())
    one = history()
    one.epochs = [replace(point, seconds=30.0) for point in one.epochs]
    follower.curves(CurvesResult([(FACTS, one)]))
    screen.print(follower)
    assert re.search(r"epoch 10/12 .* 1:00 left\s", text_of(screen))


@pytest.mark.parametrize(
    ("done", "left"),
    [
        (0, "epoch 0/12 "),  # no epoch has ended yet
        (2, "6.0 s left in this phase"),  # three epochs of the head, two seconds each
        (5, "epoch 5/12 "),  # the head's epochs do not predict the time of fine-tuning
        (6, "1:00 left in this phase"),  # two more of the first stage, 30 seconds each
        (9, "2:30 left "),  # three more of the second, 50 seconds each
    ],
)
def test_the_time_left_follows_from_the_epochs_of_the_phase(done: int, left: str) -> None:
    seconds = [2.0] * 5 + [30.0] * 3 + [50.0] * 4
    facts = replace(FACTS, phase_ends=(5, 8, 12))
    one = history(epochs=12)
    one.epochs = [replace(point, seconds=each) for point, each in zip(one.epochs, seconds, strict=True)][:done]
    screen = console(120)
    follower = FollowScreen(screen, PanelOptions())
    follower.curves(CurvesResult([(facts, one)]))
    screen.print(follower)
    (line,) = [line for line in text_of(screen).splitlines() if line.startswith(f"epoch {done}/12")]
    assert left in line
    assert ("left" in line) == ("left" in left)


def test_each_line_of_a_followed_run_is_printed_once() -> None:
    pipe = console(80, terminal=False)
    assert isinstance(open_follower(pipe, PanelOptions()), FollowLines)
    follower = FollowLines(pipe, PanelOptions())
    with follower.screen:
        for epochs in (0, 2, 2, 3):
            follower.curves(CurvesResult([(FACTS, history(epochs=epochs))]))
        follower.curves(CurvesResult([(FACTS, history(epochs=3))]), "away")
        follower.curves(CurvesResult([(FACTS, history(epochs=3))]), "away")
    lines = pipe.file.getvalue().splitlines()
    assert [line.split("  ")[0] for line in lines] == ["epoch 1/12", "epoch 2/12", "epoch 3/12", "away"]
    assert all(line.endswith("best") for line in lines[:3])


def test_other_metrics_are_followed_too() -> None:
    pipe, screen = console(80, terminal=False), console(80, 30)
    lines, whole = FollowLines(pipe, PanelOptions()), FollowScreen(screen, PanelOptions())
    for values in ([1.0], [1.0, 700.0], [1.0, 700.0]):
        one = History("x", others={"m": list(enumerate(values, 1))})
        for follower in (lines, whole):
            follower.curves(CurvesResult([(FACTS, one)], ("m",)))
        screen.file.truncate(0)
        screen.print(whole)
    assert pipe.file.getvalue().splitlines() == ["step 1  m 1", "step 2  m 700"]
    assert "600" in text_of(screen)

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.histories import history
from tl_cli.evaluation.scores import EpochEnded
from tl_cli.training.history import History
from tl_cli.ui.panels import Line, Mark, Panel, accuracy_by_epoch, loss_by_epoch, loss_by_step, panels, rates_by_epoch
from tl_cli.ui.terminal.charts import Canvas, draw, heading, legend, symbol_of, ticks

NUMBERS = st.one_of(st.floats(), st.sampled_from([math.nan, math.inf, -math.inf, 1e308, -1e308, 5e-324, 0.0]))
CHARTS = [loss_by_step, accuracy_by_epoch, loss_by_epoch, rates_by_epoch]
GREY = Canvas(60, 12, colour=False)


def chart(points: list[tuple[float, float]], canvas: Canvas = GREY, **options: object) -> str:
    return draw(Panel("x", [Line(points, "blue")], **options), canvas).plain  # type: ignore[arg-type]


@given(st.lists(st.tuples(NUMBERS, NUMBERS), max_size=6).map(lambda points: sorted(points, key=str)), st.booleans())
def test_no_series_breaks_the_drawing(points: list[tuple[float, float]], log: bool) -> None:
    lines = chart(points, Canvas(40, 8), log=log, marks=[Mark(1.0), Mark(math.nan)]).splitlines()
    assert all(len(line) <= 40 for line in lines)


@pytest.mark.parametrize(
    "points",
    [
        [(1.0, 2.0)],
        [(1.0, 2.0), (1.0, 3.0)],
        [(float(x), 5.0) for x in range(9)],
        [(float(x), 0.0) for x in range(9)],
        [(1.0, -1e289), (2.0, 1e289)],
        [(1.0, 5e-324), (2.0, 0.0)],
        [(1.0, 1.0), (2.0, math.nan), (3.0, 1.0)],
        [(1.0, 1.0), (2.0, math.inf), (3.0, -math.inf)],
        [(1e15, 1.0), (1e15 + 1, 2.0)],
    ],
    ids=["one", "one place", "constant", "zero", "huge", "tiny", "nan", "inf", "far"],
)
def test_a_degenerate_series_is_a_chart_of_the_full_size(points: list[tuple[float, float]]) -> None:
    lines = chart(points).splitlines()
    assert {len(line) for line in lines} == {60}
    assert len(lines) == 12
    assert any(0x2800 < ord(letter) <= 0x28FF for line in lines for letter in line), "nothing is drawn"


@pytest.mark.parametrize("points", [[], [(1.0, math.nan)], [(1.0, math.inf)]])
def test_a_panel_without_points_is_labelled(points: list[tuple[float, float]]) -> None:
    assert chart(points) == "no points yet"


@pytest.mark.parametrize("width", [36, 76, 120, 200, 250])
@pytest.mark.parametrize("make", CHARTS)
def test_a_chart_has_the_size_of_its_canvas(width: int, make) -> None:
    for several in ([history()], [history(), history(name="other")]):
        lines = draw(make(several), Canvas(width, 12)).plain.splitlines()
        assert len(lines) == 12
        assert {len(line) for line in lines} == {width}


def test_ascii_is_ascii_and_colourless_has_no_colour() -> None:
    panel = accuracy_by_epoch([history()])
    text = draw(panel, Canvas(60, 12, colour=False, ascii=True))
    assert text.plain.isascii()
    assert not text.spans
    assert all(line.plain.isascii() for line in heading(panel, Canvas(60, 12, colour=False, ascii=True)))
    coloured = draw(panel, Canvas(60, 12))
    assert len({str(span.style) for span in coloured.spans}) >= 3


@pytest.mark.parametrize("canvas", [GREY, Canvas(60, 12, colour=False, ascii=True)])
def test_without_colour_every_line_has_its_own_symbol_in_the_legend(canvas: Canvas) -> None:
    for panel in (*panels([history()]), *panels([history(name=name) for name in "abcdefghijklmnop"])):
        lines = [line for line in panel.lines if line.kind != "samples" and (line.kind == "line" or line.label)]
        symbols = [symbol_of(panel, line, canvas) for line in lines]
        assert len(set(symbols)) == len(symbols), panel.title
        legend_symbols = [entry.plain.split(" ")[0] for entry in legend(panel, canvas)]
        assert len(set(legend_symbols)) == len(legend_symbols)


def test_more_runs_than_colours_have_different_symbols() -> None:
    canvas = Canvas(60, 12)
    panel = loss_by_epoch([history(name=f"run {number}") for number in range(20)])
    lines = [line for line in panel.lines if line.kind == "line"]
    assert len({(line.colour, symbol_of(panel, line, canvas)) for line in lines}) == 20


def test_a_legend_is_above_the_chart_in_as_many_lines_as_it_needs() -> None:
    panel = accuracy_by_epoch([history()])
    for width in (20, 40, 100):
        lines = [line.plain for line in heading(panel, Canvas(width, 12))]
        assert all(len(line) <= width for line in lines)
        text = "\n".join(lines)
        for expected in ("accuracy", "train", "validation", "best, epoch 10", "test"):
            assert expected in text
    assert "validation" not in draw(panel, GREY).plain


def test_the_unfreezing_is_marked_where_it_happened() -> None:
    canvas = Canvas(60, 12, colour=False, ascii=True)
    lines = draw(accuracy_by_epoch([history()]), canvas).plain.splitlines()
    columns = [line.index(":") for line in lines if ":" in line]
    assert len(columns) > 4
    assert 28 <= columns[0] <= 40
    without = History("x", [], [EpochEnded(1, 5, 1, 0.5, 1, 0.5, 1e-3, 0.0)])
    assert ":" not in draw(accuracy_by_epoch([without]), canvas).plain


def test_a_spike_is_kept_when_points_are_thinned() -> None:
    points = [(float(x), 0.0) for x in range(100_000)]
    points[54_321] = (54_321.0, 7.0)
    drawn = draw(Panel("x", [Line(points, "blue", "samples")]), Canvas(60, 10, colour=False)).plain.splitlines()
    assert any(mark in drawn[1] for mark in "⠁⠂⠄⠈⠐⠠⡀⢀")


@pytest.mark.parametrize("height", [4, 5, 6, 8])
@pytest.mark.parametrize(("low", "high"), [(0.85, 1.12), (0.88, 1.1), (0.0, 0.9), (1.99, 2.31)])
def test_no_label_is_written_over_another(low: float, high: float, height: int) -> None:
    lines = chart([(float(x), low + (high - low) * x / 9) for x in range(10)], Canvas(40, height, colour=False))
    labels = [float(line.split("┤")[0]) for line in lines.splitlines() if "┤" in line]
    assert labels == sorted(labels, reverse=True)
    assert all(low - 1e-9 <= label <= high + 1e-9 for label in labels), lines


def test_a_logarithmic_axis_is_labelled_with_round_numbers() -> None:
    powers = chart([(0.0, 1e-4), (1.0, 10.0)], log=True)
    assert {"0.001", "0.01", "0.1", "1"} <= set(powers.replace("┤", " ").split())
    within_one_decade = chart([(0.0, 0.2), (1.0, 0.9)], log=True)
    assert {"0.2", "0.4", "0.6", "0.8"} <= set(within_one_decade.replace("┤", " ").split())
    # Halfway between 1 and 100 is 10.
    middle = chart([(0.0, 1.0), (0.5, 10.0), (1.0, 100.0)], log=True).splitlines()
    assert 4 <= next(row for row, line in enumerate(middle) if line.strip().startswith("10┤")) <= 6


@pytest.mark.parametrize(("low", "high"), [(0, 1), (3, 3000), (-1e-5, 2e-5), (0.97, 0.99), (7, 7)])
def test_ticks_are_round_and_within(low: float, high: float) -> None:
    marks = ticks(low, high, 5)
    assert all(low - 1e-12 <= mark <= high + 1e-12 for mark in marks)
    assert 1 <= len(marks) <= 11

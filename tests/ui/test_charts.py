import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tl_cli.training.history import EpochPoint, History
from tl_cli.ui.charts import Canvas, Line, accuracy_chart, draw, epoch_loss_chart, loss_chart, smooth, ticks

NUMBERS = st.one_of(st.floats(), st.sampled_from([math.nan, math.inf, -math.inf, 1e308, -1e308, 5e-324, 0.0]))


def history(epochs: int = 10, steps: int = 500) -> History:
    return History(
        "run",
        [(step, 2 * math.exp(-step / 100) + 0.1 * (step % 3)) for step in range(1, steps)],
        [
            EpochPoint(e, e * 50, 2 / e, 1 - 1 / (e + 1), 2.2 / e, 1 - 1.2 / (e + 1), 1e-3, 0.0 if e < 6 else 1e-4)
            for e in range(1, epochs + 1)
        ],
        test_accuracy=0.88,
        test_loss=0.3,
    )


@given(st.lists(st.tuples(NUMBERS, NUMBERS), max_size=6).map(lambda points: sorted(points, key=str)))
def test_no_series_breaks_the_drawing(points: list[tuple[float, float]]) -> None:
    text = draw([Line(points, "blue")], Canvas(40, 8))
    assert all(len(line) <= 40 for line in text.plain.splitlines())


@pytest.mark.parametrize("width", [36, 76, 200])
@pytest.mark.parametrize("chart", [loss_chart, accuracy_chart, epoch_loss_chart])
def test_a_chart_keeps_to_its_size(width: int, chart) -> None:
    lines = chart(history(), Canvas(width, 12)).plain.splitlines()
    assert len(lines) == 12
    assert {len(line) for line in lines} == {width}


def test_nothing_to_draw_says_so() -> None:
    assert draw([Line([], "blue")], Canvas(40, 8)).plain == "no points yet"
    assert draw([Line([(1, math.nan)], "blue")], Canvas(40, 8)).plain == "no points yet"


def test_ascii_is_ascii_and_colourless_has_no_colour() -> None:
    text = accuracy_chart(history(), Canvas(60, 12, colour=False, ascii=True))
    assert text.plain.isascii()
    assert not text.spans
    coloured = accuracy_chart(history(), Canvas(60, 12))
    assert len({str(span.style) for span in coloured.spans}) >= 3


def test_the_unfreezing_is_marked_where_it_happened() -> None:
    lines = accuracy_chart(history(), Canvas(60, 12, colour=False, ascii=True)).plain.splitlines()
    columns = [line.index(":") for line in lines if ":" in line]
    assert len(columns) > 4
    assert 28 <= columns[0] <= 40
    without = History("x", [], [EpochPoint(1, 5, 1, 0.5, 1, 0.5, 1e-3, 0.0)])
    assert ":" not in accuracy_chart(without, Canvas(60, 12, ascii=True)).plain


def test_a_spike_survives_thinning() -> None:
    points = [(float(x), 0.0) for x in range(100_000)]
    points[54_321] = (54_321.0, 7.0)
    lines = draw([Line(points, "blue", "dots")], Canvas(60, 10, colour=False)).plain.splitlines()
    assert any(mark in lines[1] for mark in "⠁⠂⠄⠈⠐⠠⡀⢀")


def test_smoothing_of_a_constant_is_the_constant() -> None:
    assert [value for _, value in smooth([(float(x), 3.0) for x in range(50)])] == pytest.approx([3.0] * 50)
    assert smooth([(1.0, math.nan), (2.0, 4.0)]) == [(2.0, pytest.approx(4.0))]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (3, 3000), (-1e-5, 2e-5), (0.97, 0.99), (7, 7)])
def test_ticks_are_round_and_within(low: float, high: float) -> None:
    marks = ticks(low, high, 5)
    assert all(low - 1e-12 <= mark <= high + 1e-12 for mark in marks)
    assert 1 <= len(marks) <= 11

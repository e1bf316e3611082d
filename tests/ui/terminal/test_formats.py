import pytest

from tl_cli.ui.terminal.formats import epoch_range, format_count, format_seconds, or_dash, time_left


@pytest.mark.parametrize(("seconds", "shown"), [(3.21, "3.2 s"), (48, "48 s"), (185, "3:05"), (7800, "2:10:00")])
def test_durations_have_a_readable_unit(seconds: float, shown: str) -> None:
    assert format_seconds(seconds) == shown


def test_a_missing_number_is_a_dash() -> None:
    assert or_dash(None, "{:.2f}".format) == "-"
    assert or_dash(1.5, "{:.2f}".format) == "1.50"


def test_a_range_of_one_epoch_has_one_number() -> None:
    assert (epoch_range(1, 5), epoch_range(3, 3)) == ("epochs 1-5", "epoch 3")


def test_the_time_left_is_of_the_phase_unless_it_is_the_last() -> None:
    assert (time_left(90, is_last=True), time_left(90, is_last=False)) == ("1:30 left", "1:30 left in this phase")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (25_557_032, "25.6M"),
        (999_999, "1.00M"),
        (1_016_717_000_000, "1.02T"),
        (412, "412"),
        (99_960_000, "100M"),
        (None, "-"),
    ],
)
def test_counts_have_three_figures(value: int | None, shown: str) -> None:
    assert format_count(value, "-") == shown

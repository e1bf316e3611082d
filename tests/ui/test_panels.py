import math

import numpy as np
import pytest
from scipy.signal import savgol_filter

from tests.support.histories import history
from tl_cli.training.history import EpochEnded, History
from tl_cli.ui.panels import Line, PanelOptions, accuracy_by_epoch, loss_by_epoch, loss_by_step, panels, smooth


def line(panel, label: str) -> Line:
    (found,) = [each for each in panel.lines if each.label == label]
    return found


def test_one_run_shows_training_and_validation_and_several_share_each_panel() -> None:
    assert [panel.title for panel in panels([history()])] == ["loss by step", "accuracy", "loss", "learning rate"]
    alone = accuracy_by_epoch([history()])
    assert [each.label for each in alone.lines] == ["train", "validation", "best, epoch 10", "test"]
    several = accuracy_by_epoch([history(name="a"), history(name="b")])
    assert several.title == "validation accuracy"
    assert [each.label for each in several.lines if each.kind == "line"] == ["a", "b"]
    assert len({each.colour for each in several.lines if each.kind == "line"}) == 2


def test_the_points_of_the_best_epoch_and_the_test_have_their_values() -> None:
    panel = accuracy_by_epoch([history()])
    ((x, value),) = line(panel, "best, epoch 10").points
    assert (x, value) == (10, pytest.approx(1 - 1.2 / 11))
    assert line(panel, "test").points == [(10, 0.88)]
    assert line(loss_by_epoch([history()]), "test").points == [(10, 0.3)]
    ((x, value),) = line(loss_by_step([history()]), "best, epoch 10").points
    assert x == 500
    assert value == line(loss_by_step([history()]), "moving average").points[-1][1]


def test_averaged_weights_are_a_line_and_may_be_the_best() -> None:
    one = history()
    one.epochs = [EpochEnded(1, 50, 1, 0.5, 1, 0.5, 1e-3, 0, ema_val_accuracy=0.7, ema_val_loss=0.8)]
    panel = accuracy_by_epoch([one])
    assert line(panel, "averaged weights").points == [(1, 0.7)]
    assert line(panel, "best, epoch 1").points == [(1, 0.7)]


def test_the_x_axis_counts_steps_epochs_or_time() -> None:
    one = history()  # 50 steps per epoch, half a second per step
    by_step, by_epoch, by_time = (accuracy_by_epoch([one], PanelOptions(x=x)) for x in ("step", "epoch", "time"))
    assert [x for x, _ in line(by_step, "train").points][:2] == [50, 100]
    assert [x for x, _ in line(by_epoch, "train").points][:2] == [1, 2]
    assert by_time.x == "minutes since the run began"
    assert [x for x, _ in line(by_time, "train").points][:2] == pytest.approx([25 / 60, 50 / 60])
    assert by_step.title == "accuracy by step"
    batches = loss_by_step([one], PanelOptions(x="epoch"))
    assert line(batches, "batch").points[24] == (0.5, one.losses[24][1])
    assert line(batches, "batch").points[-1][0] == pytest.approx(499 / 50)


def test_the_unfreezing_lies_between_the_epochs_and_after_the_steps() -> None:
    assert [mark.x for mark in accuracy_by_epoch([history()]).marks] == [5.5]
    assert [mark.x for mark in loss_by_step([history()]).marks] == [250]
    assert [mark.x for mark in loss_by_step([history()], PanelOptions(x="epoch")).marks] == [5]
    both = accuracy_by_epoch([history(name="a"), history(name="b")]).marks
    assert len(both) == 1, "where all agree, one mark stands for all"


def test_the_last_epochs_are_shown_in_every_panel() -> None:
    for panel in panels([history()], PanelOptions(last=3)):
        first = min(x for each in panel.lines for x, _ in each.points)
        assert first == (351 if panel.title == "loss by step" else 8), panel.title
    steps = loss_by_step([history()], PanelOptions(x="step", last=100))
    assert line(steps, "batch").points[0][0] == 401
    minutes = loss_by_step([history()], PanelOptions(x="time", last=1))
    assert line(minutes, "batch").points[-1][0] - line(minutes, "batch").points[0][0] == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(("count", "span"), [(3, 3), (21, 11), (22, 11), (365, 11), (365, 201), (40, 4001)])
def test_the_moving_average_is_the_filter_of_savitzky_and_golay(count: int, span: int) -> None:
    values = np.random.default_rng(count).exponential(size=count)
    places = np.cumsum(np.random.default_rng(span).integers(1, 9, count))
    wide = min(span, count - 1 + count % 2)  # SciPy refuses a window that is longer than the curve
    expected = savgol_filter(values, wide, polyorder=1, mode="interp")
    smoothed = smooth(list(zip(places.tolist(), values.tolist(), strict=True)), span)
    assert [x for x, _ in smoothed] == places.tolist()
    assert [y for _, y in smoothed] == pytest.approx(expected.tolist(), rel=1e-9)


def test_a_falling_loss_lies_on_both_sides_of_its_moving_average() -> None:
    random = np.random.default_rng(0)
    for count in (25, 60, 115, 365):
        losses = 2.3 * np.exp(-np.arange(count) / count * 3) * random.lognormal(0, 0.15, count)
        drawn = loss_by_step([History("x", list(enumerate(losses.tolist(), 1)))])
        average = [y for _, y in line(drawn, "moving average").points]
        assert 0.35 < np.mean(np.array(average) > losses) < 0.65, count


def test_the_first_and_the_last_of_a_straight_fall_are_on_its_line() -> None:
    fall = [(float(step), 3 - step / 50) for step in range(100)]
    for weight in (None, 0.5, 0.9, 0.99):
        average = line(loss_by_step([History("x", fall)], PanelOptions(smooth=weight)), "moving average").points
        assert [y for _, y in average] == pytest.approx([y for _, y in fall]), weight


def test_a_moving_average_omits_values_that_are_not_finite_and_is_exact_after_huge_ones() -> None:
    assert smooth([(1.0, math.nan), (2.0, 4.0)], 11) == [(2.0, 4.0)]
    huge = [(step, 1e100 if step == 20 else 1.0) for step in range(100)]
    assert [y for _, y in smooth(huge, 11)][26:] == pytest.approx([1.0] * 74)


def test_the_span_of_the_average_is_as_requested_or_depends_on_the_number_of_points() -> None:
    none = loss_by_step([history()], PanelOptions(smooth=0))
    assert [each.label for each in none.lines if each.kind != "best"] == ["batch"]
    # A step from 0 to 1: half a span after it, the average has reached 1.
    for count, weight, half in ((100_000, None, 1000), (200, None, 5), (100, 0.9, 9), (100, 0.75, 3)):
        middle = count // 2
        steps = History("x", [(step, float(step > middle)) for step in range(1, count + 1)])
        average = dict(line(loss_by_step([steps], PanelOptions(smooth=weight)), "moving average").points)
        assert average[middle + half] < 1 - 1e-9, (count, weight)
        assert average[middle + half + 1] == pytest.approx(1), (count, weight)


def test_points_that_are_not_drawn_are_named() -> None:
    bad = history()
    bad.not_finite = {"step/loss": [310, 311], "val/loss": [400]}
    assert loss_by_step([bad]).notes == ["step/loss is not finite at 2 steps, first at step 310"]
    assert loss_by_epoch([bad]).notes == ["val/loss is not finite at 1 step, first at step 400"]
    assert accuracy_by_epoch([bad]).notes == []
    rates = panels([history()], PanelOptions(log=True))[3]
    assert rates.notes == ["not on a logarithmic axis: 5 of zero or below"]
    assert not panels([history()], PanelOptions(log=True))[1].log, "accuracies stay on an even axis"


def test_each_named_metric_has_a_panel_and_a_run_of_another_program_shows_all_metrics() -> None:
    one = history()
    one.others = {"system/cpu": [(1, 50.0), (400, 90.0)], "val/f1_accuracy": [(50, 0.5)]}
    cpu, f1 = panels([one], PanelOptions(metrics=("system/cpu", "val/f1_accuracy"), x="epoch"))
    assert (cpu.title, cpu.lines[0].points) == ("system/cpu by epoch", [(0.02, 50.0), (8.0, 90.0)])
    assert (cpu.percent, f1.percent) == (False, True)
    foreign = History("lightning", others={"train_loss": [(0, 1.0), (9, 0.5)]})
    assert [panel.title for panel in panels([foreign])] == ["train_loss by step"]
    assert panels([History("empty")]) == []


@pytest.mark.parametrize("x", [None, "step", "epoch", "time"])
def test_a_run_of_one_point_or_none_has_panels(x) -> None:
    for points in ([], [(1, 2.0)], [(1, math.nan)]):
        for log in (False, True):
            shown = panels([History("x", points, test_accuracy=0.5)], PanelOptions(x=x, log=log, last=2))
            assert len(shown) in (0, 4)


def test_epochs_that_count_from_zero_or_have_no_step_are_drawn() -> None:
    from_zero = History("zero", [(step, 1.0) for step in range(20)], [EpochEnded(0, step, 1.0) for step in range(20)])
    without_step = History("none", [(step, 1.0) for step in range(20)], [EpochEnded(1, 0, 1.0)])
    for one in (from_zero, without_step):
        for x in (None, "step", "epoch", "time"):
            for last in (None, 2):
                assert len(panels([one], PanelOptions(x=x, last=last))) == 4


def test_the_last_epochs_of_each_run_are_counted_from_its_own_end() -> None:
    short, long = history(epochs=4, steps=200, name="short"), history(epochs=10, name="long")
    panel = accuracy_by_epoch([short, long], PanelOptions(last=2))
    assert [x for x, _ in line(panel, "short").points] == [3, 4]
    assert [x for x, _ in line(panel, "long").points] == [9, 10]


def test_accuracies_in_percent_are_not_scaled_again() -> None:
    one = History("x", others={"accuracy": [(1, 97.5)], "val/accuracy": [(1, 0.9)]})
    percent = {
        panel.title: panel.percent for panel in panels([one], PanelOptions(metrics=("accuracy", "val/accuracy")))
    }
    assert percent == {"accuracy by step": False, "val/accuracy by step": True}


def test_losses_that_are_nan_are_noted() -> None:
    shown = panels([History("x", not_finite={"step/loss": [1, 2, 3]})])
    assert shown[0].notes == ["step/loss is not finite at 3 steps, first at step 1"]

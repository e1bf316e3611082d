from pathlib import Path

import pytest

from tests.support.recording import epoch, record
from tl_cli.api.run_curves import CurvesRequest, CurvesResult, FollowObserver, follow_curves, read_curves
from tl_cli.errors import RunNotFoundError, UsageError


def test_curves_are_those_of_the_named_runs_or_of_the_latest(workplace: Path) -> None:
    first, second = record("same", epochs=2), record("same", epochs=3)
    both = read_curves(CurvesRequest((first.run_id, second.run_id)))
    assert [each.facts.run_id for each in both.runs] == [first.run_id, second.run_id]
    assert [each.history.name for each in both.runs] == [f"same ({made.run_id[:8]})" for made in (first, second)]
    (latest,) = read_curves(CurvesRequest()).runs
    assert latest.facts.run_id == second.run_id
    assert [(point.epoch, point.step) for point in latest.history.epochs] == [(1, 10), (2, 20), (3, 30)]
    with pytest.raises(RunNotFoundError):
        read_curves(CurvesRequest(("nothing",)))
    with pytest.raises(UsageError, match="no metric"):
        read_curves(CurvesRequest(metrics=("nothing",)))


def test_a_run_is_followed_until_it_ends(workplace: Path) -> None:
    made = record("one", epochs=1, end=False)

    class Ending(FollowObserver):
        """Ends the run after its first update."""

        def curves(self, result: CurvesResult, trouble: str = "") -> None:
            seen.append(result.runs[0].facts.status)
            if len(seen) == 1:
                made(epoch(2, 20))
                made.__exit__(None, None, None)

    seen: list[str] = []
    result = follow_curves(CurvesRequest(), Ending(), poll_s=0.01)
    assert seen == ["running", "finished"]
    assert [point.epoch for point in result.runs[0].history.epochs] == [1, 2]


def test_without_a_training_run_the_observer_is_called_once_and_a_new_run_is_found(workplace: Path) -> None:
    record("old")

    class Starting(FollowObserver):
        """Starts a run while none trains, and ends it after its first update."""

        def waiting(self) -> None:
            made.append(record("new", epochs=1, end=False))

        def curves(self, result: CurvesResult, trouble: str = "") -> None:
            if result.is_running:
                made[0].__exit__(None, None, None)

    made: list = []
    result = follow_curves(CurvesRequest(), Starting(), poll_s=0.01)
    assert [each.facts.name for each in result.runs] == ["new"]
    assert len(made) == 1

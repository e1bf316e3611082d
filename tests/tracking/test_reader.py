import math
import time

import pytest
from mlflow.entities import Metric

from tests.support.recording import recorder
from tl_cli.errors import UsageError
from tl_cli.evaluation.scores import EpochEnded
from tl_cli.tracking.reader import matching_metrics, read_history, read_sparks
from tl_cli.tracking.store import Store
from tl_cli.training.events import LossSampled


def recorded(store: Store, *points: tuple[str, float, int]) -> str:
    """Record points (key, value, step), one second apart, as any program could; return the run's id."""
    run = store.client.create_run(store.experiment("tl"), start_time=1_000_000)
    metrics = [Metric(key, value, 1_000_000 + 1000 * at, step) for at, (key, value, step) in enumerate(points, 1)]
    store.client.log_batch(run.info.run_id, metrics=metrics)
    store.client.set_terminated(run.info.run_id)
    return str(run.info.run_id)


def test_epochs_have_the_scores_of_their_step(store: Store) -> None:
    run_id = recorded(
        store,
        ("step/loss", 2.0, 5),
        ("epoch", 1, 10), ("val/accuracy", 0.7, 10), ("val/loss", 0.6, 10), ("lr/backbone", 0.0, 10),
        ("epoch", 2, 20), ("val/accuracy", 0.8, 20), ("val/ema_accuracy", 0.85, 20),
        ("test/accuracy", 0.75, 0),
    )  # fmt: skip
    history = read_history(store, store.find(run_id))
    assert history.losses == [(5, 2.0)]
    assert history.epochs == [
        EpochEnded(1, 10, val_accuracy=0.7, val_loss=0.6, lr_backbone=0.0),
        EpochEnded(2, 20, val_accuracy=0.8, ema_val_accuracy=0.85),
    ]
    assert history.test_accuracy == 0.75


def test_the_first_point_of_a_repeated_step_counts(store: Store) -> None:
    run_id = recorded(store, ("step/loss", 2.0, 5), ("step/loss", 9.0, 5))
    assert read_history(store, store.find(run_id)).losses == [(5, 2.0)]


def test_numbers_that_are_not_finite_are_listed_and_in_no_curve(store: Store) -> None:
    run_id = recorded(store, ("step/loss", 2.0, 5), ("step/loss", math.nan, 6), ("step/loss", math.inf, 7))
    history = read_history(store, store.find(run_id))
    assert history.losses == [(5, 2.0)]
    assert history.not_finite == {"step/loss": [6, 7]}


def test_a_run_of_another_program_shows_all_its_metrics(store: Store) -> None:
    run_id = recorded(store, ("score", 0.1, 1), ("score", 0.2, 2), ("system/cpu", 50.0, 1))
    history = read_history(store, store.find(run_id))
    assert history.others == {"score": [(1, 0.1), (2, 0.2)]}
    assert history.epochs == []


def test_points_without_steps_are_numbered(store: Store) -> None:
    run_id = recorded(store, ("score", 0.1, 0), ("score", 0.2, 0))
    assert read_history(store, store.find(run_id)).others == {"score": [(1, 0.1), (2, 0.2)]}


def test_sparks_are_validation_accuracies_by_epoch(store: Store) -> None:
    run_id = recorded(store, ("val/accuracy", 0.8, 20), ("val/accuracy", 0.7, 10))
    without = recorded(store, ("score", 0.1, 1))
    assert read_sparks(store, [store.find(run_id), store.find(without)]) == {run_id: (0.7, 0.8)}


def test_metrics_are_chosen_by_name_or_pattern(store: Store) -> None:
    run = store.find(recorded(store, ("val/accuracy", 0.8, 1), ("val/loss", 0.5, 1), ("score", 0.1, 1)))
    assert sorted(matching_metrics([run], ["val/*"])) == ["val/accuracy", "val/loss"]
    assert matching_metrics([run], ["score", "score"]) == ["score"]
    assert matching_metrics([run], ["vall/*"], strict=False) == []
    with pytest.raises(UsageError, match="no metric 'scores' is recorded. Did you mean score"):
        matching_metrics([run], ["scores"])


def test_curves_of_a_resumed_run_exclude_its_pause(store: Store) -> None:
    from tl_cli.tracking.reader import read_history

    began_at = time.time()
    with recorder(store) as first:
        first(LossSampled(1, 1, 1.0, 1e-3, 0.0))
    # As if the run had ended an hour ago.
    run = store.find(first.run_id)
    ended = run.info.end_time
    with recorder(store, run_id=first.run_id) as second:
        tags = store.find(first.run_id).data.tags
        began, over = (int(part) for part in tags["mlflow.tl.pauses"].split("-"))
        assert began == ended
        assert over >= began
        store.client.set_tag(first.run_id, "mlflow.tl.pauses", f"{began - 3_600_000}-{over}")
        second(LossSampled(2, 1, 1.0, 1e-3, 0.0))
    seconds = dict(read_history(store, store.find(first.run_id)).clock)
    # Without the hour, it is the duration of the test.
    assert seconds[2] - seconds[1] <= time.time() - began_at

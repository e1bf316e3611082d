"""The curves of a run as MLflow keeps them, so that a run made on another machine can be drawn too."""

from mlflow.entities import Run

from tl_cli.tracking.store import Store
from tl_cli.training.history import EpochPoint, History

_EPOCH_KEYS = {
    "train_loss": "train/loss",
    "train_accuracy": "train/accuracy",
    "val_loss": "val/loss",
    "val_accuracy": "val/accuracy",
    "lr_head": "lr/head",
    "lr_backbone": "lr/backbone",
    "seconds": "time/epoch_seconds",
    "ema_val_accuracy": "val/ema_accuracy",
    "ema_val_loss": "val/ema_loss",
    "images_per_second": "time/images_per_second",
}
# MLflow stores infinity as the largest double.
_LARGEST = 1e308


def read_history(store: Store, run: Run) -> History:
    """Return the curves of a run; numbers that are not finite are left out."""
    run_id = run.info.run_id
    recorded = run.data.metrics
    losses = _points(store, run_id, "step/loss") if "step/loss" in recorded else {}
    epochs = _points(store, run_id, "epoch") if "epoch" in recorded else {}
    columns = {name: _points(store, run_id, key) if key in recorded else {} for name, key in _EPOCH_KEYS.items()}
    points = [
        EpochPoint(epoch=round(number), step=step, **{name: column.get(step) for name, column in columns.items()})
        for step, number in sorted(epochs.items())
    ]
    return History(
        name=str(run.info.run_name),
        losses=sorted(losses.items()),
        epochs=points,
        test_accuracy=recorded.get("test/accuracy"),
        test_loss=recorded.get("test/loss"),
    )


def _points(store: Store, run_id: str, key: str) -> dict[int, float]:
    """Return value by step; where a step was recorded twice, the first value stands."""
    history = sorted(store.client.get_metric_history(run_id, key), key=lambda point: point.timestamp)
    values: dict[int, float] = {}
    for point in history:
        if abs(point.value) < _LARGEST:  # False for NaN too
            values.setdefault(point.step, point.value)
    return values

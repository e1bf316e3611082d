from tl_cli.evaluation.scores import EpochEnded
from tl_cli.training.events import LossSampled, StepEnded
from tl_cli.training.history import History


def epoch(number: int, accuracy: float | None, loss: float | None = 0.5, lr_backbone: float = 0.0) -> EpochEnded:
    return EpochEnded(number, 10 * number, val_accuracy=accuracy, val_loss=loss, lr_backbone=lr_backbone)


def test_samples_and_epochs_are_collected() -> None:
    history = History("run")
    for event in (LossSampled(5, 1, 2.0, 1e-3, 0.0), StepEnded(5, 1, 8), epoch(1, 0.5)):
        history(event)
    assert history.losses == [(5, 2.0)]
    assert history.epochs == [epoch(1, 0.5)]


def test_a_resumed_run_drops_the_points_after_its_checkpoint() -> None:
    history = History(losses=[(10, 1.0), (15, 0.9), (20, 0.8)], epochs=[epoch(1, 0.5), epoch(2, 0.6)])
    history.cut_after(15)
    assert history.losses == [(10, 1.0), (15, 0.9)]
    assert [each.epoch for each in history.epochs] == [1]


def test_the_best_epoch_has_the_highest_accuracy_then_the_lowest_loss() -> None:
    assert History().best is None
    assert History(epochs=[epoch(1, None, None)]).best is None
    epochs = [epoch(1, 0.8, 0.1), epoch(2, 0.9, 0.7), epoch(3, 0.9, 0.6), epoch(4, 0.9, 0.6)]
    assert History(epochs=epochs).best is epochs[2]


def test_the_best_epoch_may_be_best_by_its_averaged_weights() -> None:
    averaged = EpochEnded(2, 20, val_accuracy=0.6, val_loss=0.5, ema_val_accuracy=0.95, ema_val_loss=0.4)
    assert History(epochs=[epoch(1, 0.9), averaged]).best is averaged


def test_unfreezing_comes_after_the_last_frozen_epoch() -> None:
    frozen, thawed = [epoch(1, 0.5), epoch(2, 0.6)], epoch(3, 0.7, lr_backbone=1e-4)
    assert History(epochs=[*frozen, thawed]).unfrozen_after is frozen[1]
    assert History(epochs=frozen).unfrozen_after is None
    assert History(epochs=[thawed]).unfrozen_after is None

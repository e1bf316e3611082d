import io

from rich.console import Console

from tests.support.screens import two_phase_events
from tl_cli.evaluation.scores import EpochEnded
from tl_cli.training.history import History
from tl_cli.ui.terminal.console import THEME
from tl_cli.ui.terminal.epochs import best_line, epoch_line, epoch_table


def headings(epochs: list[EpochEnded], width: int) -> list[str]:
    console = Console(theme=THEME, file=io.StringIO(), width=width)
    console.print(epoch_table(epochs, None, width))
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    return [heading.strip() for heading in lines[0].split("  ") if heading]


def test_a_narrow_table_leaves_out_the_least_important_columns() -> None:
    epochs = [event for event in two_phase_events() if isinstance(event, EpochEnded)]
    assert headings(epochs, 24) == ["epoch", "val loss", "val acc"]
    assert headings(epochs, 40) == ["epoch", "train loss", "val loss", "val acc"]
    quality = ["epoch", "train loss", "train acc", "val loss", "val acc"]
    assert headings(epochs, 80) == [*quality, "head lr", "backbone lr", "time"]
    assert headings(epochs, 120) == [*quality, "head lr", "backbone lr", "time", "images/s"]


def test_scores_that_no_epoch_has_get_no_column() -> None:
    assert headings([EpochEnded(1, 10, val_accuracy=0.5)], 120) == ["epoch", "val acc"]


def test_a_line_of_an_epoch_has_the_recorded_scores_only() -> None:
    epoch = EpochEnded(2, 20, val_accuracy=0.5, val_loss=0.25)
    assert epoch_line(epoch, 4, is_best=True) == "epoch 2/4  val loss 0.2500  val accuracy 50.00%  best"
    assert epoch_line(EpochEnded(2, 20), None, is_best=False) == "epoch 2"


def test_the_best_line_names_averaged_weights() -> None:
    assert best_line(History()) == ""
    history = History(epochs=[EpochEnded(1, 10, val_accuracy=0.5, val_loss=1.0)])
    assert best_line(history) == "best: 50.00% on validation, epoch 1"
    history.epochs = [EpochEnded(1, 10, val_accuracy=0.5, val_loss=1.0, ema_val_accuracy=0.75, ema_val_loss=1.0)]
    assert best_line(history) == "best: 75.00% on validation, epoch 1 (averaged weights)"

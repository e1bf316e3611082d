"""The epochs of a run: as a table that fits the terminal, and as lines of text."""

from collections.abc import Sequence

from rich.table import Table

from tl_cli.evaluation.scores import EPOCH_SCORES, EpochEnded, Score
from tl_cli.training.history import History
from tl_cli.ui.terminal.formats import format_seconds
from tl_cli.ui.terminal.layout import make_table

# Smaller drops of accuracy between two epochs are usual.
_DROP = 0.01
# Scores first, then rates and times; a longer number than the cell is rare.
_SHOWN = sorted(EPOCH_SCORES, key=lambda name: EPOCH_SCORES[name].better is None)
_CELL = 7


def epoch_table(epochs: Sequence[EpochEnded], best: EpochEnded | None, width: int) -> Table:
    """Return the epochs as a table that fits the width: the recorded scores, the lowest ranks first."""
    names = _fitting_scores(epochs, width)
    table = make_table("epoch", *(EPOCH_SCORES[name].heading for name in names))
    for epoch in epochs:
        is_best = best is not None and epoch.epoch == best.epoch
        cells = (_cell(EPOCH_SCORES[name], getattr(epoch, name)) for name in names)
        table.add_row(f"{epoch.epoch}{'*' * is_best}", *cells, style="good" if is_best else "")
    return table


def _fitting_scores(epochs: Sequence[EpochEnded], width: int) -> list[str]:
    """Return the recorded scores that have room, by their fields."""
    shown = [name for name in _SHOWN if any(getattr(epoch, name) is not None for epoch in epochs)]
    while shown and len("epoch") + sum(2 + max(len(EPOCH_SCORES[name].heading), _CELL) for name in shown) > width:
        highest = max(EPOCH_SCORES[name].rank for name in shown)
        shown = [name for name in shown if EPOCH_SCORES[name].rank < highest]
    return shown


def _cell(score: Score, value: float | None) -> str:
    if value is None:
        return "-"
    if score.unit == "learning rate" and value == 0:
        return "frozen"
    return format_seconds(value) if score.unit == "s" else f"{value:{score.format}}"


def epoch_line(epoch: EpochEnded, epochs: int | None, *, is_best: bool) -> str:
    """Return an epoch as one plain line.

    Args:
        epochs: of the whole run; None if unknown.
    """
    parts = [f"epoch {epoch.epoch}/{epochs}" if epochs else f"epoch {epoch.epoch}"]
    for name in _SHOWN:
        score, value = EPOCH_SCORES[name], getattr(epoch, name)
        if score.in_line and value is not None:
            parts.append(f"{score.title} {score.text(value)}".strip())
    return "  ".join([*parts, *["best"] * is_best])


def best_line(history: History) -> str:
    """Return the accuracy of the epoch whose model is kept; empty where no epoch was validated."""
    best = history.best
    if best is None or best.validation is None:
        return ""
    weights = " (averaged weights)" if best.averaged else ""
    return f"{history.keep}: {best.validation[0]:.2%} on validation, epoch {best.epoch}{weights}"


def unfreezing_note(epochs: Sequence[EpochEnded]) -> str | None:
    """Return an explanation if validation accuracy fell from the last frozen epoch to the first unfrozen one.

    Args:
        epochs: of the run so far; the last one has just ended.
    """
    if len(epochs) < 2 or epochs[-2].lr_backbone or not epochs[-1].lr_backbone:
        return None
    before, after = epochs[-2].val_accuracy or 0.0, epochs[-1].val_accuracy or 0.0
    if before - after <= _DROP:
        return None
    return (
        f"validation fell from {before:.2%} to {after:.2%} on unfreezing, as pretrained layers begin to change; it "
        "usually recovers within a few epochs; otherwise lower --unfreeze-lr"
    )

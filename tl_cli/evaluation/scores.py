"""Every metric, declared once: recorder, reader, tables, notes, CSV and JSON use these rows.

`EpochEnded` has a field for each metric of an epoch, `Results` one for each metric of a whole run. No torch here.

To add a metric of an epoch: add a field behind the others, fill it in training/fit.py, and let
tests/cli/test_schemas_of_listings.py write the schema. A panel in `tl plot` is a function in ui/panels.py.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Self

from tl_cli.contract import Calibration, SplitName

Unit = Literal["fraction", "nats", "learning rate", "images/s", "s", "epoch"]
Direction = Literal["higher", "lower"]
LOSS_KEY, EPOCH_KEY = "step/loss", "epoch"  # metrics of a sampled step, and the number of an epoch
MOST = 10**9
"""Largest number of epochs or seconds that is taken for real."""


@dataclass(frozen=True, slots=True)
class Score:
    """How one metric is recorded and shown."""

    key: str
    """Its name in MLflow."""
    title: str
    """Words before the number in a line of text; "" where the unit says enough."""
    heading: str
    """Column heading in a table."""
    unit: Unit
    format: str
    """Format specification of a number, such as ``.2%``."""
    rank: int
    """Tables leave out columns of the highest rank first where the terminal is narrow."""
    better: Direction | None = None
    """Which direction is an improvement; None where neither is."""
    in_line: bool = False
    """Whether the plain line of an epoch shows it, or a list of runs."""
    measured_on: SplitName | None = None
    """Images that a result of a whole run was measured on."""

    def is_possible(self, value: float) -> bool:
        """Whether a recorded number is finite and within the range of its unit."""
        limits = {"fraction": 1, "s": MOST, "epoch": MOST}
        return 0 <= value <= limits[self.unit] if self.unit in limits else math.isfinite(value)

    def text(self, value: float) -> str:
        """Return the number with its unit, such as ``93.10%`` or ``640 images/s``."""
        suffix = f" {self.unit}" if self.unit in ("images/s", "s") else ""
        return f"{value:{self.format}}{suffix}"


def _score(
    key: str,
    title: str,
    heading: str,
    unit: Unit,
    spec: str,
    rank: int,
    better: Direction | None = None,
    *,
    in_line: bool = False,
    on: SplitName | None = None,
) -> Any:
    """Return a field with its row; its default, None, means not recorded."""
    return field(default=None, metadata={"score": Score(key, title, heading, unit, spec, rank, better, in_line, on)})


@dataclass(frozen=True, slots=True)
class EpochEnded:
    """An epoch that has been trained and validated: an event of the loop, and a point of each curve.

    Accuracies are fractions, losses mean cross-entropies in nats. A score is None where it was not recorded, as in runs
    of other programs.
    """

    epoch: int
    """From 1, over all phases."""
    step: int
    """Optimizer steps so far, over all epochs."""
    # fmt: off
    train_loss: float | None = _score(
        "train/loss", "train loss", "train loss", "nats", ".4f", 3, "lower", in_line=True)
    """Of the batches as they were trained on (augmented, with weights that change from step to step)."""
    train_accuracy: float | None = _score(
        "train/accuracy", "train accuracy", "train acc", "fraction", ".2%", 4, "higher")
    """Of the same batches."""
    val_loss: float | None = _score(
        "val/loss", "val loss", "val loss", "nats", ".4f", 2, "lower", in_line=True)
    val_accuracy: float | None = _score(
        "val/accuracy", "val accuracy", "val acc", "fraction", ".2%", 1, "higher", in_line=True)
    lr_head: float | None = _score(
        "lr/head", "head lr", "head lr", "learning rate", ".1e", 7)
    """Of the epoch's last step."""
    lr_backbone: float | None = _score(
        "lr/backbone", "backbone lr", "backbone lr", "learning rate", ".1e", 7)
    """Of the highest backbone layer that trains; 0 while the backbone is frozen."""
    seconds: float | None = _score(
        "time/epoch_seconds", "", "time", "s", ".1f", 6, in_line=True)
    """Training and validation."""
    ema_val_accuracy: float | None = _score(
        "val/ema_accuracy", "EMA accuracy", "ema acc", "fraction", ".2%", 5, "higher", in_line=True)
    """Of the averaged weights (EMA); None where there is no average."""
    ema_val_loss: float | None = _score(
        "val/ema_loss", "EMA loss", "ema loss", "nats", ".4f", 8, "lower")
    images_per_second: float | None = _score(
        "time/images_per_second", "", "images/s", "images/s", ",.0f", 9, in_line=True)
    """While training; validation is not counted."""
    # fmt: on
    is_best: bool = False
    """Whether its model is kept: it is better on validation than each epoch before, by the weights or by their average,
    or the last epoch is to be kept."""
    calibration: Calibration | None = None
    """Of the better of the weights and their average; None unless the epoch is the best."""

    @property
    def validation(self) -> tuple[float, float] | None:
        """Accuracy and loss on validation of the better of the weights and their average; None if not recorded."""
        return better((self.val_accuracy, self.val_loss), (self.ema_val_accuracy, self.ema_val_loss))

    @property
    def averaged(self) -> bool:
        """Whether the averaged weights are better than the weights themselves."""
        return self.validation != better((self.val_accuracy, self.val_loss))

    def to_dict(self) -> dict[str, float | None]:
        """Return the epoch as CSV and JSON show it."""
        return {"epoch": self.epoch, "step": self.step} | {name: getattr(self, name) for name in EPOCH_SCORES}


@dataclass(frozen=True, slots=True)
class Results:
    """The results of a whole run, of its best epoch's model; a score is None where it was not recorded."""

    # fmt: off
    val_accuracy: float | None = _score(
        "best/val_accuracy", "validation accuracy", "val", "fraction", ".2%", 1, "higher", in_line=True, on="val")
    val_loss: float | None = _score(
        "best/val_loss", "validation loss", "val loss", "nats", ".4f", 7, "lower", on="val")
    best_epoch: float | None = _score(
        "best/epoch", "best epoch", "best epoch", "epoch", ".0f", 5, in_line=True)
    test_accuracy: float | None = _score(
        "test/accuracy", "test accuracy", "test", "fraction", ".2%", 2, "higher", in_line=True, on="test")
    test_loss: float | None = _score(
        "test/loss", "test loss", "test loss", "nats", ".4f", 3, "lower", in_line=True, on="test")
    clean_train_accuracy: float | None = _score(
        "clean_train/accuracy", "train accuracy (eval mode, no augmentation)", "train", "fraction", ".2%", 4, "higher",
        in_line=True, on="train")
    clean_train_loss: float | None = _score(
        "clean_train/loss", "train loss (eval mode, no augmentation)", "train loss", "nats", ".4f", 8, "lower",
        on="train")
    seconds: float | None = _score(
        "time/train_seconds", "training time", "time", "s", ".1f", 6, in_line=True)
    """Training and validation of all epochs, without pauses."""
    # fmt: on

    @classmethod
    def of(cls, metrics: Mapping[str, float]) -> Self:
        """Return the results among the metrics of a run, by their keys."""
        return cls(**{name: metrics.get(score.key) for name, score in RESULTS.items()})


def _rows(record: type[EpochEnded | Results]) -> dict[str, Score]:
    return {each.name: each.metadata["score"] for each in fields(record) if "score" in each.metadata}


EPOCH_SCORES, RESULTS = _rows(EpochEnded), _rows(Results)
"""The rows of an epoch and of a whole run, by the names of their fields."""


def values_by_key(record: EpochEnded | Results) -> dict[str, float]:
    """Return the scores that are not None by their keys in MLflow."""
    values = {score.key: getattr(record, name) for name, score in _rows(type(record)).items()}
    return {key: value for key, value in values.items() if value is not None}


def better(*measured: tuple[float | None, float | None]) -> tuple[float, float] | None:
    """Return the best of some pairs of accuracy and loss: the highest accuracy, then the lowest loss.

    The first of equal pairs is returned; None if no accuracy is given.
    """
    known = [(accuracy, loss or 0.0) for accuracy, loss in measured if accuracy is not None]
    return max(known, key=lambda pair: (pair[0], -pair[1])) if known else None

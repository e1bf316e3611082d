"""What happens during a run, as small immutable facts. Observers are told; they cannot steer. No torch here."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from tl_cli.contract import Calibration

PhaseName = Literal["head", "fine-tune"]
Activity = Literal[
    "caching features", "validating", "validating the average", "testing", "measuring the training images"
]


def better(*judged: tuple[float | None, float | None]) -> tuple[float, float] | None:
    """Return the best of some pairs of accuracy and loss: more correct, or as many at a lower loss.

    The first stands where two are alike; None where no accuracy is known.
    """
    known = [(accuracy, loss or 0.0) for accuracy, loss in judged if accuracy is not None]
    return max(known, key=lambda pair: (pair[0], -pair[1])) if known else None


@dataclass(frozen=True, slots=True)
class PhaseStarted:
    """A phase begins, or goes on after a resume.

    Attributes:
        epochs: its first and last epoch, from 1.
        steps_per_epoch: optimizer steps.
        steps: of the whole phase; its last epoch may be cut short.
        step: optimizer steps before it.
        ended: steps of the run's complete epochs.
        into: steps of the epoch that goes on after a resume.
        trainable: parameters that train.
        frozen: parameters that do not.
        cached: whether it trains on features computed once.
        found: whether an earlier run had computed them.
    """

    name: PhaseName
    epochs: tuple[int, int]
    steps_per_epoch: int
    steps: int
    step: int
    trainable: int
    frozen: int
    cached: bool
    found: bool = False
    ended: int = 0
    into: int = 0


@dataclass(frozen=True, slots=True)
class Worked:
    """A part of some work beside the steps is done: images counted."""

    activity: Activity
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class StepEnded:
    """One optimizer step, counted from 1 over the whole run; ``images`` in its batch."""

    step: int
    epoch: int
    images: int


@dataclass(frozen=True, slots=True)
class LossSampled:
    """The cross-entropy of one batch in nats, and the learning rates of its step (0: not training)."""

    step: int
    epoch: int
    loss: float
    lr_head: float
    lr_backbone: float


@dataclass(frozen=True, slots=True)
class EpochEnded:
    """An epoch is over and validated.

    Attributes:
        step: optimizer steps so far.
        train_loss: mean cross-entropy over the epoch's batches as they were trained on (augmented), in nats.
        train_accuracy: of the same, a fraction.
        val_loss: mean cross-entropy of the validation images.
        val_accuracy: fraction.
        seconds: training and validation.
        images_per_second: of training alone.
        is_best: better on validation than every epoch before, by the weights or by their average.
        ema_val_accuracy: of the averaged weights, a fraction; None where none are kept.
        ema_val_loss: the same.
        calibration: of the better of the weights and their average; None where the epoch is not the best.
    """

    phase: PhaseName
    epoch: int
    step: int
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    lr_head: float
    lr_backbone: float
    seconds: float
    images_per_second: float
    is_best: bool
    ema_val_accuracy: float | None = None
    ema_val_loss: float | None = None
    calibration: Calibration | None = None

    @property
    def averaged(self) -> bool:
        """Whether the averaged weights are the better ones."""
        return self.judged != (self.val_accuracy, self.val_loss)

    @property
    def judged(self) -> tuple[float, float]:
        """Accuracy and loss on validation of the better of the weights and their average."""
        own = (self.val_accuracy, self.val_loss)
        return better(own, (self.ema_val_accuracy, self.ema_val_loss)) or own


@dataclass(frozen=True, slots=True)
class StoppedEarly:
    """Validation has not become better for ``patience`` epochs."""

    epoch: int
    patience: int


@dataclass(frozen=True, slots=True)
class Noticed:
    """Something went wrong that does not end the run; ``message`` says what, and what is done about it."""

    message: str


Event = PhaseStarted | Worked | StepEnded | LossSampled | EpochEnded | StoppedEarly | Noticed
Observer = Callable[[Event], None]


def tell_all(*observers: Observer) -> Observer:
    """Return one observer that tells several, in their order."""

    def notify(event: Event) -> None:
        for observer in observers:
            observer(event)

    return notify

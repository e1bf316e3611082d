"""What happens during a run, as small immutable records. Observers receive them and cannot steer. No torch here.

The loop in pseudocode, with where each event fires::

    for phase in phases:                        # training/fit.py
        compute the features to be cached         -> Worked("caching features"), several times
                                                  -> PhaseStarted
        for epoch in phase:
            if no improvement for --early-stop epochs:
                end the training                  -> StoppedEarly
            for batch in epoch:
                take an optimizer step            -> LossSampled (every --log-every steps), then StepEnded
            or, as one step, fit the head         -> Worked("fitting the head"), several times
            validate the weights                  -> Worked("validating"), several times
            validate their average, if any        -> Worked("validating the average")
                                                  -> EpochEnded
    load the best model, evaluate it              -> Worked("testing"), Worked("measuring the training images")
    anything that goes wrong without ending the run -> Noticed

Each event reaches the observers in one order (`notify_all`): recorder, saver, history, screen. The recorder comes first
because what a checkpoint covers is never measured again: the saver has the recorder write its points to the journal on
disk before it writes the checkpoint. A process killed in between repeats the steps, and equal points count once; in the
opposite order, the curves would lose them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from tl_cli.evaluation.scores import EpochEnded as EpochEnded

PhaseName = Literal["head", "fine-tune"]
Activity = Literal[
    "caching features",
    "fitting the head",
    "validating",
    "validating the average",
    "testing",
    "measuring the training images",
]


@dataclass(frozen=True, slots=True)
class PhaseStarted:
    """A phase begins, or continues in a resumed run."""

    name: PhaseName
    epochs: tuple[int, int]
    """Its first and last epoch, from 1."""
    steps_per_epoch: int
    """Optimizer steps per epoch."""
    steps: int
    """Optimizer steps of the whole phase; its last epoch may be cut short."""
    step: int
    """Optimizer steps before the phase."""
    trainable: int
    """Parameters that train."""
    frozen: int
    """Parameters that do not."""
    cached: bool
    """Whether it trains on features that were computed once."""
    reused: bool = False
    """Whether an earlier run computed those features."""
    ended: int = 0
    """Steps in the run's complete epochs."""
    into: int = 0
    """Steps already taken in the epoch that a resumed run continues."""


@dataclass(frozen=True, slots=True)
class Worked:
    """Part of an activity other than training steps is done; counted in images, regressions for the head."""

    activity: Activity
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class StepEnded:
    """One optimizer step, counted from 1 over the whole run, on a batch of ``images``."""

    step: int
    epoch: int
    images: int


@dataclass(frozen=True, slots=True)
class LossSampled:
    """The mean cross-entropy of one batch in nats, and the learning rates of its step (0: frozen)."""

    step: int
    epoch: int
    loss: float
    lr_head: float
    lr_backbone: float


@dataclass(frozen=True, slots=True)
class StoppedEarly:
    """Validation has not improved for ``patience`` epochs."""

    epoch: int
    patience: int


@dataclass(frozen=True, slots=True)
class Noticed:
    """A problem that does not end the run; ``message`` states it and what is done about it."""

    message: str


Event = PhaseStarted | Worked | StepEnded | LossSampled | EpochEnded | StoppedEarly | Noticed
Observer = Callable[[Event], None]


def notify_all(*observers: Observer) -> Observer:
    """Return one observer that passes each event to several, in the order given; see above for the order of a run."""

    def notify(event: Event) -> None:
        for observer in observers:
            observer(event)

    return notify

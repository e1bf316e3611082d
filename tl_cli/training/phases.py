"""The phases of a run, and how the learning rate moves within one."""

import math
from dataclasses import dataclass

from tl_cli.choices import ScheduleName
from tl_cli.models.freezing import BatchNormMode
from tl_cli.training.config import TrainConfig, phase_ends
from tl_cli.training.events import PhaseName

# torch's OneCycleLR: start at 1/25 of the peak, end at 1/10,000 of the start, 30% of the steps to rise.
_ONE_CYCLE_START = 1 / 25
_ONE_CYCLE_END = _ONE_CYCLE_START / 1e4
_ONE_CYCLE_RISE = 0.3


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of epochs in which the same parameters train.

    Attributes:
        first: its first epoch, from 1.
        last: its last epoch.
        lr_head: peak learning rate of the head.
        lr_backbone: peak learning rate of the backbone's last layer, 0 while it is frozen.
        bn: what BatchNorm statistics do.
        stage: which stage of unfreezing, from 1; 0 in the head phase.
        stages: how many there are.
    """

    name: PhaseName
    first: int
    last: int
    lr_head: float
    lr_backbone: float
    bn: BatchNormMode
    stage: int = 0
    stages: int = 1

    @property
    def title(self) -> str:
        """What it is called in a list of all phases."""
        return f"{self.name} {self.stage}" if self.stages > 1 else self.name

    @property
    def epochs(self) -> int:
        """How many epochs it has."""
        return self.last - self.first + 1


def phases_of(config: TrainConfig) -> tuple[Phase, ...]:
    """Return the phases of a config: the head alone, then everything, in stages where asked; either may be absent."""
    head = Phase("head", 1, config.freeze_epochs, config.lr, 0.0, "frozen")
    lr, stages = config.unfreeze_lr, config.unfreeze_stages
    ends = phase_ends(config.freeze_epochs, config.epochs, stages)
    tune = [
        Phase("fine-tune", ends[stage - 1] + 1, ends[stage], lr, lr, config.bn, stage, stages)
        for stage in range(1, stages + 1)
    ]
    return tuple(phase for phase in (head, *tune) if phase.epochs > 0)


def first_trained(phase: Phase, layers: int, frozen: int) -> int:
    """Return the place of the first layer that trains in a phase.

    Args:
        layers: how many there are, the head's included.
        frozen: how many at the beginning never train.
    """
    if phase.name == "head":
        return layers - 1
    below = layers - 1 - frozen
    return frozen + below - math.ceil(below * phase.stage / phase.stages)


def lr_factor(schedule: ScheduleName, warmup: float, step: int, steps: int) -> float:
    """Return the share of the peak learning rate at a step of a phase.

    Args:
        warmup: share of the steps in which ``cosine`` rises from zero.
        step: from 0 to ``steps`` - 1 within the phase.
        steps: of the phase.
    """
    if schedule == "cosine":
        # Zero would come after the last step: no step is wasted on it.
        progress = step / steps
        if progress < warmup:
            return (step + 1) / (warmup * steps + 1)
        return _cosine(1, 0, (progress - warmup) / (1 - warmup))
    if schedule == "one-cycle":
        top = max(0.0, _ONE_CYCLE_RISE * steps - 1)
        if step < top:
            return _cosine(_ONE_CYCLE_START, 1, step / top)
        return _cosine(1, _ONE_CYCLE_END, (step - top) / max(1.0, steps - 1 - top))
    # Constant; plateau lowers the rate itself, once an epoch.
    return 1.0


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2

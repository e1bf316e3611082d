"""The phases of a run, and the learning-rate schedule within a phase."""

import math
from dataclasses import dataclass

from tl_cli.choices import ScheduleName
from tl_cli.models.freezing import BatchNormMode
from tl_cli.training.config import TrainConfig, phase_ends
from tl_cli.training.events import PhaseName

# torch's OneCycleLR: start at 1/25 of the peak, end at 1/10,000 of the start, rise for 30% of the steps.
_ONE_CYCLE_START = 1 / 25
_ONE_CYCLE_END = _ONE_CYCLE_START / 1e4
_ONE_CYCLE_RISE = 0.3


@dataclass(frozen=True, slots=True)
class Phase:
    """Consecutive epochs in which the same parameters train.

    Attributes:
        first: its first epoch, from 1.
        last: its last epoch.
        lr_head: peak learning rate of the head.
        lr_backbone: peak learning rate of the backbone's last layer; 0 while it is frozen.
        bn: mode of the BatchNorm statistics.
        stage: unfreezing stage, from 1; 0 in the head phase.
        stages: number of unfreezing stages.
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
        """Its name in a list of all phases."""
        return f"{self.name} {self.stage}" if self.stages > 1 else self.name

    @property
    def epochs(self) -> int:
        """Number of epochs."""
        return self.last - self.first + 1


def phases_of(config: TrainConfig) -> tuple[Phase, ...]:
    """Return the phases of a config: the head alone, then the whole model, in stages if set; either may be absent."""
    head = Phase("head", 1, config.freeze_epochs, config.lr, 0.0, "frozen")
    lr, stages = config.unfreeze_lr, config.unfreeze_stages
    ends = phase_ends(config.freeze_epochs, config.epochs, stages)
    tune = [
        Phase("fine-tune", ends[stage - 1] + 1, ends[stage], lr, lr, config.bn, stage, stages)
        for stage in range(1, stages + 1)
    ]
    return tuple(phase for phase in (head, *tune) if phase.epochs > 0)


def first_trained(phase: Phase, layers: int, frozen: int) -> int:
    """Return the index of the first layer that trains in a phase.

    Args:
        layers: number of layers, including the head.
        frozen: number of layers at the beginning that never train.
    """
    if phase.name == "head":
        return layers - 1
    below = layers - 1 - frozen
    return frozen + below - math.ceil(below * phase.stage / phase.stages)


def lr_factor(schedule: ScheduleName, warmup: float, step: int, steps: int) -> float:
    """Return the factor of the peak learning rate at a step of a phase.

    Args:
        warmup: fraction of the steps in which ``cosine`` rises from zero.
        step: step within the phase, from 0 to ``steps`` - 1.
        steps: number of steps of the phase.
    """
    if schedule == "cosine":
        # The rate reaches zero after the last step, so that no step is wasted.
        progress = step / steps
        if progress < warmup:
            return (step + 1) / (warmup * steps + 1)
        return _cosine(1, 0, (progress - warmup) / (1 - warmup))
    if schedule == "one-cycle":
        top = max(0.0, _ONE_CYCLE_RISE * steps - 1)
        if step < top:
            return _cosine(_ONE_CYCLE_START, 1, step / top)
        return _cosine(1, _ONE_CYCLE_END, (step - top) / max(1.0, steps - 1 - top))
    # Constant; plateau lowers the rate separately, once per epoch.
    return 1.0


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2

"""The phases of a run."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tl_cli.models.freezing import BatchNormMode
from tl_cli.training.config import TrainConfig, phase_ends
from tl_cli.training.events import PhaseName


@dataclass(frozen=True, slots=True)
class Phase:
    """Consecutive epochs in which the same parameters train.

    Attributes:
        first: its first epoch, from 1.
        last: its last epoch.
        lr_head: peak learning rate of the head; 0 where it is fitted by regression.
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

    def peak_lr(self, group: Mapping[str, Any]) -> float:
        """Return the peak learning rate of an optimizer's group, as ``Strategy.parameter_groups`` makes them."""
        return float(self.lr_head if group["is_head"] else self.lr_backbone * group["share"])


def phases_of(config: TrainConfig) -> tuple[Phase, ...]:
    """Return the phases of a config: the head alone, then the whole model, in stages if set; either may be absent."""
    head = Phase("head", 1, config.freeze_epochs, config.lr if config.head_fit == "steps" else 0.0, 0.0, "frozen")
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

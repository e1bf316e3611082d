"""Optimizers, and how the learning rate moves within a phase."""

import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from tl_cli.choices import ScheduleName
from tl_cli.training.config import TrainConfig
from tl_cli.training.phases import Phase

_CLASSES = {name.lower(): kind for name, kind in vars(torch.optim).items() if isinstance(kind, type)}
# torch's OneCycleLR: start at 1/25 of the peak, end at 1/10,000 of the start, 30% of the steps to rise.
_ONE_CYCLE_START = 1 / 25
_ONE_CYCLE_END = _ONE_CYCLE_START / 1e4
_ONE_CYCLE_RISE = 0.3


def make_optimizer(config: TrainConfig, groups: list[dict[str, Any]]) -> Optimizer:
    """Return torch's optimizer of that name (``choices.OptimizerName``), with those of the settings that it takes.

    Args:
        groups: parameter groups as torch takes them, all of the run's from the start; each has ``is_head`` and
            ``share``, its fraction of the backbone's learning rate.
    """
    kind = _CLASSES[config.optimizer]
    # Fused: AdamW takes EfficientNet-B0's parameters in a quarter of the time on a CPU too, a tenth of a step at 32 px.
    settings = {"weight_decay": config.weight_decay, "momentum": config.momentum, "fused": True}
    taken = inspect.signature(kind).parameters
    optimizer: Optimizer = kind(groups, **{name: value for name, value in settings.items() if name in taken})
    return optimizer


def make_plateau(optimizer: Optimizer) -> ReduceLROnPlateau:
    """Return the schedule ``plateau`` with the blog's values: half the rate after 2 epochs without a lower loss."""
    return ReduceLROnPlateau(optimizer, factor=0.5, patience=2)


def begin_phase(optimizer: Optimizer, phase: Phase, schedule: ScheduleName) -> None:
    """Set the learning rates of a phase's first step.

    Only ``plateau`` needs it: it begins with the full rate after the head phase and keeps its lowered rate when further
    layers unfreeze. ``follow_schedule`` sets the rates of the others before each step.
    """
    if schedule != "plateau" or phase.stage <= 1:
        set_lr(optimizer, phase, 1.0)
        return
    peaks = [(group["lr"], _peak(group, phase)) for group in optimizer.param_groups]
    set_lr(optimizer, phase, max(lr / peak for lr, peak in peaks if lr and peak))


def begin_momentum(optimizer: Optimizer) -> None:
    """Give parameters that train for the first time a momentum of zero: torch's fused SGD takes all buffers or none."""
    for group in optimizer.param_groups:
        if not (isinstance(optimizer, SGD) and group["momentum"]):
            continue
        for parameter in group["params"]:
            if parameter.requires_grad and optimizer.state[parameter].get("momentum_buffer") is None:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def follow_schedule(optimizer: Optimizer, phase: Phase, config: TrainConfig, step: int, steps: int) -> None:
    """Set the learning rates of a step of a phase; ``plateau`` lowers them itself, after an epoch.

    Args:
        step: from 0 to ``steps`` - 1 within the phase.
        steps: of the phase.
    """
    if config.schedule != "plateau":
        set_lr(optimizer, phase, lr_factor(config.schedule, config.warmup, step, steps))


def set_lr(optimizer: Optimizer, phase: Phase, factor: float) -> None:
    """Set every group's learning rate to a fraction of its peak in a phase."""
    for group in optimizer.param_groups:
        group["lr"] = factor * _peak(group, phase)


def current_lrs(optimizer: Optimizer) -> tuple[float, float]:
    """Return the learning rates of the head and of the backbone's topmost layer that trains; 0 where none does."""
    groups = optimizer.param_groups
    rates = {part: [float(group["lr"]) for group in groups if group["is_head"] is part] for part in (True, False)}
    return max(rates[True]), max(rates[False], default=0.0)


def lr_factor(schedule: ScheduleName, warmup: float, step: int, steps: int) -> float:
    """Return the fraction of the peak learning rate at a step of a phase.

    Args:
        warmup: fraction of the steps in which ``cosine`` rises from zero.
        step: from 0 to ``steps`` - 1 within the phase.
        steps: of the phase.
    """
    if schedule == "cosine":
        # The zero would come after the last step, so that no step is wasted on it.
        progress = step / steps
        if progress < warmup:
            return (step + 1) / (warmup * steps + 1)
        return _cosine(1, 0, (progress - warmup) / (1 - warmup))
    if schedule == "one-cycle":
        top = max(0.0, _ONE_CYCLE_RISE * steps - 1)
        if step < top:
            return _cosine(_ONE_CYCLE_START, 1, step / top)
        return _cosine(1, _ONE_CYCLE_END, (step - top) / max(1.0, steps - 1 - top))
    return 1.0


def _peak(group: Mapping[str, Any], phase: Phase) -> float:
    """Return the phase's highest learning rate for a group; 0 where its parameters are frozen."""
    if not any(parameter.requires_grad for parameter in group["params"]):
        return 0.0
    return phase.peak_lr(group)


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2

"""How long a run would take and how much memory it would need, from a few real steps. The model is changed by them."""

import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

import torch

from tl_cli.training.machine import Autocasting, Machine
from tl_cli.training.phases import Phase
from tl_cli.training.setup import Plan, new_state, open_stage
from tl_cli.training.step import train_step

_TIMED_STEPS = 3
# A head's step on cached features took 0.8 ms on two 2020s server cores.
_HEAD_STEP_S = 1e-3


@dataclass(frozen=True, slots=True)
class Estimate:
    """A forecast.

    Attributes:
        seconds: by phase, features and validation included; and of the judgement at the end.
        memory_bytes: the largest amount that the process (or the GPU) held during the measured steps.
    """

    seconds: dict[str, float]
    memory_bytes: int

    @property
    def total(self) -> float:
        """Seconds in all."""
        return sum(self.seconds.values())


def estimate(plan: Plan) -> Estimate:
    """Return a forecast from one warm-up step and three timed ones of each kind."""
    train, val = len(plan.data.parts["train"]), len(plan.data.parts["val"])
    test = len(plan.data.parts.get("test", ()))
    forward = _seconds_per_image_forward(plan)
    seconds: dict[str, float] = {}
    for phase in plan.phases:
        title = f"{phase.name} {phase.stage}" if phase.stages > 1 else phase.name
        if plan.uses_cache(phase):
            views = train * (1 + plan.augmentation.flip) + val
            seconds[title] = views * forward + plan.steps_of(phase) * _HEAD_STEP_S
        else:
            step = _seconds_per_step(plan, phase)
            seconds[title] = plan.steps_of(phase) * step + phase.epochs * val * forward * (2 if plan.config.ema else 1)
    seconds["judging"] = (min(5000, train) + test) * forward
    return Estimate(seconds, _peak_memory(plan.machine))


def _seconds_per_image_forward(plan: Plan) -> float:
    plan.classifier.model.eval()
    loader = plan.loader(plan.data.parts["train"])
    batches = list(islice(loader.clean(), 2))
    network = Autocasting(plan.classifier.model, plan.machine)
    with torch.inference_mode():
        network(batches[0].inputs[:8])
        started = time.perf_counter()
        network(batches[-1].inputs)
        _wait(plan.machine)
    return (time.perf_counter() - started) / len(batches[-1].labels)


def _seconds_per_step(plan: Plan, phase: Phase) -> float:
    stage = open_stage(plan, phase, lambda event: None)
    state = new_state(plan)
    stage.network.train()
    batches = stage.train(0)
    times = []
    for batch in islice(batches, 1 + _TIMED_STEPS):
        train_step(stage.network, batch, state, plan.config, stage.objective, 1)
        _wait(plan.machine)
        times.append(time.perf_counter())
    if len(times) < 2:
        return _timed(lambda: train_step(stage.network, batch, state, plan.config, stage.objective, 1))
    return (times[-1] - times[0]) / (len(times) - 1)


def _timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _wait(machine: Machine) -> None:
    if machine.device.type == "cuda":
        torch.cuda.synchronize(machine.device)
    elif machine.device.type == "mps":
        torch.mps.synchronize()


def _peak_memory(machine: Machine) -> int:
    if machine.device.type == "cuda":
        return torch.cuda.max_memory_allocated(machine.device)
    if machine.device.type == "mps":
        return torch.mps.driver_allocated_memory()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

"""Estimated time and memory of a run, from a few real steps, which change the model's weights."""

import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from statistics import median

import torch

from tl_cli.compute.device import Autocasting, Machine
from tl_cli.data.batches import Batch
from tl_cli.training.cached_features import judged_views
from tl_cli.training.head_fit import images_read
from tl_cli.training.outcome import CLEAN_TRAIN_IMAGES
from tl_cli.training.phases import Phase
from tl_cli.training.plan import Plan, new_state
from tl_cli.training.step import train_step

_TIMED_STEPS = 9
_REGRESSION_IMAGES = 4096
# Importing MLflow, opening an existing store, drawing the curves and logging the model: CPU time of three runs on one
# thread of an AMD EPYC (Zen 4), 6 to 8 s.
_RECORDING_S = 7.0


@dataclass(frozen=True, slots=True)
class Estimate:
    """A forecast.

    Attributes:
        seconds: by part: start, each phase with its features and validation, final evaluation, recording.
        memory_bytes: peak memory of the process (or the GPU) during the measured steps.
    """

    seconds: dict[str, float]
    memory_bytes: int

    @property
    def total(self) -> float:
        """Seconds from the command to its last line."""
        return sum(self.seconds.values())


def estimate(plan: Plan, start_s: float) -> Estimate:
    """Return a forecast from one warm-up step and nine timed ones of each kind.

    Args:
        start_s: seconds from the command until the plan was ready, which a run needs too.
    """
    train, val = len(plan.data.parts["train"]), len(plan.data.parts["val"])
    test = len(plan.data.parts.get("test", ()))
    forward, views = _seconds_per_image_forward(plan), len(judged_views(plan.config))
    seconds = {"start": start_s}
    for phase in plan.phases:
        step = _seconds_of_regression(plan, phase) if plan.solves(phase) else _seconds_per_step(plan, phase)
        validated = phase.epochs * val * (2 if plan.config.ema else 1) * views
        if plan.uses_cache(phase):
            cached = plan.cached[phase.first]
            share = cached.cut.prefix_cost / (cached.cut.prefix_cost + cached.cut.tail_cost)
            passed = share * (len(cached.views) * train + views * val) + (1 - share) * validated
        else:
            passed = validated
        seconds[phase.title] = plan.steps_of(phase) * step + passed * forward
    seconds["final evaluation"] = views * (min(CLEAN_TRAIN_IMAGES, train) + test) * forward
    seconds["recording"] = _RECORDING_S
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
        plan.machine.wait()
    return (time.perf_counter() - started) / len(batches[-1].labels)


def _seconds_per_step(plan: Plan, phase: Phase) -> float:
    """Return the seconds per step after the first, on real images or on random features."""
    plan.strategy.freeze_for(phase)
    network, objective = plan.network(phase), plan.objective(mixes=not plan.uses_cache(phase))
    state = new_state(plan)
    network.train()
    times = []
    for batch in islice(_batches(plan, phase), 1 + _TIMED_STEPS):
        train_step(network, batch, state, plan.config, objective, 1)
        plan.machine.wait()
        times.append(time.perf_counter())
    # Their median: other programs may slow down some.
    return median(after - before for before, after in pairwise(times))


def _seconds_of_regression(plan: Plan, phase: Phase) -> float:
    """Return the seconds of a head's regression, from passes over random features of some images."""
    cached = plan.cached[phase.first]
    images = len(plan.data.parts["train"])
    count = min(_REGRESSION_IMAGES, images)
    device = plan.machine.device
    features = torch.randn(count, *cached.cut.shape, device=device)
    # Large random weights would give gradients too small for normal numbers, which are slow.
    weight = torch.zeros(cached.cut.shape[0], len(plan.data.classes), device=device, requires_grad=True)
    for number in range(1 + _TIMED_STEPS):
        if number == 1:  # the first pass is slower
            plan.machine.wait()
            started = time.perf_counter()
        (features @ weight).logsumexp(1).sum().backward()
    plan.machine.wait()
    per_image = (time.perf_counter() - started) / _TIMED_STEPS / count
    return per_image * len(cached.views) * images_read(images)


def _batches(plan: Plan, phase: Phase) -> Iterator[Batch]:
    """Yield batches like those of a phase, without end."""
    if not plan.uses_cache(phase):
        while True:
            yield from plan.train_loader(phase).train(plan.augmentation, plan.config.seed, 0)
    count = min(plan.images_per_step, len(plan.data.parts["train"]))
    features = torch.randn(count, *plan.cached[phase.first].cut.shape, device=plan.machine.device)
    while True:
        yield Batch(features, torch.zeros(count, dtype=torch.int64, device=plan.machine.device))


def _peak_memory(machine: Machine) -> int:
    if machine.device.type == "cuda":
        return torch.cuda.max_memory_allocated(machine.device)
    if machine.device.type == "mps":
        return torch.mps.driver_allocated_memory()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

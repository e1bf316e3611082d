"""Which layout, precision, number of threads and folding of BatchNorm a model trains fastest with, by timing steps."""

import json
import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from datetime import date
from hashlib import sha256
from pathlib import Path
from typing import Literal

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from tl_cli.choices import Layout, Precision
from tl_cli.compute.device import (
    Autocasting,
    Machine,
    bf16_may_be_fast,
    cores,
    device_name,
    idle_cores,
)
from tl_cli.errors import StorageError
from tl_cli.io.atomic import write_text
from tl_cli.io.download import cache_root
from tl_cli.models.freezing import batch_norms

Axis = Literal["threads", "layout", "precision", "fold"]

_FORMAT = 5
# Below this a probe cannot tell candidates apart.
_LEAST_BUDGET_S = 2.0
_ROUNDS = 3
# Steps of a whole probe, from which the number of images per step follows that fits the budget.
_STEPS = 40
# On fewer the fixed cost of a step decides: EfficientNet-Lite0 at 96 px from blocks.3 on, one thread of an Intel Xeon
# with AMX, bf16 against fp32 on 8, 16, 32, 64 images: 51 and 51, 106 and 77, 141 and 100, 153 and 99 images/s.
_FEWEST_IMAGES = 16
# A candidate that takes this many times as long as the best in the first round is not timed again.
_HOPELESS = 2.0
# A smaller gain is not worth mentioning.
_CLEAR = 1.05
# How much faster a candidate must be to be chosen: bfloat16 costs precision, threads are taken from other programs.
# Two threads on two busy cores took 4 times as long as one (2399 against 568 ms per step).
_MARGINS: dict[Axis, float] = {"threads": 1.10, "layout": 1.05, "precision": 1.15, "fold": 1.03}


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to compute."""

    layout: Layout = "channels-last"
    precision: Precision = "fp32"
    threads: int = 1
    fold: bool = True

    def describe(self, axis: Axis) -> str:
        """Return its value along an axis, for people: ``bf16``, ``2 threads``."""
        if axis == "threads":
            return f"{self.threads} thread{'s' * (self.threads > 1)}"
        if axis == "fold":
            return "BatchNorm folded" if self.fold else "BatchNorm apart"
        return self.layout if axis == "layout" else self.precision


@dataclass(frozen=True, slots=True)
class Work:
    """What is timed.

    Attributes:
        name: of the model in the zoo.
        device: of the model.
        input_size: side of an image in pixels.
        batch_size: images per step.
        trains: whether a step includes the backward pass; computing features does not.
    """

    name: str
    device: torch.device
    input_size: int
    batch_size: int
    trains: bool = True


@dataclass(frozen=True, slots=True)
class Comparison:
    """The decision along one axis.

    Attributes:
        winner: description of the chosen candidate.
        other: description of the fastest of the others.
        ratio: the other's seconds over the winner's; below 1 where a candidate was faster by less than its margin.
    """

    axis: Axis
    winner: str
    other: str
    ratio: float

    def __str__(self) -> str:
        if math.isinf(self.ratio):
            return f"{self.winner}; {self.other} fails here"
        if self.ratio < _CLEAR:
            return f"{self.winner}, with no clear gain from {self.other}"
        return f"{self.winner} {self.ratio:.1f}x as fast as {self.other}"


@dataclass(frozen=True, slots=True)
class Choice:
    """The fastest way to compute, and how it was found.

    Attributes:
        comparisons: one per axis that was open.
        took_s: duration of the probe in seconds.
        measured_on: ISO date.
        remembered: whether an earlier run measured it.
    """

    best: Candidate
    comparisons: tuple[Comparison, ...]
    took_s: float
    measured_on: str
    remembered: bool = False

    def why(self, axis: str | None = None) -> str:
        """Return the reason for the value of one axis, or of all, in one line."""
        when = f"remembered from {self.measured_on}" if self.remembered else f"measured in {self.took_s:.0f} s"
        return "; ".join([*(str(each) for each in self.comparisons if axis in (None, each.axis)), when])


# Returns the duration of one step of a candidate in seconds; infinity where it fails.
Timer = Callable[[Candidate], float]
Seconds = Mapping[Candidate, Sequence[float]]


def probe(
    model: nn.Module,
    work: Work,
    start: Candidate,
    fixed: Collection[Axis],
    *,
    budget_s: float,
    path: Path | None = None,
) -> Choice | None:
    """Return the fastest way to compute, remembered or measured now; None where measuring would not pay.

    The model is left as it is: a copy of it is timed on noise. The process's threads and random state are restored.

    Args:
        model: frozen as in the phase that is timed.
        start: what is used without a probe; the search begins there.
        fixed: the axes whose value in ``start`` stays, since the user gave it.
        budget_s: seconds that may be spent.
        path: file of remembered choices; None is in the user's cache folder.
    """
    if work.device.type not in ("cpu", "cuda"):
        return None
    path = path or cache_root() / "measured" / "probes.json"
    key = _key(model, work, {axis: getattr(start, axis) for axis in sorted(fixed)})
    known = _recall(path, key)
    if budget_s < _LEAST_BUDGET_S:
        is_open = "threads" not in fixed and work.device.type == "cpu"
        threads = idle_cores() if is_open else start.threads
        return replace(known, best=replace(known.best, threads=threads)) if known else None
    axes = open_axes(work, fixed)
    if known is not None:
        axes = {axis: values for axis, values in axes.items() if axis == "threads"}
        start = replace(known.best, threads=start.threads)
    started = time.perf_counter()
    with _process_restored(work.device):
        bench = _Bench(model, work)
        if axes and bench.fit(start, budget_s / _STEPS) < min(_FEWEST_IMAGES, work.batch_size):
            return None
        best, comparisons = search(start, axes, bench.seconds)
    if axes and not comparisons:
        return None  # no step of any candidate worked
    if known is not None:
        return replace(known, best=best, comparisons=known.comparisons + comparisons)
    choice = Choice(best, comparisons, time.perf_counter() - started, date.today().isoformat())
    _remember(path, key, choice)
    return choice


def search(
    start: Candidate, axes: Mapping[Axis, Sequence[object]], timer: Timer
) -> tuple[Candidate, tuple[Comparison, ...]]:
    """Return the best candidate, axis by axis, and the comparisons.

    Args:
        axes: each with its values, the safest first: a later one must beat it by the axis's margin.
    """
    best, comparisons = start, []
    for axis, values in axes.items():
        seconds = time_in_turns([replace(best, **{axis: value}) for value in values], timer)  # type: ignore[arg-type]
        fastest = {candidate: min(taken) for candidate, taken in seconds.items()}
        winner = _winner(axis, seconds)
        if math.isinf(fastest[winner]):
            continue  # none of them works
        other = min((each for each in seconds if each != winner), key=fastest.__getitem__)
        ratio = fastest[other] / fastest[winner]
        comparisons.append(Comparison(axis, winner.describe(axis), other.describe(axis), ratio))
        best = winner
    return best, tuple(comparisons)


def time_in_turns(candidates: Sequence[Candidate], timer: Timer, rounds: int = _ROUNDS) -> Seconds:
    """Return the seconds of each round; candidates take turns, so that other load slows all of them alike."""
    for candidate in candidates:
        timer(candidate)  # the first step includes one-time setup
    seconds = {candidate: [timer(candidate)] for candidate in candidates}
    limit = _HOPELESS * min(first for (first,) in seconds.values())
    hopeful = [candidate for candidate in candidates if seconds[candidate][0] <= limit]
    for _ in range(rounds - 1):
        for candidate in hopeful:
            seconds[candidate].append(timer(candidate))
    return seconds


def _winner(axis: Axis, seconds: Seconds) -> Candidate:
    best, *others = seconds
    for candidate in others:
        # More threads are much slower now and then, when other programs run: their slowest round counts.
        taken = (max if axis == "threads" else min)(seconds[candidate])
        if taken * _MARGINS[axis] <= min(seconds[best]):
            best = candidate
    return best


def open_axes(work: Work, fixed: Collection[Axis]) -> dict[Axis, Sequence[object]]:
    """Return the axes with a choice, in the order in which they are searched; layout first, on which precision depends.

    Args:
        fixed: the axes that the user has chosen.
    """
    on_cpu = work.device.type == "cpu"
    possible: dict[Axis, Sequence[object]] = {
        "layout": ("contiguous", "channels-last", *(("images-last",) if work.trains and on_cpu else ())),
        "precision": ("fp32", "bf16") if bf16_may_be_fast(work.device) else (),
        "fold": (False, True) if work.trains else (),
        "threads": thread_counts(cores()) if on_cpu else (),
    }
    return {axis: values for axis, values in possible.items() if axis not in fixed and len(values) > 1}


def thread_counts(available: int) -> tuple[int, ...]:
    """Return 1, 2, 4, ... and the number of all cores."""
    return tuple(sorted({*(1 << power for power in range(available.bit_length())), available}))


class _Bench:
    """A copy of a model that is timed on noise."""

    def __init__(self, model: nn.Module, work: Work) -> None:
        self._work = work
        self._model = deepcopy(model).train(work.trains)
        self._model.zero_grad(set_to_none=True)
        self._images = work.batch_size
        self._networks: dict[Candidate, Autocasting] = {}
        shape = (work.batch_size, 3, work.input_size, work.input_size)
        self._noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(work.device)

    def fit(self, candidate: Candidate, seconds: float) -> int:
        """Choose how many images a step has, so that it takes no longer than this; return their number."""
        self._images = min(self._work.batch_size, 2 * _FEWEST_IMAGES)
        self.seconds(candidate)
        per_image = self.seconds(candidate) / self._images
        self._images = max(1, min(self._work.batch_size, int(seconds / per_image)))
        return self._images

    def seconds(self, candidate: Candidate) -> float:
        """Return the duration of a step; infinity where it fails, for lack of memory or of an operation."""
        torch.set_num_threads(candidate.threads)
        machine = Machine(self._work.device, candidate.precision, candidate.layout, candidate.fold)
        machine.place(self._model)
        # Threads change nothing about a network.
        network = self._networks.setdefault(replace(candidate, threads=1), Autocasting(self._model, machine))
        images = self._noise[: self._images].contiguous(memory_format=machine.memory_format)
        machine.wait()
        started = time.perf_counter()
        try:
            self._step(network, images)
            machine.wait()
        except RuntimeError:
            self._model.zero_grad(set_to_none=True)
            if self._work.device.type == "cuda":
                torch.cuda.empty_cache()
            return math.inf
        return time.perf_counter() - started

    def _step(self, network: Autocasting, images: Tensor) -> None:
        if self._work.trains:
            network(images).square().mean().backward()
            self._model.zero_grad(set_to_none=True)
            return
        with torch.inference_mode():
            network(images)


@contextmanager
def _process_restored(device: torch.device) -> Iterator[None]:
    """Restore the process's threads and random state afterwards."""
    threads = torch.get_num_threads()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        torch.set_num_threads(threads)


def _recall(path: Path, key: str) -> Choice | None:
    """Return a remembered choice, without its threads: how many pay depends on what else the machine does now.

    A damaged file only costs a new measurement.
    """
    with suppress(ValidationError):
        choice = TypeAdapter(Choice).validate_python(_read(path).get(key), strict=False)
        kept = tuple(each for each in choice.comparisons if each.axis != "threads")
        return replace(choice, comparisons=kept, remembered=True)
    return None


def _remember(path: Path, key: str, choice: Choice) -> None:
    with suppress(StorageError):
        write_text(path, json.dumps(_read(path) | {key: asdict(choice)}, indent=1))


def _read(path: Path) -> dict[str, object]:
    with suppress(OSError, ValueError):
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict):
            return content
    return {}


def _key(model: nn.Module, work: Work, fixed: Mapping[Axis, object]) -> str:
    """Return everything that a choice depends on, as one line."""
    facts = (
        f"v{_FORMAT}",
        work.name,
        f"{work.input_size}px",
        f"{work.batch_size} images",
        "step" if work.trains else "forward",
        _digest((tuple(p.shape), p.requires_grad) for p in model.parameters()),
        _digest(norm.__dict__.get("train") is None for norm in batch_norms(model.modules())),
        device_name(work.device),
        f"{cores()} cores",
        f"torch {torch.__version__}",
        _digest(fixed.items()),
    )
    return " ".join(facts)


def _digest(facts: Iterable[object]) -> str:
    return sha256(repr(list(facts)).encode()).hexdigest()[:12]

"""Which layout, precision, number of threads and folding a model trains fastest with here, by timing real steps."""

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
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
    memory_format_of,
)
from tl_cli.errors import StorageError
from tl_cli.io.atomic import write_text
from tl_cli.io.download import cache_root
from tl_cli.models.freezing import batch_norms

_FORMAT = 2
# Below this a probe cannot tell candidates apart.
_LEAST_BUDGET_S = 2.0
_ROUNDS = 3
# Steps of a whole probe, so that the batch can be made to fit the budget: threads, layouts, precisions, folding.
_STEPS = 40
_FEWEST_IMAGES = 4
# A candidate that takes so many times as long as the best in the first round is not timed again.
_HOPELESS = 2.0
# Below this a gain is not spoken of.
_CLEAR = 1.05
# How much faster a candidate must be to be taken; bfloat16 has a price in precision, threads one in what other
# programs may want. Two threads on two busy cores took 4 times as long as one (2399 against 568 ms a step).
_MARGINS: dict["Axis", float] = {"threads": 1.10, "layout": 1.05, "precision": 1.15, "fold": 1.03}

Axis = Literal["threads", "layout", "precision", "fold"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to compute."""

    layout: Layout = "channels-last"
    precision: Precision = "fp32"
    threads: int = 1
    fold: bool = True


@dataclass(frozen=True, slots=True)
class Fixed:
    """What a person has chosen; None is left to the probe."""

    layout: Layout | None = None
    precision: Precision | None = None
    threads: int | None = None
    fold: bool | None = None


@dataclass(frozen=True, slots=True)
class Work:
    """What is timed.

    Attributes:
        name: the model's in the zoo.
        device: of the model.
        input_size: side of an image in pixels.
        batch_size: images of a step.
        trains: whether a step goes back through the network; a feature pass does not.
    """

    name: str
    device: torch.device
    input_size: int
    batch_size: int
    trains: bool = True


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds that a step took with a candidate, round by round."""

    candidate: Candidate
    seconds: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What was decided along one axis.

    Attributes:
        axis: which.
        winner: as a person would say it: ``bf16``, ``2 threads``.
        other: the best of the others.
        ratio: the other's seconds over the winner's; below the axis's margin the winner is the safer one.
    """

    axis: Axis
    winner: str
    other: str
    ratio: float

    def __str__(self) -> str:
        if math.isinf(self.ratio):
            return f"{self.winner}, for {self.other} fails here"
        if self.ratio < _CLEAR:
            return f"{self.winner}, with no clear gain from {self.other}"
        return f"{self.winner} {self.ratio:.1f}x as fast as {self.other}"


@dataclass(frozen=True, slots=True)
class Choice:
    """The fastest way, and how that was found.

    Attributes:
        best: what to compute with.
        comparisons: one for each axis that was open.
        timings: of every candidate.
        images: in a timed step.
        took_s: seconds that the probe took.
        measured_on: ISO date.
        remembered: whether an earlier run measured it.
    """

    best: Candidate
    comparisons: tuple[Comparison, ...]
    timings: tuple[Timing, ...]
    images: int
    took_s: float
    measured_on: str
    remembered: bool = False

    @property
    def why(self) -> str:
        """One line for people."""
        return "; ".join([*map(str, self.comparisons), self._when])

    def why_of(self, axis: str) -> str:
        """Return the reason of one value, for people."""
        said = [str(each) for each in self.comparisons if each.axis == axis]
        return "; ".join([*said, self._when])

    @property
    def _when(self) -> str:
        return f"remembered from {self.measured_on}" if self.remembered else f"measured in {self.took_s:.0f} s"


# Times one step of a candidate, in seconds.
Timer = Callable[[Candidate], float]


def probe(
    model: nn.Module, work: Work, fixed: Fixed, *, budget_s: float, machine: Machine, path: Path | None = None
) -> Choice | None:
    """Return the fastest way to compute, remembered or measured now; None where measuring would not pay.

    The model stays as it is: its copy works on noise. Process-wide threads and random state are put back.

    Args:
        model: frozen as in the phase that is timed.
        budget_s: seconds that may be spent.
        machine: what holds without a probe; the search begins there.
        path: of the file of what is remembered; None is in the user's cache folder.
    """
    if work.device.type not in ("cpu", "cuda"):
        return None
    memory = _Memory(path or cache_root() / "measured" / "probes.json")
    key = _key(model, work, fixed)
    known = memory.recall(key)
    axes = _axes(work, fixed)
    if budget_s < _LEAST_BUDGET_S:
        return _with_threads_of(known, fixed, machine) if known else None
    started = time.perf_counter()
    if known is not None:
        axes = [(axis, values) for axis, values in axes if axis == "threads"]
    with _undisturbed(work.device), _Bench(model, work) as bench:
        start = replace(known.best, threads=_start(fixed, machine).threads) if known else _start(fixed, machine)
        images = bench.fit(start, budget_s / _STEPS) if axes else work.batch_size
        if images < min(_FEWEST_IMAGES, work.batch_size):
            return None
        best, comparisons, timings = search(start, axes, bench.seconds)
        if timings and all(math.isinf(min(timing.seconds)) for timing in timings):
            return None
    took = time.perf_counter() - started
    if known is not None:
        return replace(
            known,
            best=best,
            comparisons=(*(each for each in known.comparisons if each.axis != "threads"), *comparisons),
            timings=(*known.timings, *timings),
            remembered=True,
        )
    choice = Choice(best, comparisons, timings, images, took, date.today().isoformat())
    memory.keep(key, choice)
    return choice


def _with_threads_of(known: Choice, fixed: Fixed, machine: Machine) -> Choice:
    """Return what is remembered but for the threads: how many pay depends on what else the machine does now."""
    idle = idle_cores() if machine.device.type == "cpu" else torch.get_num_threads()
    best = replace(known.best, threads=fixed.threads or idle)
    kept = tuple(each for each in known.comparisons if each.axis != "threads")
    return replace(known, best=best, comparisons=kept, remembered=True)


def search(
    start: Candidate, axes: Sequence[tuple[Axis, Sequence[object]]], timer: Timer, rounds: int = _ROUNDS
) -> tuple[Candidate, tuple[Comparison, ...], tuple[Timing, ...]]:
    """Return the best candidate, axis by axis, with what was compared and timed.

    Along an axis the candidates take turns, so that what else the machine does meets them alike.

    Args:
        axes: with the values of each, the safest first: a later one must beat it by the axis's margin.
    """
    best, comparisons, timings = start, [], []
    for axis, values in axes:
        if len(values) < 2:
            continue
        candidates = [replace(best, **{axis: value}) for value in values]  # type: ignore[arg-type]
        found = _timed(candidates, timer, rounds)
        timings += found
        winner = _winner(axis, found)
        if math.isinf(min(winner.seconds)):
            continue  # none of them works
        rest = [timing for timing in found if timing is not winner]
        other = min(rest, key=lambda timing: min(timing.seconds))
        ratio = min(other.seconds) / min(winner.seconds)
        comparisons.append(Comparison(axis, _say(axis, winner.candidate), _say(axis, other.candidate), ratio))
        best = winner.candidate
    return best, tuple(comparisons), tuple(timings)


def _timed(candidates: Sequence[Candidate], timer: Timer, rounds: int) -> list[Timing]:
    for candidate in candidates:
        timer(candidate)  # the first step pays for what is set up once
    seconds = {candidate: [timer(candidate)] for candidate in candidates}
    bound = _HOPELESS * min(first for (first,) in seconds.values())
    hopeful = [candidate for candidate in candidates if seconds[candidate][0] <= bound]
    for _ in range(rounds - 1):
        for candidate in hopeful:
            seconds[candidate].append(timer(candidate))
    return [Timing(candidate, tuple(taken)) for candidate, taken in seconds.items()]


def _winner(axis: Axis, timings: Sequence[Timing]) -> Timing:
    best = timings[0]
    for timing in timings[1:]:
        # Threads collapse now and then where others are busy: the slowest round counts, not the fastest.
        theirs = max(timing.seconds) if axis == "threads" else min(timing.seconds)
        if theirs * _MARGINS[axis] <= min(best.seconds):
            best = timing
    return best


def _say(axis: Axis, candidate: Candidate) -> str:
    if axis == "threads":
        return f"{candidate.threads} thread{'s' if candidate.threads > 1 else ''}"
    if axis == "fold":
        return "BatchNorm folded" if candidate.fold else "BatchNorm apart"
    return candidate.layout if axis == "layout" else candidate.precision


def _start(fixed: Fixed, machine: Machine) -> Candidate:
    layout: Layout = "channels-last" if machine.memory_format == torch.channels_last else "contiguous"
    is_cpu = machine.device.type == "cpu"
    return Candidate(
        layout=fixed.layout or layout,
        precision=fixed.precision or machine.precision,
        threads=fixed.threads or (1 if is_cpu else torch.get_num_threads()),
        fold=machine.fold if machine.fold is not None else is_cpu,
    )


def _axes(work: Work, fixed: Fixed) -> list[tuple[Axis, Sequence[object]]]:
    """Return what is open, in the order in which it is settled; precision after layout, on which it depends most."""
    axes: list[tuple[Axis, Sequence[object]]] = []
    if fixed.layout is None:
        axes.append(("layout", ("contiguous", "channels-last")))
    if fixed.precision is None and bf16_may_be_fast(work.device):
        axes.append(("precision", ("fp32", "bf16")))
    if fixed.fold is None and work.trains:
        axes.append(("fold", (False, True)))
    if fixed.threads is None and work.device.type == "cpu":
        axes.append(("threads", thread_counts(cores())))
    return axes


def thread_counts(available: int) -> tuple[int, ...]:
    """Return 1, 2, 4, ... and all of the cores."""
    return tuple(sorted({*(1 << power for power in range(available.bit_length())), available}))


class _Bench:
    """A copy of a model that is timed on noise."""

    def __init__(self, model: nn.Module, work: Work) -> None:
        self._work = work
        self._model = deepcopy(model)
        self._images = work.batch_size
        self._networks: dict[Candidate, Autocasting] = {}
        generator = torch.Generator().manual_seed(0)
        side = work.input_size
        self._noise = torch.randn((work.batch_size, 3, side, side), generator=generator).to(work.device)

    def __enter__(self) -> "_Bench":
        self._model.zero_grad(set_to_none=True)
        if self._work.trains:
            self._model.train()
        else:
            self._model.eval()
        return self

    def __exit__(self, *_: object) -> None:
        self._networks.clear()

    def fit(self, candidate: Candidate, seconds: float) -> int:
        """Choose how many images a step has, so that it takes no longer than this; return their number."""
        self._images = min(self._work.batch_size, 2 * _FEWEST_IMAGES)
        self.seconds(candidate)
        each = self.seconds(candidate) / self._images
        self._images = max(1, min(self._work.batch_size, int(seconds / each)))
        return self._images

    def seconds(self, candidate: Candidate) -> float:
        """Return how long a step takes; infinity where it fails, for want of memory or of an operation."""
        torch.set_num_threads(candidate.threads)
        network = self._network(candidate)
        images = self._noise[: self._images].contiguous(memory_format=memory_format_of(candidate.layout))
        self._wait()
        started = time.perf_counter()
        try:
            self._step(network, images)
            self._wait()
        except RuntimeError:
            self._model.zero_grad(set_to_none=True)
            if self._work.device.type == "cuda":
                torch.cuda.empty_cache()
            return math.inf
        return time.perf_counter() - started

    def _network(self, candidate: Candidate) -> Autocasting:
        machine = Machine(self._work.device, candidate.precision, memory_format_of(candidate.layout), candidate.fold)
        machine.place(self._model)
        # Threads change nothing about a network.
        return self._networks.setdefault(replace(candidate, threads=1), Autocasting(self._model, machine))

    def _step(self, network: Autocasting, images: Tensor) -> None:
        if self._work.trains:
            network(images).square().mean().backward()
            self._model.zero_grad(set_to_none=True)
            return
        with torch.inference_mode():
            network(images)

    def _wait(self) -> None:
        if self._work.device.type == "cuda":
            torch.cuda.synchronize(self._work.device)


@contextmanager
def _undisturbed(device: torch.device) -> Iterator[None]:
    """Put the process's threads and random state back afterwards."""
    threads = torch.get_num_threads()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True, slots=True)
class _Memory:
    """What earlier probes found, in a file; one that is torn or cannot be written only costs time."""

    path: Path
    choices: TypeAdapter[Choice] = field(default_factory=lambda: TypeAdapter(Choice))

    def recall(self, key: str) -> Choice | None:
        with suppress(ValidationError):
            return self.choices.validate_python(self._read().get(key), strict=False)
        return None

    def keep(self, key: str, choice: Choice) -> None:
        with suppress(StorageError):
            write_text(self.path, json.dumps(self._read() | {key: asdict(choice)}, indent=1))

    def _read(self) -> dict[str, object]:
        with suppress(OSError, ValueError):
            content = json.loads(self.path.read_text(encoding="utf-8"))
            if isinstance(content, dict):
                return content
        return {}


def _key(model: nn.Module, work: Work, fixed: Fixed) -> str:
    """Return what a choice depends on, as one line."""
    parameters = list(model.parameters())
    norms = batch_norms(model.modules())
    return " ".join(
        map(
            str,
            (
                f"v{_FORMAT}",
                work.name,
                f"{work.input_size}px",
                f"{work.batch_size} images",
                "step" if work.trains else "forward",
                _digest((tuple(p.shape), p.requires_grad) for p in parameters),
                _digest(norm.__dict__.get("train") is None for norm in norms),
                device_name(work.device),
                f"{cores()} cores",
                f"torch {torch.__version__}",
                _digest(asdict(fixed).items()),
            ),
        )
    )


def _digest(facts: Iterable[object]) -> str:
    return sha256(repr(list(facts)).encode()).hexdigest()[:12]

"""The rows of the benchmark: the work, its sides and its goals."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Literal

from tests.benchmarks import blog, engine
from tests.benchmarks.material import NATIVE, Pictures
from tests.benchmarks.timing import Bench, Timed, Work, alternate, now, print_progress

_ROOT = Path(__file__).parents[2]
_HEAD_EPOCHS = 5
_FEWEST_HELPS = 5
_MILLION = 1_000_000
_LIST = """
import resource, sys, time
from tl_cli.contract import DataSpec
from tl_cli.data.dataset import open_data

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)

before, started = peak(), time.perf_counter()
open_data(DataSpec(source=sys.argv[1], layout="classes", split_seed=0, val_fraction=0.1), workers=2)
print(time.perf_counter() - started, peak() - before)
"""


@dataclass(frozen=True, slots=True)
class Goal:
    """The goals of a figure: the floor that it must reach, and the aim that it should reach."""

    floor: float
    aim: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """One line of the report.

    Attributes:
        work: description of the work.
        baseline: the side that ``tl`` is compared with; "" if there is none.
        kind: a speed-up, a cost and plain seconds are measured in seconds, a share in images per second. A cost is
            a share too; less is better.
        theirs: the baseline's rounds.
        ours: the rounds of ``tl``.
        notes: information needed to interpret the number.
        rounds: all measurements of each round, by side.
    """

    work: str
    baseline: str
    kind: Literal["speed-up", "share", "cost", "seconds"]
    theirs: tuple[float, ...]
    ours: tuple[float, ...]
    goal: Goal | None = None
    notes: tuple[str, ...] = ()
    rounds: Mapping[str, list[Timed]] | None = None

    @property
    def figure(self) -> float:
        """The median of the rounds' figures: within a round, a busy machine was busy for both sides."""
        return median(self.figures)

    @property
    def figures(self) -> tuple[float, ...]:
        """The ratio of the two sides in each round, or ``tl``'s own value where there is no baseline."""
        theirs = self.theirs or (1.0,) * len(self.ours)
        return tuple(_figure(self.kind, a, b) for a, b in zip(theirs, self.ours, strict=True))

    @property
    def verdict(self) -> str:
        """Whether floor and aim are reached."""
        if self.goal is None:
            return ""
        sign = -1 if self.kind in ("seconds", "cost") else 1
        if sign * self.figure >= sign * self.goal.aim:
            return "aim"
        return "floor" if sign * self.figure >= sign * self.goal.floor else "BELOW"


Row = Callable[[Bench], list[Comparison]]


def _figure(kind: str, theirs: float, ours: float) -> float:
    return theirs / ours if kind == "speed-up" else ours / theirs


def _head(bench: Bench, *, size: int, fewer: int, goals: Mapping[blog.Kind, Goal]) -> list[Comparison]:
    """Five epochs of the head alone; ``fewer`` times fewer images and steps than the bench has."""
    work = Work("efficientnet_b0", size, _HEAD_EPOCHS, frozen=True, steps=max(2, bench.steps // fewer))
    pictures = bench.material.pictures(max(10 * fewer, bench.count) // fewer)
    return _compare(bench, work, pictures, goals)


def _tune(bench: Bench, *, model: str, goal: Goal) -> list[Comparison]:
    """One epoch with everything unfrozen."""
    work = Work(model, bench.size or NATIVE, 1, frozen=False, steps=bench.steps)
    return _compare(bench, work, bench.material.pictures(bench.count), {"blog": goal})


def _compare(bench: Bench, work: Work, pictures: Pictures, goals: Mapping[blog.Kind, Goal]) -> list[Comparison]:
    weights = str(bench.material.weights(work.model, work.input_size))

    def sides(seen: Pictures) -> dict[str, Callable[[], Timed]]:
        every: dict[str, Callable[[], Timed]] = {
            kind: partial(blog.run, kind, work, seen, bench, weights) for kind in goals
        }
        return every | {"tl": partial(engine.run, work, seen, bench, weights)}

    if not bench.is_tiny:
        print_progress("  warming up")
        alternate(sides(bench.material.pictures(2 * bench.batch_size)), 1)
    rounds = alternate(sides(pictures), bench.rounds)
    ours = rounds["tl"]
    return [
        Comparison(
            work=_describe(work, pictures),
            baseline=kind,
            kind="speed-up",
            theirs=tuple(side.seconds for side in rounds[kind]),
            ours=tuple(side.seconds for side in ours),
            goal=goal if bench.has_goals else None,
            notes=_notes(rounds[kind], ours),
            rounds={kind: rounds[kind], "tl": ours},
        )
        for kind, goal in goals.items()
    ]


def _describe(work: Work, pictures: Pictures) -> str:
    what = f"head, {work.epochs} epochs" if work.frozen else "fine-tuning, 1 epoch"
    return f"{what}, {work.model} @{work.input_size}, {pictures.train:,} + {pictures.val:,} images"


def _notes(theirs: list[Timed], ours: list[Timed]) -> tuple[str, ...]:
    slow, fast = theirs[0], ours[0]
    without = median(side.loop_seconds for side in theirs) / median(side.loop_seconds for side in ours)
    notes = [
        f"setup takes {median(side.setup_seconds for side in theirs):.2f} s and "
        f"{median(side.setup_seconds for side in ours):.2f} s; without it the ratio is {without:.1f}x",
        f"threads: {slow.threads} and {fast.threads}; tl runs on {fast.note}",
    ]
    if slow.measured < slow.images:
        notes.insert(0, f"baseline extrapolated from {slow.measured:,} of {slow.images:,} training images")
    return tuple(notes)


def _ceiling(bench: Bench, *, model: str, goal: Goal) -> list[Comparison]:
    """Training speed as a share of the same steps without data."""
    work = Work(model, bench.size or NATIVE, 1, frozen=False, steps=bench.steps)
    weights = str(bench.material.weights(model, work.input_size))
    rounds = alternate({"tl": partial(engine.rates, work, bench, weights)}, bench.rounds)["tl"]
    return [
        Comparison(
            work=f"training images/s, {model} @{work.input_size}",
            baseline="ceiling",
            kind="share",
            theirs=tuple(rates.ceiling for rates in rounds),
            ours=tuple(rates.trained for rates in rounds),
            goal=goal if bench.has_goals else None,
            notes=(f"{rounds[0].images:,} images a round; {rounds[0].note}",),
        )
    ]


def _observers(bench: Bench, *, goal: Goal) -> list[Comparison]:
    """The time of a run's observers as a share of that of its steps: large ones and the smallest possible."""
    found = []
    for epochs, frozen in ((1, False), (_HEAD_EPOCHS, True)):
        work = Work("efficientnet_b0", bench.size or NATIVE, epochs, frozen=frozen, steps=bench.steps)
        pictures = bench.material.pictures(bench.count)
        weights = str(bench.material.weights(work.model, work.input_size))
        rounds = alternate({"tl": partial(engine.run_observed, work, pictures, bench, weights)}, bench.rounds)["tl"]
        each = 1000 * median(observed.training / observed.steps for observed in rounds)
        ends = 1000 * median(observed.at_ends / epochs for observed in rounds)
        found.append(
            Comparison(
                work=f"telling observers, {_describe(work, pictures)}",
                baseline="steps",
                kind="cost",
                theirs=tuple(observed.training for observed in rounds),
                ours=tuple(observed.in_steps for observed in rounds),
                goal=goal if bench.has_goals else None,
                notes=(f"a step takes {each:.2f} ms; at the end of an epoch, checkpoint included, {ends:.0f} ms more",),
            )
        )
    return found


def _help(bench: Bench, *, goal: Goal) -> list[Comparison]:
    """Wall time of ``tl --help`` in a new process."""
    count = 1 if bench.is_tiny else max(_FEWEST_HELPS, bench.rounds)
    # The first call may write bytecode.
    seconds = alternate({"tl": _run_help}, 1 + count)["tl"][1:]
    return [Comparison("tl --help", "", "seconds", (), tuple(seconds), goal if bench.has_goals else None)]


def _run_help() -> float:
    started = now("cpu")
    command = [sys.executable, "-m", "tl_cli", "--help"]
    subprocess.run(command, cwd=_ROOT, env=dict(os.environ), stdout=subprocess.DEVNULL, check=True)
    return now("cpu") - started


def _listing(bench: Bench) -> list[Comparison]:
    """Finding, splitting and hashing many images, in a new process."""
    count = 2000 if bench.is_tiny else _MILLION
    root = bench.material.listing(count)
    rounds = alternate({"tl": partial(_list_images, root)}, bench.rounds)["tl"]
    seconds, megabytes = (tuple(values) for values in zip(*rounds, strict=True))
    note = f"{median(megabytes):,.0f} MB of memory more at the peak than before; pictures are not decoded"
    return [Comparison(f"a folder of {count:,} images", "", "seconds", (), seconds, notes=(note,))]


def _list_images(root: Path) -> tuple[float, float]:
    """Return the seconds and the megabytes of memory."""
    command = [sys.executable, "-c", _LIST, str(root)]
    printed = subprocess.run(command, cwd=_ROOT, stdout=subprocess.PIPE, check=True, text=True).stdout
    seconds, megabytes = map(float, printed.split())
    return seconds, megabytes


# The goals of each row on a CPU.
ROWS: dict[str, Row] = {
    "head-32": partial(_head, size=32, fewer=1, goals={"blog": Goal(25, 38), "naive": Goal(15, 24)}),
    "head-224": partial(_head, size=224, fewer=10, goals={"naive": Goal(10, 20)}),
    "tune-b0": partial(_tune, model="efficientnet_b0", goal=Goal(2.5, 3.3)),
    "tune-resnet18": partial(_tune, model="resnet18", goal=Goal(1.2, 1.45)),
    "ceiling-b0": partial(_ceiling, model="efficientnet_b0", goal=Goal(0.9, 0.97)),
    "ceiling-resnet18": partial(_ceiling, model="resnet18", goal=Goal(0.9, 0.97)),
    "telling": partial(_observers, goal=Goal(0.01, 0.005)),
    "help": partial(_help, goal=Goal(0.35, 0.25)),
    "listing": _listing,
}

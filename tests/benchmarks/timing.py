"""What is timed and how: the sides take turns on one clock, each from the state in which torch started."""

import gc
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch

from tests.benchmarks.material import Material

DeviceName = Literal["cpu", "cuda"]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Bench:
    """How much is measured, and on what.

    Attributes:
        count: training images of the 32-pixel rows.
        batch_size: images an optimizer step, on every side.
        steps: optimizer steps after which a slow side is extrapolated.
        threads: of torch on every side; None leaves each side its own choice.
        size: input size of the rows that fine-tune, instead of 32.
        blog_workers: processes of the blog's DataLoader.
        is_tiny: only to see that everything works.
    """

    material: Material
    rounds: int = 3
    count: int = 10_000
    batch_size: int = 64
    steps: int = 40
    threads: int | None = None
    device: DeviceName = "cpu"
    size: int | None = None
    blog_workers: int = 0
    is_tiny: bool = False

    @property
    def has_goals(self) -> bool:
        """Whether the floors and aims, which are a CPU's, say anything of this run."""
        return self.device == "cpu" and self.size is None and not self.is_tiny


@dataclass(frozen=True, slots=True)
class Work:
    """A job that every side does.

    Attributes:
        model: torchvision's name.
        input_size: side of the network's input in pixels.
        epochs: in all.
        frozen: whether the backbone stays frozen throughout; if not, it trains throughout.
        steps: optimizer steps after which a slow side is extrapolated.
    """

    model: str
    input_size: int
    epochs: int
    frozen: bool
    steps: int


@dataclass(frozen=True, slots=True)
class Timed:
    """What one side took for its work.

    Attributes:
        seconds: of the whole work: setup, training, validation.
        setup_seconds: of those, before the first epoch.
        images: trained on, over all epochs.
        measured: how many of them were trained on while the clock ran; the rest is extrapolated.
        threads: torch's, at the end.
        note: what the side chose by itself.
    """

    seconds: float
    setup_seconds: float
    images: int
    measured: int
    threads: int
    note: str = ""

    @property
    def loop_seconds(self) -> float:
        """Seconds after the setup."""
        return self.seconds - self.setup_seconds


def alternate(sides: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Return what each side gave in each round; they take turns, so that a busy machine is busy for all."""
    threads, tries = torch.get_num_threads(), torch.backends.cudnn.benchmark
    given: dict[str, list[T]] = {name: [] for name in sides}
    for turn in range(rounds):
        for name, run in sides.items():
            say(f"  round {turn + 1} of {rounds}: {name}")
            gc.collect()
            given[name].append(run())
            torch.set_num_threads(threads)
            torch.backends.cudnn.benchmark = tries
    return given


def now(device: torch.device | str) -> float:
    """Return the seconds of a steady clock, once the device has done what it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def say(line: str) -> None:
    """Tell the person who waits; the report alone goes to stdout."""
    print(line, file=sys.stderr, flush=True)

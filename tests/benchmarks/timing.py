"""Timing: the sides take turns on one clock, each with the initial settings of torch."""

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
    """The amount of work to measure, and the inputs.

    Attributes:
        count: training images of the 32-pixel rows.
        batch_size: images per optimizer step, on every side.
        steps: optimizer steps after which a slow side is extrapolated.
        threads: torch's threads on every side; None leaves the choice to each side.
        size: input size of the rows that fine-tune, instead of 32.
        blog_workers: processes of the blog's DataLoader.
        is_tiny: run tiny amounts of work, only to test that everything works.
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
        """Whether the floors and aims, which are a CPU's, apply to this run."""
        return self.device == "cpu" and self.size is None and not self.is_tiny


@dataclass(frozen=True, slots=True)
class Work:
    """A job that every side does.

    Attributes:
        model: torchvision's name.
        input_size: side of the network's input in pixels.
        epochs: total epochs.
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
    """The time of one side for its work.

    Attributes:
        seconds: time of the whole work: setup, training, validation.
        setup_seconds: the part before the first epoch.
        images: number of images trained on, over all epochs.
        measured: number of images trained on while the clock ran; the rest is extrapolated.
        threads: torch's, at the end.
        note: settings that the side chose automatically.
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
    """Return the results of each side per round; sides take turns, so that load on the machine affects all."""
    threads, tries = torch.get_num_threads(), torch.backends.cudnn.benchmark
    given: dict[str, list[T]] = {name: [] for name in sides}
    for turn in range(rounds):
        for name, run in sides.items():
            print_progress(f"  round {turn + 1} of {rounds}: {name}")
            gc.collect()
            given[name].append(run())
            torch.set_num_threads(threads)
            torch.backends.cudnn.benchmark = tries
    return given


def now(device: torch.device | str) -> float:
    """Return the seconds of a monotonic clock after synchronizing the device."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def print_progress(line: str) -> None:
    """Print progress to stderr; only the report goes to stdout."""
    print(line, file=sys.stderr, flush=True)

"""The side of ``tl``: ``tl train`` from its flags to its last epoch, without screen, MLflow and saving."""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from tests.benchmarks.material import Pictures
from tests.benchmarks.timing import Bench, Timed, Work, now, print_progress
from tl_cli.data.batches import Batch
from tl_cli.tracking.recorder import Recorder
from tl_cli.tracking.store import open_store
from tl_cli.training import plan as setup
from tl_cli.training.config import Given
from tl_cli.training.events import EpochEnded, Event, LossSampled, Observer, StepEnded, notify_all
from tl_cli.training.fit import fit
from tl_cli.training.history import History
from tl_cli.training.plan import Plan, new_state, open_phase
from tl_cli.training.state import Every, Saver
from tl_cli.training.step import train_step
from tl_cli.ui.terminal.console import THEME
from tl_cli.ui.terminal.progress import LiveScreen, Title

# They fill caches: kernels, memory, decoded batches.
_WARM_STEPS = 3
_SYNTHETIC_BATCHES = 4


@dataclass(frozen=True, slots=True)
class Rates:
    """Training speed in images per second: with data loading, and of the same steps on tensors in memory."""

    trained: float
    ceiling: float
    images: int
    note: str


class Observed:
    """An observer that times another one: the seconds that a run spends in it.

    Attributes:
        training: all steps, from the first of an epoch to its last, including the observer.
        in_steps: the part spent in the observer at steps and losses.
        at_ends: the part spent in the observer at the ends of epochs, where checkpoints are written.
        steps: number of steps.
    """

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self.training = self.in_steps = self.at_ends = 0.0
        self.steps = 0
        self._images = 0

    def __call__(self, event: Event) -> None:
        began = time.perf_counter()
        self._observer(event)
        took = time.perf_counter() - began
        if isinstance(event, StepEnded | LossSampled):
            self.in_steps += took
            if isinstance(event, StepEnded):
                self.steps += 1
                self._images += event.images
        elif isinstance(event, EpochEnded):
            self.at_ends += took
            self.training += self._images / event.images_per_second
            self._images = 0


class _Counter:
    """An observer that counts the images trained on and reads the clock after some of the steps."""

    def __init__(self, clock: Callable[[], float], looks_after: tuple[int, ...] = ()) -> None:
        self.images = 0
        self.looks: list[tuple[float, int]] = []
        self._clock = clock
        self._looks_after = looks_after

    def __call__(self, event: Event) -> None:
        if isinstance(event, StepEnded):
            self.images += event.images
            if event.step in self._looks_after:
                self.looks.append((self._clock(), self.images))


@contextmanager
def cache_in(folder: Path) -> Iterator[None]:
    """Let ``tl`` cache decoded images, features and the like in ``folder``, not in the user's cache."""
    before = os.environ.get("TL_CACHE_DIR")
    os.environ["TL_CACHE_DIR"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["TL_CACHE_DIR"]
        else:
            os.environ["TL_CACHE_DIR"] = before


@contextmanager
def _first_run() -> Iterator[None]:
    """Use an empty cache: what an earlier run cached must not be counted as speed."""
    with tempfile.TemporaryDirectory(prefix="tl-benchmarks-cache-") as folder, cache_in(Path(folder)):
        yield


@_first_run()
def run(work: Work, pictures: Pictures, bench: Bench, weights: str) -> Timed:
    """Return the time of the whole work in a first run; nothing is extrapolated."""
    started = now(bench.device)
    plan = setup.prepare(Given.of(flags(work, pictures, bench, weights)))
    state = new_state(plan)
    ready = now(bench.device)
    counter = _Counter(lambda: now(bench.device))
    fit(plan, state, counter)
    return Timed(
        seconds=now(bench.device) - started,
        setup_seconds=ready - started,
        images=counter.images,
        measured=counter.images,
        threads=torch.get_num_threads(),
        note=plan.machine.describe(),
    )


def flags(work: Work, pictures: Pictures, bench: Bench, weights: str) -> dict[str, object]:
    """Return the flags of the work for ``tl train``; the default recipe sets the others."""
    given = {
        "model": work.model,
        "weights": weights,
        "data": str(pictures.root),
        "input_size": work.input_size,
        "batch_size": bench.batch_size,
        "epochs": work.epochs,
        "freeze_epochs": work.epochs if work.frozen else 0,
        "device": bench.device,
    }
    return given | ({"threads": bench.threads} if bench.threads else {})


@_first_run()
def rates(work: Work, bench: Bench, weights: str) -> Rates:
    """Return the speed of ``work.steps`` steps on images, and that of the same network without data loading."""
    last = _WARM_STEPS + work.steps
    pictures = bench.material.pictures(last * bench.batch_size)
    plan = setup.prepare(Given.of(flags(work, pictures, bench, weights)))
    in_epoch = -(-pictures.train // bench.batch_size)
    counter = _Counter(lambda: now(bench.device), (_WARM_STEPS, in_epoch))
    # Half before and half after, so that a machine that becomes slower or faster affects both.
    half = max(1, work.steps // 2)
    step_seconds = _synthetic_step_seconds(plan, half)
    fit(plan, new_state(plan), counter)
    step_seconds = (step_seconds + _synthetic_step_seconds(plan, half)) / 2
    (began, before), (ended, after) = counter.looks
    return Rates(
        trained=(after - before) / (ended - began),
        ceiling=plan.images_per_step / step_seconds,
        images=after - before,
        note=plan.machine.describe(),
    )


@_first_run()
def run_observed(work: Work, pictures: Pictures, bench: Bench, weights: str) -> Observed:
    """Return the cost of the observers of ``tl train``: an MLflow store, checkpoints, curves and the live screen."""
    plan = setup.prepare(Given.of(flags(work, pictures, bench, weights)))
    state, history = new_state(plan), History(plan.name)
    with (
        tempfile.TemporaryDirectory(prefix="tl-benchmarks-observed-") as folder,
        chdir(folder),
        Path(os.devnull).open("w") as nowhere,
    ):
        store = open_store(f"sqlite:///{folder}/mlflow.db")
        console = Console(file=nowhere, theme=THEME, force_terminal=True, width=120, height=40)
        with (
            Recorder(store, experiment_id=store.experiment("tl"), warn=print_progress) as recorder,
            LiveScreen(console, Title(plan.name, plan.machine.describe(), work.epochs), history) as screen,
        ):
            every = Every.parse(plan.config.checkpoint_every)
            saver = Saver(recorder.folder, state, plan.card(), every, recorder.write_journal)
            timed = Observed(notify_all(recorder, saver, history, screen))
            fit(plan, state, timed)
    return timed


def _synthetic_step_seconds(plan: Plan, steps: int) -> float:
    stage, state = open_phase(plan, plan.phases[-1], lambda event: None), new_state(plan)
    stage.network.train()
    ready = [_synthetic_batch(plan) for _ in range(_SYNTHETIC_BATCHES)]
    began = 0.0
    for step in range(_WARM_STEPS + steps):
        if step == _WARM_STEPS:
            began = now(plan.machine.device)
        train_step(stage.network, ready[step % len(ready)], state, plan.config, stage.objective, step + 1)
    return (now(plan.machine.device) - began) / steps


def _synthetic_batch(plan: Plan) -> Batch:
    count, size = plan.images_per_step, plan.classifier.preprocessing.crop
    options: dict[str, Any] = {"device": plan.machine.device}
    images = torch.randn(count, 3, size, size, **options).contiguous(memory_format=plan.machine.memory_format)
    return Batch(images, torch.randint(len(plan.data.classes), (count,), **options))

"""The records: seconds from the command to the accuracy on all test images of CIFAR-10, each by one command."""

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import torch
from torch import nn

from tests.benchmarks import blog
from tests.benchmarks.material import NATIVE, Pictures, PicturesError
from tests.benchmarks.rows import Comparison, Goal
from tests.benchmarks.timing import Bench, now, print_progress
from tl_cli.models.zoo import registry

MODEL = "efficientnet_lite0"
_ROOT = Path(__file__).parents[2]
_PRODUCT = 2048  # side of the reference's matrices
_BLOG_STEPS = 20
_TINY = ("--limit", "20", "--input-size", "32")


@dataclass(frozen=True, slots=True)
class Record:
    """A row: the options of ``tl train`` that reach an accuracy in a time.

    Attributes:
        accuracy: the mean over the seeds that is to be reached, a fraction.
        seconds: the time that the slowest seed may take.
    """

    accuracy: float
    seconds: float
    options: tuple[str, ...]


_FAST = ("--threads", "2", "--precision", "bf16", "--no-probe")
_TUNED = ("--recipe", "fast", "--freeze-epochs", "0", "--layout", "images-last", *_FAST)
# Chosen on 5,000 of the training images.
RECORDS = (
    Record(
        0.80,
        90,
        ("--recipe", "head", "--feature-views", "plain", "--limit", "32000", "--layout", "channels-last", *_FAST),
    ),
    Record(0.90, 300, (*_TUNED, "--freeze-until", "blocks.3", "--steps", "1200", "--tta", "flip")),
)


@dataclass(frozen=True, slots=True)
class Trained:
    """One training.

    Attributes:
        seconds: from the command to the end of the process, recording included.
        accuracy: on the test images, a fraction.
    """

    seconds: float
    accuracy: float


def measure(bench: Bench, images: Path, accuracies: list[float], seeds: int) -> list[Comparison]:
    """Return the seconds of each record, with the accuracy of every seed and the speed of the machine.

    Args:
        images: holds train/CLASS/ and test/CLASS/ of 32 x 32 images.
        accuracies: of the records to measure; empty: all.

    Raises:
        PicturesError: the folder is another one.
    """
    missing = [name for name in ("train", "test") if not (images / name).is_dir()]
    if missing:
        raise PicturesError(f"{images} has no {missing[0]}/; the records need train/CLASS/ and test/CLASS/")
    chosen = [record for record in RECORDS if not accuracies or record.accuracy in accuracies]
    reference = _reference(bench, images)
    return [_measured(record, images, seeds, reference, bench) for record in chosen]


def _measured(record: Record, images: Path, seeds: int, reference: str, bench: Bench) -> Comparison:
    trained = [_train(record, images.resolve(), seed, bench) for seed in range(seeds)]
    reached, slowest = mean(each.accuracy for each in trained), max(each.seconds for each in trained)
    shown = ", ".join(f"{each.accuracy:.2%}" for each in trained)
    verdict = "reached" if reached >= record.accuracy else "not reached"
    return Comparison(
        work=f"{record.accuracy:.0%} of {images.name}, {MODEL}",
        baseline="",
        kind="seconds",
        theirs=(),
        # The slowest seed counts, and no time counts that did not lead to the accuracy.
        ours=(slowest if reached >= record.accuracy else math.inf,),
        goal=Goal(record.seconds, record.seconds) if bench.has_goals else None,
        notes=(
            f"{verdict}: mean {reached:.2%}; by seed {shown}; slowest {slowest:.0f} s",
            f"tl train {MODEL} --data {images.name} {' '.join(record.options)} --seed N --split-seed N",
            reference,
        ),
    )


def _train(record: Record, images: Path, seed: int, bench: Bench) -> Trained:
    """Train once, in an empty folder with empty caches."""
    print_progress(f"  {record.accuracy:.0%}, seed {seed}")
    options = [*record.options, *(_TINY if bench.is_tiny else ()), "--seed", str(seed), "--split-seed", str(seed)]
    if bench.is_tiny and "--steps" in options:
        options[options.index("--steps") + 1] = "2"
    with tempfile.TemporaryDirectory(prefix="tl-record-") as folder:
        environment = {**os.environ, "XDG_CACHE_HOME": f"{folder}/cache", "PYTHONPATH": str(_ROOT)}
        environment.pop("MLFLOW_TRACKING_URI", None)
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "tl_cli", "train", MODEL, "--data", str(images), *options, "--device", bench.device, "--json"],
            cwd=folder, env=environment, check=True, stdout=subprocess.PIPE,
        )  # fmt: skip
        seconds = time.perf_counter() - started
    found = Trained(seconds, json.loads(done.stdout)["test_accuracy"])
    print_progress(f"    {found.accuracy:.2%} after {found.seconds:.0f} s")
    return found


def _reference(bench: Bench, images: Path) -> str:
    """Return how fast this machine is: a fixed matrix product, and steps of the blog's loop with the same network."""
    rates = []
    for dtype in (torch.float32, torch.bfloat16):
        one, other = torch.randn(2, _PRODUCT, _PRODUCT).to(dtype)
        one @ other
        started = time.perf_counter()
        for _ in range(5):
            one @ other
        rates.append(5 * 2 * _PRODUCT**3 / (time.perf_counter() - started) / 1e9)
    classes = sum(path.is_dir() for path in (images / "train").iterdir())
    model = registry.create(MODEL, classes).model
    model.classifier = nn.Linear(model.get_submodule("classifier").in_features, classes)  # type: ignore[arg-type]
    loop = blog.open_loop(
        model, model.classifier, blog.batches(Pictures(images, classes, 0, 0), NATIVE, bench, val="test"), bench.device
    )
    steps = 2 if bench.is_tiny else _BLOG_STEPS
    blog.train_epoch(loop, 2)
    started = now(bench.device)
    blog.train_epoch(loop, steps)
    seconds = now(bench.device) - started
    return (
        f"this machine: products of {_PRODUCT} x {_PRODUCT} matrices {rates[0]:,.0f} GFLOP/s in fp32, {rates[1]:,.0f} "
        f"in bf16; {steps} steps of the blog's loop {seconds:.1f} s ({torch.get_num_threads()} threads)"
    )

"""What a saved model says of pictures without labels, one after another, in memory that does not grow with them."""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from tl_cli.choices import DeviceName
from tl_cli.compute.device import Autocasting, eval_batch, inference_machine, worker_count
from tl_cli.contract import Preprocessing
from tl_cli.data.batches import Batch
from tl_cli.data.preprocess import normalise, read_input
from tl_cli.errors import DataError
from tl_cli.evaluation.logits import outputs
from tl_cli.evaluation.predicting import NOT_FINITE
from tl_cli.evaluation.task import TASKS
from tl_cli.models.zoo.registry import Classifier

_MOST_IN_A_BATCH = 64


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a model says of a picture.

    Attributes:
        path: as it was named.
        probabilities: (num_classes,) float32; None where the picture cannot be decoded, or the model returns NaN.
        error: the reason, else empty.
    """

    path: str
    probabilities: Tensor | None
    error: str = ""


def predict(
    classifier: Classifier,
    paths: Iterable[str],
    *,
    device: DeviceName = "auto",
    batch_size: int | None = None,
    workers: int | None = None,
    max_pixels: int | None = None,
) -> Iterator[Prediction]:
    """Yield a prediction for each path, in order. A picture that cannot be decoded does not stop the others.

    Args:
        batch_size: pictures computed at once; None chooses.
        workers: threads that decode; None chooses.
        max_pixels: how many may be decoded of a picture; None is the usual limit.

    Raises:
        UsageError: the device is not there.
    """
    machine = inference_machine(device)
    machine.place(classifier.model)
    network = Autocasting(classifier.model, machine)
    how = classifier.preprocessing
    size = batch_size or min(_MOST_IN_A_BATCH, eval_batch(machine.device, how.crop))
    threads = worker_count(workers)
    # Of each batch that is on its way: what its pictures are called, and which of them it holds.
    underway: deque[list[Prediction | str]] = deque()

    def batches() -> Iterator[Batch]:
        for group in _decoded(paths, how, size, max(1, threads), max_pixels):
            # A group without any picture goes the same way with one that nobody asked for: it does not wait for others.
            nothing = torch.zeros(3, how.crop, how.crop, dtype=torch.uint8)
            inputs = [found for _, found in group if isinstance(found, Tensor)] or [nothing]
            underway.append([path if isinstance(found, Tensor) else found for path, found in group])
            images = torch.stack(inputs).to(machine.device)
            # What is unknown is no label.
            yield Batch(normalise(images, how), torch.full((len(inputs),), -1))

    task = TASKS[classifier.task]
    for _, logits in outputs(network, batches(), at_once=machine.at_once):
        rows = iter(task.probabilities(logits.float(), classifier.temperature).cpu())
        yield from (
            each if isinstance(each, Prediction) else _prediction(each, next(rows)) for each in underway.popleft()
        )


def _prediction(path: str, probabilities: Tensor) -> Prediction:
    if probabilities.isfinite().all():
        return Prediction(path, probabilities)
    return Prediction(path, None, NOT_FINITE)


def _decoded(
    paths: Iterable[str], how: Preprocessing, size: int, workers: int, max_pixels: int | None
) -> Iterator[list[tuple[str, Tensor | Prediction]]]:
    """Yield groups of ``size`` pictures, cut to the input size, (3, crop, crop) uint8, or why they cannot be."""

    def load(path: str) -> Tensor | Prediction:
        # os.path takes any name: one that is too long for the system, or in a folder that may not be entered.
        if not os.path.isfile(path):  # noqa: PTH113
            what = "is a folder without pictures" if os.path.isdir(path) else "there is no such file"  # noqa: PTH112
            return Prediction(path, None, f"{path}: {what}")
        try:
            return read_input(Path(path), how, max_pixels)
        except DataError as error:
            return Prediction(path, None, str(error))

    remaining = iter(paths)
    waiting: deque[tuple[str, Future[Tensor | Prediction]]] = deque()
    # OpenMP's setting is the thread's own.
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            while True:
                # Up to two batches ahead of what is computed, and no more.
                for path in islice(remaining, 2 * size - len(waiting)):
                    waiting.append((path, pool.submit(load, path)))
                if not waiting:
                    return
                group = [waiting.popleft() for _ in range(min(size, len(waiting)))]
                yield [(path, future.result()) for path, future in group]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

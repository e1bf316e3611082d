"""Computes the logits of labelled images, batch by batch, in eval mode; saves and loads them."""

import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tl_cli.choices import TtaName
from tl_cli.compute.device import Autocasting, Machine
from tl_cli.contract import ModelCard, Preprocessing
from tl_cli.data.batches import Batch, Loader
from tl_cli.data.images import Images
from tl_cli.data.packed_names import Names
from tl_cli.errors import DataError, WeightsError
from tl_cli.io.atomic import replacing
from tl_cli.shortage import during

# Called with the number of images that are done.
Counted = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class LabelledLogits:
    """Logits with the true labels.

    Attributes:
        logits: (N, num_classes) float32, on the CPU.
        labels: (N,) int64.
        alone: logits of the images alone, if ``logits`` are means over each image and its mirror image.
    """

    logits: Tensor
    labels: Tensor
    alone: Tensor | None = None

    def scaled(self, temperature: float) -> "LabelledLogits":
        """Return a copy with the logits divided by a temperature."""
        alone = None if self.alone is None else self.alone / temperature
        return LabelledLogits(self.logits / temperature, self.labels, alone)


@dataclass(frozen=True, slots=True)
class SavedLogits:
    """Logits and labels as they were saved.

    Attributes:
        labelled: logits and labels.
        ids: of the images.
        classes: names, by label.
    """

    labelled: LabelledLogits
    ids: tuple[str, ...]
    classes: tuple[str, ...]


def save_logits(path: Path, labelled: LabelledLogits, ids: Names, classes: tuple[str, ...]) -> None:
    """Write logits, labels, image ids and class names as .npz without pickled objects.

    Raises:
        StorageError: the file cannot be written.
    """
    with replacing(path) as file:
        np.savez_compressed(
            file,
            logits=labelled.logits.numpy(),
            labels=labelled.labels.numpy(),
            ids=np.array(ids.tolist(), dtype=np.str_),
            classes=np.array(classes, dtype=np.str_),
        )


def load_logits(path: Path) -> SavedLogits:
    """Return what ``save_logits`` wrote.

    Raises:
        DataError: the file is not one of those.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            logits, labels, ids, classes = (file[name] for name in ("logits", "labels", "ids", "classes"))
            if (logits.dtype, labels.dtype, labels.ndim) != (np.float32, np.int64, 1) or not (
                logits.shape == (*labels.shape, *classes.shape)
                and labels.shape == ids.shape
                and ((labels >= 0) & (labels < len(classes))).all()
            ):
                raise ValueError("its arrays do not fit each other")
            labelled = LabelledLogits(torch.from_numpy(logits), torch.from_numpy(labels))
            return SavedLogits(labelled, tuple(ids.tolist()), tuple(classes.tolist()))
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} does not contain the saved logits of a model: {error}") from error


def inference_loader(
    images: Images, preprocessing: Preprocessing, machine: Machine, workers: int, batch_size: int | None = None
) -> Loader:
    """Return a loader of images for a model.

    Args:
        workers: number of threads that decode images.
        batch_size: None chooses.
    """
    size = batch_size or machine.eval_batch(preprocessing.crop)
    return Loader(images, preprocessing, size, machine.device, workers, memory_format=machine.memory_format)


@during("while evaluating", "--input-size", "--precision", "--workers", "--threads", "--device")
def compute_logits(
    network: nn.Module,
    batches: Iterable[Batch],
    counted: Counted = lambda done: None,
    *,
    at_once: int = 1,
    tta: TtaName = "none",
) -> LabelledLogits:
    """Return the logits of every batch. ``network`` is left in eval mode.

    Args:
        at_once: number of batches computed concurrently (``outputs``).
        tta: ``flip`` averages the logits of each image and its mirror image; ``batches`` then have both (`with_views`).
    """
    logits, labels, done = [], [], 0
    for batch, views in view_logits(network, batches, at_once=at_once, tta=tta):
        logits.append([view.float().cpu() for view in views])
        labels.append(batch.labels.cpu())
        done += len(batch.labels)
        counted(done)
    alone, *others = (torch.cat(view) for view in zip(*logits, strict=True))
    if not others:
        return LabelledLogits(alone, torch.cat(labels))
    return LabelledLogits((alone + others[0]) / 2, torch.cat(labels), alone)


def view_logits(
    network: nn.Module, batches: Iterable[Batch], *, at_once: int = 1, tta: TtaName = "none"
) -> Iterator[tuple[Batch, tuple[Tensor, ...]]]:
    """Yield each batch with its logits, and with ``flip`` those of its images mirrored left to right.

    Args:
        batches: as for ``compute_logits``.
    """
    computed = outputs(network, batches, at_once=at_once)
    for batch, logits in computed:
        yield batch, (logits, next(computed)[1]) if tta == "flip" else (logits,)


def with_views(batches: Iterable[Batch], tta: TtaName) -> Iterator[Batch]:
    """Yield the batches, with ``flip`` each followed by its mirror image."""
    for batch in batches:
        yield batch
        if tta == "flip":
            yield Batch(batch.inputs.flip(-1), batch.labels)


def mirror_doubt(card: ModelCard) -> str | None:
    """Return a warning if a model saw no mirrored images in training, or, before training, will see none."""
    epoch = card.epoch or card.config.get("epochs")
    only_plain = card.config.get("feature_views") == "plain" and card.config.get("freeze_epochs") == epoch
    if card.config.get("augment") in ("none", "shift") or only_plain:
        return "the model was not trained on mirrored images, which may have another meaning"
    return None


def check_finite(logits: Tensor, ids: Names | None = None) -> None:
    """Raise if a network returned NaN or infinity.

    Args:
        logits: (N, num_classes).
        ids: of the images, to name the first one in the error.

    Raises:
        WeightsError: its weights are broken.
    """
    wrong = torch.nonzero(~logits.isfinite().all(1)).flatten().tolist()
    if wrong:
        first = f", {ids[wrong[0]]} first" if ids is not None else ""
        raise WeightsError(
            f"the model returned NaN or infinity for {len(wrong):,} images{first}: its weights are broken"
        )


def outputs(network: nn.Module, batches: Iterable[Batch], *, at_once: int = 1) -> Iterator[tuple[Batch, Tensor]]:
    """Yield each batch with its logits, in order. ``network`` is left in eval mode.

    Args:
        at_once: number of batches computed concurrently, each on a thread with an equal share of torch's threads; the
            network must keep no state between forward passes.
    """
    network.eval()
    with network.constant() if isinstance(network, Autocasting) else nullcontext():
        if at_once == 1:
            for batch in batches:
                yield batch, _infer(network, batch)
        else:
            yield from _concurrently(network, batches, at_once)


def _concurrently(network: nn.Module, batches: Iterable[Batch], at_once: int) -> Iterator[tuple[Batch, Tensor]]:
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(at_once, initializer=torch.set_num_threads, initargs=(max(1, threads // at_once),))
    # Batches are prepared on one thread: idle OpenMP threads would spin and slow down the others.
    torch.set_num_threads(1)
    try:
        waiting: deque[tuple[Batch, Future[Tensor]]] = deque()
        for batch in batches:
            waiting.append((batch, pool.submit(_infer, network, batch)))
            # One more than is computed concurrently, so that no thread waits while a batch is prepared.
            if len(waiting) > at_once:
                yield _first(waiting)
        while waiting:
            yield _first(waiting)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def _first(waiting: deque[tuple[Batch, Future[Tensor]]]) -> tuple[Batch, Tensor]:
    batch, future = waiting.popleft()
    return batch, future.result()


def _infer(network: nn.Module, batch: Batch) -> Tensor:
    # Inference mode is set per thread.
    with torch.inference_mode():
        logits: Tensor = network(batch.inputs)
    return logits

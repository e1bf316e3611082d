"""Batches: which images come when, decoded ahead on threads, prepared on the training device."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tl_cli.contract import Preprocessing
from tl_cli.data import augmentation as augment
from tl_cli.data import policies
from tl_cli.data.augmentation import Augmentation
from tl_cli.data.decoding import normalise, resize_crop
from tl_cli.data.images import Images, PackedImages

_BATCHES_AHEAD = 3
# In place of an epoch, for what stays the same in all of them.
_ALL_EPOCHS = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Batch:
    """Inputs of one step.

    Attributes:
        inputs: images (B, 3, S, S) float32, normalised, or cached features (B, ...).
        labels: (B,) int64.
    """

    inputs: Tensor
    labels: Tensor


def steps_in_epoch(images: int, batch: int, *, drop_single: bool = False) -> int:
    """Return the optimizer steps of one pass.

    Args:
        batch: images a step.
        drop_single: a last step of one image is left out.
    """
    steps = -(-images // batch)
    is_single = images - (steps - 1) * batch == 1
    return steps - 1 if drop_single and steps > 1 and is_single else steps


def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """Return the order of ``count`` images in an epoch: a function of the arguments alone."""
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(count)


def training_order(
    labels: np.ndarray, seed: int, epoch: int, *, balanced: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Return which images come in an epoch, in order, and the key by which each is augmented.

    Args:
        labels: (N,) int64.
        balanced: every class equally often (``balanced_order``), else every image once.

    Returns:
        indices and keys, (N,) int64 each. A key is the index where the image comes for the first time in the epoch,
        and N more at each return, so that an image looks different when it comes again.
    """
    if balanced:
        return balanced_order(labels, seed, epoch)
    order = epoch_order(len(labels), seed, epoch)
    return order, order


def balanced_order(labels: np.ndarray, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Return indices and keys, as ``training_order`` does, of an epoch in which classes come equally often.

    Each class has its images in a circle of random order, on which every epoch goes on where the last one stopped:
    none comes again before all others of its class have come, within an epoch and from one to the next. Where N is not
    a multiple of the number of classes, the places that are left go round the classes in a random order too.
    """
    count = len(labels)
    random = np.random.Generator(np.random.Philox(key=[seed, _ALL_EPOCHS]))
    sizes = np.unique(labels, return_counts=True)[1]
    circles = [random.permutation(c) for c in np.split(np.argsort(labels, kind="stable"), np.cumsum(sizes)[:-1])]
    first = random.permutation(len(sizes))
    # Place p of all epochs together belongs to the class whose turn it is: that of rank p modulo the classes.
    start, end = (-((first - e * count) // len(sizes)) for e in (epoch, epoch + 1))
    places = zip(circles, start, end, strict=True)
    chosen = np.concatenate([circle[np.arange(begin, stop) % len(circle)] for circle, begin, stop in places])
    indices = chosen[epoch_order(count, seed, epoch)]
    return indices, indices + count * _occurrences(indices)


def _occurrences(values: np.ndarray) -> np.ndarray:
    """Return for each value how many equal ones stand before it."""
    order = np.argsort(values, kind="stable")
    ascending = values[order]
    before = np.empty_like(order)
    before[order] = np.arange(len(values)) - np.searchsorted(ascending, ascending)
    return before


@dataclass(frozen=True, slots=True)
class Loader:
    """Turns labelled images into batches on a device.

    Attributes:
        images: one part of the data.
        preprocessing: of the weights.
        batch_size: images in a batch; the last one of a pass may be smaller.
        device: where the batches are wanted.
        workers: threads that decode; 0 decodes between the steps.
        drop_single: leave a last batch of one image out of a training epoch.
        balanced: in training every class comes equally often, rare ones by repetition.
    """

    images: Images
    preprocessing: Preprocessing
    batch_size: int
    device: torch.device
    workers: int
    drop_single: bool = False
    balanced: bool = False

    @property
    def steps(self) -> int:
        """Batches in one training epoch."""
        return steps_in_epoch(len(self.images), self.batch_size, drop_single=self.drop_single)

    def train(self, settings: Augmentation, seed: int, epoch: int) -> Iterator[Batch]:
        """Yield the images of one training epoch (``training_order``), augmented."""
        for indices, images in self.augmented(settings, seed, epoch):
            yield self._batch(indices, images)

    def augmented(self, settings: Augmentation, seed: int, epoch: int) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Yield (indices, images (B, 3, S, S) uint8 before normalisation) of one training epoch."""
        _, order = training_order(self.images.labels, seed, epoch, balanced=self.balanced)
        red, green, blue = (min(255, max(0, round(255 * mean))) for mean in self.preprocessing.mean)
        for keys, images in self._read(self._train_batches(order), settings, seed, epoch):
            if isinstance(self.images, PackedImages):
                images = self._geometry(images, settings, seed, epoch, keys)
            else:
                images = augment.shift_and_flip(images, settings, seed, epoch, keys)
            images = augment.recolour_and_rotate(images, settings, seed, epoch, keys)
            images = policies.apply_policy(images, settings, seed, epoch, keys)
            images = augment.erase(images, settings, seed, epoch, keys, (red, green, blue))
            yield self._indices(keys), images

    def clean(self, *, mirrored: bool = False) -> Iterator[Batch]:
        """Yield every image once, in order, as evaluation sees it.

        Args:
            mirrored: left and right exchanged, for the second view of cached features.
        """
        for indices, images in self._read(self._cut(np.arange(len(self.images)))):
            images = resize_crop(images, self.preprocessing) if isinstance(self.images, PackedImages) else images
            yield self._batch(indices, images.flip(-1) if mirrored else images)

    def _indices(self, keys: np.ndarray) -> np.ndarray:
        return keys % len(self.images)

    def _geometry(self, images: Tensor, settings: Augmentation, seed: int, epoch: int, keys: np.ndarray) -> Tensor:
        if settings.min_area < 1:
            boxes = augment.crop_boxes(settings, seed, epoch, keys, *images.shape[-2:])
            images = augment.resized_crops(images, boxes, self.preprocessing.crop)
            return augment.shift_and_flip(images, settings, seed, epoch, keys)
        # Moved at the native size, where a step is a pixel, and then resized.
        images = augment.shift_and_flip(images, settings, seed, epoch, keys)
        return resize_crop(images, self.preprocessing)

    def _batch(self, indices: np.ndarray, images: Tensor) -> Batch:
        labels = torch.from_numpy(self.images.labels[indices]).to(self.device, non_blocking=True)
        return Batch(normalise(images, self.preprocessing), labels)

    def _read(
        self, batches: list[np.ndarray], settings: Augmentation | None = None, seed: int = 0, epoch: int = 0
    ) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Yield (keys, images uint8): packed ones at native size, files decoded and cut to the input size."""
        if isinstance(self.images, PackedImages):
            for keys in batches:
                places = torch.from_numpy(self._indices(keys))
                yield keys, self.images.pixels[places].to(self.device, non_blocking=True)
            return
        files = self.images

        def prepare(key: int) -> Tensor:
            image = files.load(key % len(files), self.preprocessing.resize)
            if settings is not None and settings.min_area < 1:
                box = augment.crop_boxes(settings, seed, epoch, np.array([key]), *image.shape[-2:])[0]
                top, left, height, width = box.tolist()
                cut = image[:, top : top + height, left : left + width]
                return augment.resize_to(cut, self.preprocessing.crop)
            return resize_crop(image, self.preprocessing)

        for keys, images in _decoded_ahead(batches, prepare, self.workers):
            yield keys, images.to(self.device, non_blocking=True)

    def _train_batches(self, order: np.ndarray) -> list[np.ndarray]:
        return self._cut(order)[: self.steps]

    def _cut(self, order: np.ndarray) -> list[np.ndarray]:
        return [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]


def _decoded_ahead(
    batches: list[np.ndarray], prepare: Callable[[int], Tensor], workers: int
) -> Iterator[tuple[np.ndarray, Tensor]]:
    if workers == 0:
        for keys in batches:
            yield keys, torch.stack([prepare(int(key)) for key in keys])
        return
    # Threads, not processes: Pillow decodes without the GIL, and nothing has to be pickled or shared.
    pool = ThreadPoolExecutor(workers, initializer=_single_threaded)
    try:
        waiting: deque[tuple[np.ndarray, list[Future[Tensor]]]] = deque()
        for keys in batches:
            waiting.append((keys, [pool.submit(prepare, int(key)) for key in keys]))
            if len(waiting) > _BATCHES_AHEAD:
                ready, futures = waiting.popleft()
                yield ready, torch.stack([future.result() for future in futures])
        for ready, futures in waiting:
            yield ready, torch.stack([future.result() for future in futures])
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _single_threaded() -> None:
    # OpenMP's setting is the thread's own: the training thread keeps its team.
    torch.set_num_threads(1)

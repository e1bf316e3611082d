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
from tl_cli.data.augmentation import Augmentation
from tl_cli.data.decoding import normalise, resize_crop
from tl_cli.data.images import Images, PackedImages

_BATCHES_AHEAD = 3


@dataclass(frozen=True, slots=True)
class Batch:
    """Inputs of one step.

    Attributes:
        inputs: images (B, 3, S, S) float32, normalised, or cached features (B, ...).
        labels: (B,) int64.
    """

    inputs: Tensor
    labels: Tensor


def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """Return the order of ``count`` images in an epoch: a function of the arguments alone."""
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(count)


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
    """

    images: Images
    preprocessing: Preprocessing
    batch_size: int
    device: torch.device
    workers: int
    drop_single: bool = False

    @property
    def steps(self) -> int:
        """Batches in one training epoch."""
        return len(self._train_batches(np.arange(len(self.images))))

    def train(self, settings: Augmentation, seed: int, epoch: int) -> Iterator[Batch]:
        """Yield the training images once, in the epoch's order, augmented."""
        for indices, images in self.augmented(settings, seed, epoch):
            yield self._batch(indices, images)

    def augmented(self, settings: Augmentation, seed: int, epoch: int) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Yield (indices, images (B, 3, S, S) uint8 before normalisation) of one training epoch."""
        order = epoch_order(len(self.images), seed, epoch)
        for indices, images in self._read(self._train_batches(order), settings, seed, epoch):
            if isinstance(self.images, PackedImages):
                images = self._geometry(images, settings, seed, epoch, indices)
            else:
                images = augment.shift_and_flip(images, settings, seed, epoch, indices)
            yield indices, augment.recolour_and_rotate(images, settings, seed, epoch, indices)

    def clean(self, *, mirrored: bool = False) -> Iterator[Batch]:
        """Yield every image once, in order, as evaluation sees it.

        Args:
            mirrored: left and right exchanged, for the second view of cached features.
        """
        for indices, images in self._read(self._cut(np.arange(len(self.images)))):
            images = resize_crop(images, self.preprocessing) if isinstance(self.images, PackedImages) else images
            yield self._batch(indices, images.flip(-1) if mirrored else images)

    def _geometry(self, images: Tensor, settings: Augmentation, seed: int, epoch: int, indices: np.ndarray) -> Tensor:
        if settings.min_area < 1:
            boxes = augment.crop_boxes(settings, seed, epoch, indices, *images.shape[-2:])
            images = augment.resized_crops(images, boxes, self.preprocessing.crop)
            return augment.shift_and_flip(images, settings, seed, epoch, indices)
        # Moved at the native size, where a step is a pixel, and then resized.
        images = augment.shift_and_flip(images, settings, seed, epoch, indices)
        return resize_crop(images, self.preprocessing)

    def _batch(self, indices: np.ndarray, images: Tensor) -> Batch:
        labels = torch.from_numpy(self.images.labels[indices]).to(self.device, non_blocking=True)
        return Batch(normalise(images, self.preprocessing), labels)

    def _read(
        self, batches: list[np.ndarray], settings: Augmentation | None = None, seed: int = 0, epoch: int = 0
    ) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Yield (indices, images uint8): packed ones at native size, files decoded and cut to the input size."""
        if isinstance(self.images, PackedImages):
            for indices in batches:
                yield indices, self.images.pixels[torch.from_numpy(indices)].to(self.device, non_blocking=True)
            return
        files = self.images

        def prepare(index: int) -> Tensor:
            if settings is not None and settings.min_area < 1:
                image = files.load(index, self.preprocessing.resize)
                box = augment.crop_boxes(settings, seed, epoch, np.array([index]), *image.shape[-2:])[0]
                top, left, height, width = box.tolist()
                cut = image[:, top : top + height, left : left + width]
                return augment.resize_to(cut, self.preprocessing.crop)
            return resize_crop(files.load(index, self.preprocessing.resize), self.preprocessing)

        for indices, images in _decoded_ahead(batches, prepare, self.workers):
            yield indices, images.to(self.device, non_blocking=True)

    def _train_batches(self, order: np.ndarray) -> list[np.ndarray]:
        batches = self._cut(order)
        if self.drop_single and len(batches) > 1 and len(batches[-1]) == 1:
            batches.pop()
        return batches

    def _cut(self, order: np.ndarray) -> list[np.ndarray]:
        return [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]


def _decoded_ahead(
    batches: list[np.ndarray], prepare: Callable[[int], Tensor], workers: int
) -> Iterator[tuple[np.ndarray, Tensor]]:
    if workers == 0:
        for indices in batches:
            yield indices, torch.stack([prepare(int(index)) for index in indices])
        return
    # Threads, not processes: Pillow decodes without the GIL, and nothing has to be pickled or shared.
    pool = ThreadPoolExecutor(workers, initializer=_single_threaded)
    try:
        waiting: deque[tuple[np.ndarray, list[Future[Tensor]]]] = deque()
        for indices in batches:
            waiting.append((indices, [pool.submit(prepare, int(index)) for index in indices]))
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

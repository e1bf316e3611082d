"""Batches of images in their order, decoded ahead on threads and prepared on the training device."""

import math
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tl_cli.contract import Preprocessing
from tl_cli.data.augment import geometry
from tl_cli.data.augment.pipeline import augment
from tl_cli.data.augment.settings import Augmentation
from tl_cli.data.images import Images, PackedImages
from tl_cli.data.preprocess import cut_box, decoded_side, mean_colour, normalise, prepare, resize_crop, send
from tl_cli.randomness import Purpose, generator

_BATCHES_AHEAD = 3
# Large JPEGs are decoded with this many times the pixels of the smallest random crop, in each direction: less than for
# evaluation (`preprocess._SPARE`), since most crops are larger, and decoding them whole takes four times as long.
_CROP_SPARE = 2


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
        batch: images per step.
        drop_single: leave out a last step of one image.
    """
    steps = -(-images // batch)
    is_single = images - (steps - 1) * batch == 1
    return steps - 1 if drop_single and steps > 1 and is_single else steps


def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """Return the order of ``count`` images in an epoch: a function of the arguments alone."""
    return generator(seed, Purpose.ORDER, epoch).permutation(count)


def training_order(
    labels: np.ndarray, seed: int, epoch: int, *, balanced: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Return the images of an epoch in order, and the key by which each is augmented.

    Args:
        labels: (N,) int64.
        balanced: each class equally often (``balanced_order``), else each image once.

    Returns:
        indices and keys, (N,) int64 each. A key is the index the first time that an image is used in the epoch, and
        larger by N each time it is repeated, so that it is augmented differently.
    """
    if balanced:
        return balanced_order(labels, seed, epoch)
    order = epoch_order(len(labels), seed, epoch)
    return order, order


def balanced_order(labels: np.ndarray, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Return indices and keys, as ``training_order`` does, of an epoch with as many images of each class.

    The images of each class form a circle in random order, along which every epoch continues where the last one ended:
    an image is repeated only after all others of its class, also across epochs. If N is not a multiple of the number of
    classes, the remaining positions are given to the classes in turns, in a random order too.
    """
    count = len(labels)
    random = generator(seed, Purpose.CIRCLES)
    sizes = np.unique(labels, return_counts=True)[1]
    circles = [random.permutation(c) for c in np.split(np.argsort(labels, kind="stable"), np.cumsum(sizes)[:-1])]
    first = random.permutation(len(sizes))
    # Position p of all epochs together belongs to the class of rank p modulo the number of classes.
    start, end = (-((first - e * count) // len(sizes)) for e in (epoch, epoch + 1))
    spans = zip(circles, start, end, strict=True)
    chosen = np.concatenate([circle[np.arange(begin, stop) % len(circle)] for circle, begin, stop in spans])
    indices = chosen[epoch_order(count, seed, epoch)]
    return indices, indices + count * _occurrences(indices)


def _occurrences(values: np.ndarray) -> np.ndarray:
    """Return the number of earlier equal values for each value."""
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
        batch_size: images per batch; the last batch of a pass may be smaller.
        device: of the batches.
        workers: threads that decode; 0 decodes between the steps.
        drop_single: leave a last batch of one image out of a training epoch.
        balanced: train on as many images of each class, by repeating those of rare classes.
        memory_format: of the inputs.
        device_share: share of the device's free memory that packed images may take during a pass; if they do not
            fit, each batch is sent by itself.
    """

    images: Images
    preprocessing: Preprocessing
    batch_size: int
    device: torch.device
    workers: int
    drop_single: bool = False
    balanced: bool = False
    memory_format: torch.memory_format = torch.contiguous_format
    device_share: float = 0.2

    @property
    def steps(self) -> int:
        """Batches in one training epoch."""
        return steps_in_epoch(len(self.images), self.batch_size, drop_single=self.drop_single)

    def train(self, settings: Augmentation, seed: int, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the images of one training epoch (``training_order``), augmented, from its batch ``start`` on."""
        for indices, images in self.augmented(settings, seed, epoch, start):
            yield self._batch(indices, images)

    def augmented(
        self, settings: Augmentation, seed: int, epoch: int, start: int = 0
    ) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Yield (indices, images (B, 3, S, S) uint8 before normalisation) of one training epoch."""
        _, order = training_order(self.images.labels, seed, epoch, balanced=self.balanced)
        return self._augment(self._cut(order)[start : self.steps], settings, seed, epoch)

    def in_order(self, settings: Augmentation, seed: int, epoch: int) -> Iterator[Batch]:
        """Yield every image once, in order, augmented as an image of that epoch is."""
        for indices, images in self._augment(self._cut(np.arange(len(self.images))), settings, seed, epoch):
            yield self._batch(indices, images)

    def _augment(
        self, batches: list[np.ndarray], settings: Augmentation, seed: int, epoch: int
    ) -> Iterator[tuple[np.ndarray, Tensor]]:
        for keys, images in self._read(batches, settings, seed, epoch):
            images = self._move(images, settings, seed, epoch, keys)
            images = augment(images, settings, seed, epoch, keys, mean_colour(self.preprocessing))
            yield keys % len(self.images), images

    def clean(self, *, mirrored: bool = False) -> Iterator[Batch]:
        """Yield every image once, in order, as evaluation sees it.

        Args:
            mirrored: flip images left to right, for the second view of cached features.
        """
        for indices, images in self._read(self._cut(np.arange(len(self.images)))):
            # At the same point as in training: packed images are flipped before they are cropped, files after.
            images = images.flip(-1) if mirrored else images
            if isinstance(self.images, PackedImages):
                images = resize_crop(self._laid_out(images), self.preprocessing)
            yield self._batch(indices, images)

    def _move(self, images: Tensor, settings: Augmentation, seed: int, epoch: int, keys: np.ndarray) -> Tensor:
        """Return the images cropped, shifted and flipped; files are cropped already."""
        is_packed, how = isinstance(self.images, PackedImages), self.preprocessing
        if is_packed and settings.min_area < 1:
            boxes = geometry.crop_boxes(settings, seed, epoch, keys, images.shape[-2], images.shape[-1], how.crop_mode)
            images = geometry.resized_crops(images, boxes, how.crop, mean_colour(how))
            return geometry.shift_and_flip(images, settings, seed, epoch, keys)
        images = geometry.shift_and_flip(images, settings, seed, epoch, keys)
        if not is_packed:
            return images
        # Shifted by whole pixels at the native size, and then resized. The memory format is changed first, since small
        # images are cheaper; but colours are changed channel by channel.
        return resize_crop(self._laid_out(images) if settings.only_moves else images, how)

    def _laid_out(self, images: Tensor) -> Tensor:
        return images.contiguous(memory_format=self.memory_format)

    def _batch(self, indices: np.ndarray, images: Tensor) -> Batch:
        return Batch(
            normalise(self._laid_out(images), self.preprocessing), send(self.images.labels[indices], self.device)
        )

    def _read(
        self, batches: list[np.ndarray], settings: Augmentation | None = None, seed: int = 0, epoch: int = 0
    ) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Yield (keys, images uint8): packed ones at native size, files decoded and cut to the input size."""
        if not batches:
            return  # an epoch that is resumed after its last step
        if isinstance(self.images, PackedImages):
            yield from self._packed(self.images.pixels, batches)
            return
        files, how, short_side = self.images, self.preprocessing, self._decoded_side(settings)

        def prepared(key: int) -> Tensor:
            picture = files.open(key % len(files), short_side)
            if settings is not None and settings.min_area < 1:
                box = geometry.crop_boxes(settings, seed, epoch, np.array([key]), *picture.size, how.crop_mode)[0]
                return cut_box(picture, box, how)
            return prepare(picture, how)

        for keys, images in _decoded_ahead(batches, prepared, self.workers):
            yield keys, self._sent(images)

    def _packed(self, pixels: Tensor, batches: list[np.ndarray]) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Yield (keys, images uint8 at native size) on the device; all are sent there first if they fit."""
        indices = torch.from_numpy(np.concatenate(batches) % len(pixels))
        fits = pixels.nbytes <= self.device_share * free_bytes(self.device)
        if fits:
            pixels, indices = pixels.to(self.device), send(indices.numpy(), self.device)
        for keys, chosen in zip(batches, indices.split([len(keys) for keys in batches]), strict=True):
            images = pixels.index_select(0, chosen)
            yield keys, images if fits else self._sent(images)

    def _sent(self, images: Tensor) -> Tensor:
        # Copies to a GPU overlap with computation only from pinned memory.
        if self.device.type == "cuda":
            return images.pin_memory().to(self.device, non_blocking=True)
        return images.to(self.device)

    def _decoded_side(self, settings: Augmentation | None) -> int:
        """Return the short side with which large files are decoded, so that the smallest random crop is accurate."""
        if settings is None or settings.min_area == 1:
            return decoded_side(self.preprocessing)
        smallest = math.sqrt(settings.min_area * geometry.CROP_RATIO)
        return max(self.preprocessing.resize, math.ceil(_CROP_SPARE / 2 * self.preprocessing.crop / smallest))

    def _cut(self, order: np.ndarray) -> list[np.ndarray]:
        return [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]


def _decoded_ahead(
    batches: list[np.ndarray], prepare: Callable[[int], Tensor], workers: int
) -> Iterator[tuple[np.ndarray, Tensor]]:
    if workers == 0:
        for keys in batches:
            yield keys, torch.stack([prepare(int(key)) for key in keys])
        return
    # Threads, not processes: Pillow decodes without the GIL, and nothing has to be pickled or shared. The number of
    # OpenMP's threads is a setting of each thread, so the training thread keeps its own.
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    try:
        waiting: deque[tuple[np.ndarray, list[Future[Tensor]]]] = deque()
        for keys in batches:
            waiting.append((keys, [pool.submit(prepare, int(key)) for key in keys]))
            if len(waiting) > _BATCHES_AHEAD:
                yield _first(waiting)
        while waiting:
            yield _first(waiting)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _first(waiting: deque[tuple[np.ndarray, list[Future[Tensor]]]]) -> tuple[np.ndarray, Tensor]:
    """Return the oldest batch; its single images are released before the batch is used."""
    keys, futures = waiting.popleft()
    return keys, torch.stack([future.result() for future in futures])


def free_bytes(device: torch.device) -> int:
    """Return the free memory of a GPU; without bound on a CPU, where tensors are already."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return sys.maxsize

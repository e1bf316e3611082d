"""Labelled images in the two forms there are: packed in memory, or files that are decoded as they are needed."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tl_cli.contract import Split
from tl_cli.data.decoding import WHOLE_UP_TO, decode
from tl_cli.errors import DataError
from tl_cli.fetch import Progress, silent

_TINY_VALUES = 3 * 64 * 64


@dataclass(frozen=True, slots=True)
class PackedImages:
    """Images of one size, decoded.

    Attributes:
        ids: a stable name for each image.
        labels: (N,) int64, indices into the class names.
        pixels: (N, 3, H, W) uint8.
    """

    ids: np.ndarray
    labels: np.ndarray
    pixels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: np.ndarray) -> "PackedImages":
        """Return the images at ``indices``, in that order."""
        return PackedImages(self.ids[indices], self.labels[indices], self.pixels[torch.from_numpy(indices)])

    def load(self, index: int, short_side: int | None = None) -> Tensor:
        """Return one image, (3, H, W) uint8."""
        return self.pixels[index]


@dataclass(frozen=True, slots=True)
class FileImages:
    """Images of any sizes, as files.

    Attributes:
        ids: the path of each, relative to the folder that was given.
        labels: (N,) int64, indices into the class names.
        root: the folder that was given.
    """

    ids: np.ndarray
    labels: np.ndarray
    root: Path

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: np.ndarray) -> "FileImages":
        """Return the images at ``indices``, in that order."""
        return FileImages(self.ids[indices], self.labels[indices], self.root)

    def load(self, index: int, short_side: int | None = None) -> Tensor:
        """Return one image decoded, (3, H, W) uint8.

        Raises:
            DataError: it cannot be decoded; names the file.
        """
        return decode(self.root / str(self.ids[index]), short_side=short_side)


Images = PackedImages | FileImages


def describe(images: Images, classes: Sequence[str]) -> Split:
    """Return count and digest: SHA-256 over each image's id, class name and content.

    Packed images are hashed by their pixels, files by their length in bytes: a million files are not read twice.
    """
    seen = hashlib.sha256()
    for index in np.argsort(images.ids, kind="stable"):
        seen.update(f"{images.ids[index]}\0{classes[images.labels[index]]}\0".encode("utf-8", "surrogateescape"))
        if isinstance(images, PackedImages):
            seen.update(images.pixels[index].numpy().tobytes())
        else:
            seen.update(str(_length(images.root / str(images.ids[index]))).encode())
    return Split(count=len(images), digest=seen.hexdigest())


def _length(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def pack(images: FileImages, *, budget_bytes: int, workers: int, progress: Progress = silent) -> Images:
    """Return the images decoded in memory where they are of one size and fit; else as they came.

    Args:
        budget_bytes: how much memory the pixels may take.
        workers: threads that decode. Tiny images are decoded on one: they hold the GIL most of the time
            (32x32 JPEGs: two threads took 1.5 times as long as one).

    Raises:
        DataError: one of them cannot be decoded.
    """
    first = images.load(0)
    if first.numel() * len(images) > budget_bytes or min(first.shape[1:]) > WHOLE_UP_TO:
        return images
    pixels = torch.empty((len(images), *first.shape), dtype=torch.uint8)

    def fill(chunk: range) -> bool:
        for index in chunk:
            image = images.load(index)
            if image.shape != first.shape:
                return False
            pixels[index] = image
        return True

    threads = 1 if first.numel() <= _TINY_VALUES else max(1, workers)
    with ThreadPoolExecutor(threads) as pool:
        done = 0
        for chunk, is_same_size in zip(_chunks(len(images)), pool.map(fill, _chunks(len(images))), strict=True):
            if not is_same_size:
                pool.shutdown(wait=False, cancel_futures=True)
                return images
            done += len(chunk)
            progress("decoding images", done, len(images))
    return PackedImages(images.ids, images.labels, pixels)


def _chunks(count: int, size: int = 512) -> list[range]:
    return [range(start, min(start + size, count)) for start in range(0, count, size)]

"""Labelled images in the two forms there are: packed in memory, or files that are decoded as they are needed."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
import torch
from torch import Tensor

from tl_cli.contract import PixelRange, Split
from tl_cli.data.decoders import decode_aside
from tl_cli.data.decoding import decode
from tl_cli.data.names import Names
from tl_cli.data.pictures import WHOLE_UP_TO, decode_pixels, open_regular
from tl_cli.errors import DataError, StorageError
from tl_cli.fetch import Progress, silent
from tl_cli.store import Store

_TINY_VALUES = 3 * 64 * 64
# Fewer are decoded before a process has started.
_WORTH_PROCESSES = 6000
# Fewer are decoded in a tenth of a second (2,700 of 32 x 32).
_WORTH_KEEPING_BYTES = 8 << 20
# Of images that should be the same: as many are looked at.
_LOOKED_AT = 256
# Of the pixels that are kept: one higher whenever the same files are decoded to others.
_KEPT_FORMAT = 2


@dataclass(frozen=True, slots=True)
class PackedImages:
    """Images of one size, decoded.

    Attributes:
        ids: a stable name for each image.
        labels: (N,) int64, indices into the class names.
        pixels: (N, 3, H, W) uint8.
    """

    ids: Names
    labels: np.ndarray
    pixels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: np.ndarray) -> "PackedImages":
        """Return the images at ``indices``, in that order."""
        return PackedImages(self.ids.take(indices), self.labels[indices], self.pixels[torch.from_numpy(indices)])

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
        pixel_range: the numbers that become black and white in pictures of more than 8 bits per channel; None is 0 and
            the largest of 16 bits.
    """

    ids: Names
    labels: np.ndarray
    root: Path
    pixel_range: PixelRange | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: np.ndarray) -> "FileImages":
        """Return the images at ``indices``, in that order."""
        return FileImages(self.ids.take(indices), self.labels[indices], self.root, self.pixel_range)

    def load(self, index: int, short_side: int | None = None) -> Tensor:
        """Return one image decoded, (3, H, W) uint8.

        Raises:
            DataError: it cannot be decoded; names the file.
        """
        return decode(self.root / self.ids[index], short_side=short_side, pixel_range=self.pixel_range)

    def load_pixels(self, index: int) -> np.ndarray:
        """Return one image decoded whole, (H, W, 3) uint8: what ``load`` does, without a tensor for each.

        Raises:
            DataError: it cannot be decoded; names the file.
        """
        return decode_pixels(os.path.join(self.root, self.ids[index]), pixel_range=self.pixel_range)


Images = PackedImages | FileImages


def describe(images: Images, classes: Sequence[str]) -> Split:
    """Return count and digest: SHA-256 over each image's id, class name and content.

    Packed images are hashed by their pixels, files by their length in bytes: a million files are not read twice.
    """
    seen = hashlib.sha256()
    for index in images.ids.order().tolist():
        name = images.ids[index]
        seen.update(f"{name}\0{classes[images.labels[index]]}\0".encode("utf-8", "surrogateescape"))
        if isinstance(images, PackedImages):
            seen.update(images.pixels[index].contiguous().numpy().data)
        else:
            seen.update(str(_stat(images.root, name).st_size).encode())
    return Split(count=len(images), digest=seen.hexdigest())


def content_digest(images: Images, index: int) -> bytes:
    """Return a digest of an image: of a packed one's pixels, or of all bytes of a file.

    Raises:
        DataError: the file cannot be read.
    """
    if isinstance(images, PackedImages):
        return hashlib.sha256(images.pixels[index].contiguous().numpy().data).digest()
    path = os.path.join(images.root, images.ids[index])
    try:
        with open_regular(path) as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def are_same(images: Images, others: Images) -> bool:
    """Whether two parts of one digest hold the same pictures, judged by 256 of them.

    Uncompressed files of one size are all of one length, which is what the digest knows of them.
    """
    places, other_places = images.ids.order(), others.ids.order()
    if len(places) != len(other_places):
        return False
    step = -(-len(places) // _LOOKED_AT)
    return all(
        content_digest(images, one) == content_digest(others, other)
        for one, other in zip(places[::step].tolist(), other_places[::step].tolist(), strict=True)
    )


def shared(images: Images, others: Images) -> int:
    """Return how many of ``images`` are among ``others``, by content and whatever they are called.

    Files are read only where one of the others is as long. Packed images and files are not compared.
    """
    if isinstance(images, PackedImages) or isinstance(others, PackedImages):
        if not (isinstance(images, PackedImages) and isinstance(others, PackedImages)):
            return 0
        known = {content_digest(others, index) for index in range(len(others))}
        return sum(content_digest(images, index) in known for index in range(len(images)))
    lengths: dict[int, list[int]] = {}
    for index in range(len(others)):
        lengths.setdefault(_stat(others.root, others.ids[index]).st_size, []).append(index)
    digests: dict[int, set[bytes]] = {}
    count = 0
    for index in range(len(images)):
        length = _stat(images.root, images.ids[index]).st_size
        if length in lengths:
            if length not in digests:
                digests[length] = {content_digest(others, other) for other in lengths[length]}
            count += content_digest(images, index) in digests[length]
    return count


def _stat(root: Path, name: str) -> os.stat_result:
    path = os.path.join(root, name)
    try:
        return os.stat(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def pack(
    images: FileImages,
    *,
    budget_bytes: int,
    workers: int,
    progress: Progress = silent,
    store: Store | None = None,
) -> Images:
    """Return the images decoded where they are of one size and fit; else as they came.

    Args:
        budget_bytes: how much memory the pixels may take.
        workers: threads that decode; processes where images are tiny, which hold the GIL most of the time
            (32x32 JPEGs: two threads took 1.5 times as long as one).
        progress: told as they are decoded, which they are not where ``store`` has their pixels.
        store: where the pixels are kept for the next time.

    Raises:
        DataError: one of them cannot be decoded.
    """
    first = images.load(0)
    size = first.numel() * len(images)
    if size > budget_bytes or min(first.shape[1:]) > WHOLE_UP_TO:
        return images
    if store is None or size < _WORTH_KEEPING_BYTES:
        pixels = _decode_all(images, first, workers, progress)
    else:
        pixels = _decode_once(images, first, workers, progress, store)
    return images if pixels is None else PackedImages(images.ids, images.labels, pixels)


def _decode_once(images: FileImages, first: Tensor, workers: int, progress: Progress, store: Store) -> Tensor | None:
    key = fingerprint(images)
    kept = store.find(key)
    if kept is None:
        pixels = _decode_all(images, first, workers, progress)
        if pixels is None:
            return None
        # What cannot be kept only costs time the next time.
        with suppress(StorageError):
            with store.keep(key, tuple(pixels.shape), np.dtype(np.uint8)) as append:
                append(pixels.numpy())
            kept = store.find(key)
        if kept is None:
            return pixels
    return torch.from_numpy(kept)


def _decode_all(images: FileImages, first: Tensor, workers: int, progress: Progress) -> Tensor | None:
    """Return the pixels (N, 3, H, W) uint8 of images that are all as large as the first, else None."""
    pixels = torch.empty((len(images), *first.shape), dtype=torch.uint8)
    # For pictures this small, a tensor of each takes as long as decoding it.
    by_pixel = pixels.permute(0, 2, 3, 1).numpy()

    def fill(chunk: range) -> bool:
        for index in chunk:
            image = images.load_pixels(index)
            if image.shape != by_pixel.shape[1:]:
                return False
            by_pixel[index] = image
        return True

    is_tiny = first.numel() <= _TINY_VALUES
    left = [range(len(images))]
    if is_tiny and workers > 1 and len(images) >= _WORTH_PROCESSES:
        left = decode_aside(
            lambda share: [os.path.join(images.root, images.ids[index]) for index in share],
            pixels.numpy(),
            workers,
            lambda done: progress("decoding images", done, len(images)),
            images.pixel_range,
        )
    chunks = [chunk for part in left for chunk in _chunks(part)]
    with ThreadPoolExecutor(1 if is_tiny else max(1, workers)) as pool:
        done = len(images) - sum(map(len, left))
        for chunk, is_same_size in zip(chunks, pool.map(fill, chunks), strict=True):
            if not is_same_size:
                pool.shutdown(wait=False, cancel_futures=True)
                return None
            done += len(chunk)
            progress("decoding images", done, len(images))
    return pixels


def fingerprint(images: Images) -> str:
    """Return a digest that is another one where these are not the same images in the same order.

    Of packed images it is of the pixels. Files are not read for it, so the time of the last change in the file system
    counts too: a file of the same length may be put in the place of another with its old time of modification. So does
    the range with which deep pictures are decoded.

    Raises:
        DataError: a file is no longer there.
    """
    if isinstance(images, PackedImages):
        seen = hashlib.sha256(f"{tuple(images.pixels.shape)}".encode())
        for part in images.pixels.split(4096):
            seen.update(part.contiguous().numpy().data)
        return seen.hexdigest()
    about = f"{_KEPT_FORMAT} {images.pixel_range}\0{PIL.__version__}\0{images.root}\0"
    seen = hashlib.sha256(about.encode("utf-8", "surrogateescape"))
    for name in images.ids:
        found = _stat(images.root, name)
        facts = f"{name}\0{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}\0"
        seen.update(facts.encode("utf-8", "surrogateescape"))
    return seen.hexdigest()


def _chunks(part: range, size: int = 512) -> list[range]:
    return [part[start : start + size] for start in range(0, len(part), size)]

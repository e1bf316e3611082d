"""Labelled images: packed in memory, or files that are decoded as they are needed."""

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import PIL
import torch
from torch import Tensor

from tl_cli.contract import DigestScheme, PixelRange, Split
from tl_cli.data.contents import Contents, changed_since, read_contents
from tl_cli.data.decode import MAX_PIXELS, WHOLE_UP_TO, Picture, decode_picture, picture_size
from tl_cli.data.decode_pool import decode_aside
from tl_cli.data.packed_names import Names
from tl_cli.data.preprocess import as_tensor
from tl_cli.data.threads import ONE_THREAD, Threads
from tl_cli.errors import DataError, StorageError, some
from tl_cli.io.array_cache import Store

T = TypeVar("T")
_TINY_VALUES = 3 * 64 * 64
# Fewer images are decoded before a process has started.
_WORTH_PROCESSES = 6000
# Fewer bytes are decoded in a tenth of a second (2,700 images of 32 x 32).
_WORTH_KEEPING_BYTES = 8 << 20
# Limit of the longer side of packed images, since the matrices that resize random crops are as long.
_LONGEST = 4096
# Version of the stored pixels: increased whenever decoding changes.
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

    def open(self, index: int, short_side: int | None = None) -> Picture:
        """Return one image."""
        return Picture.of(self.pixels[index].permute(1, 2, 0).numpy())


@dataclass(frozen=True, slots=True)
class FileImages:
    """Images of any sizes, as files.

    Attributes:
        ids: the path of each, relative to the folder that was given.
        labels: (N,) int64, indices into the class names.
        root: the folder that was given.
        pixel_range: the values that become black and white in pictures of more than 8 bits per channel; None is 0 and
            65535.
        max_pixels: maximum number of decoded pixels of an image; None is the usual limit.
        contents: digests of the files when they were last read; None if they were not.
    """

    ids: Names
    labels: np.ndarray
    root: Path
    pixel_range: PixelRange | None = None
    max_pixels: int | None = None
    contents: Contents | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: np.ndarray) -> "FileImages":
        """Return the images at ``indices``, in that order."""
        contents = None if self.contents is None else self.contents.take(indices)
        return replace(self, ids=self.ids.take(indices), labels=self.labels[indices], contents=contents)

    def load(self, index: int, short_side: int | None = None) -> Tensor:
        """Return one image decoded, (3, H, W) uint8.

        Raises:
            DataError: it cannot be decoded; names the file.
        """
        return as_tensor(self.open(index, short_side).pixels)

    def open(self, index: int, short_side: int | None = None) -> Picture:
        """Return one image decoded, a large JPEG perhaps at a fraction of its size.

        Raises:
            DataError: it cannot be decoded; names the file.
        """
        path, pixel_range = self.path(index), self.pixel_range
        return decode_picture(path, short_side=short_side, pixel_range=pixel_range, max_pixels=self.max_pixels)

    def path(self, index: int) -> str:
        """Return the path of an image."""
        return os.path.join(self.root, self.ids[index])


Images = PackedImages | FileImages


def with_contents(parts: Mapping[T, Images], threads: Threads = ONE_THREAD) -> dict[T, Images]:
    """Return the same images with contents. Only files that changed since they were last read are read again.

    Raises:
        DataError: a file does not exist or cannot be read; names it.
    """
    read: dict[T, Images] = dict(parts)
    files = {name: part for name, part in parts.items() if isinstance(part, FileImages) and part.contents is None}
    for root in {images.root for images in files.values()}:
        here = {name: images for name, images in files.items() if images.root == root}
        # All in one call, since the digests of a folder are stored together.
        names = Names.joined([images.ids for images in here.values()])
        limit = max(images.max_pixels or MAX_PIXELS for images in here.values())
        contents = read_contents(root, names, threads, max_pixels=limit)
        ends = np.cumsum([len(images) for images in here.values()])
        for name, indices in zip(here, np.split(np.arange(len(names)), ends[:-1]), strict=True):
            read[name] = replace(here[name], contents=contents.take(indices))
    return read


def describe(images: Images, classes: Sequence[str], scheme: DigestScheme = "contents") -> Split:
    """Return count and digest: SHA-256 over each image's id, class name and content.

    Packed images are hashed by their pixels, files by their bytes; in the scheme ``lengths`` by the number of bytes.

    Raises:
        DataError: a file does not exist or cannot be read; names it.
    """
    seen = hashlib.sha256()
    contents = None if isinstance(images, PackedImages) else _contents(images)
    for index in images.ids.order().tolist():
        name = images.ids[index]
        seen.update(f"{name}\0{classes[images.labels[index]]}\0".encode("utf-8", "surrogateescape"))
        if isinstance(images, PackedImages):
            seen.update(images.pixels[index].contiguous().numpy().data)
        elif contents is not None:
            size = int(contents.stats[index, 0])
            seen.update(contents.digests[index].data if scheme == "contents" else str(size).encode())
    return Split(count=len(images), digest=seen.hexdigest(), scheme=scheme)


def is_split(images: Images, classes: Sequence[str], then: Split) -> bool:
    """Return whether images have the count and the digest of a recorded split."""
    return len(images) == then.count and describe(images, classes, then.scheme) == then


def changed_files(images: Images) -> list[str]:
    """Return the names of the files whose contents changed since they were read."""
    if isinstance(images, PackedImages) or images.contents is None:
        return []
    return [images.ids[index] for index in changed_since(images.root, images.ids, images.contents)]


def _contents(images: FileImages) -> Contents:
    return images.contents or read_contents(images.root, images.ids, max_pixels=images.max_pixels)


def _digests(images: Images) -> list[bytes]:
    """Return a digest of each image: of a packed one's pixels, or of all bytes of a file."""
    if isinstance(images, PackedImages):
        pixels = (images.pixels[index].contiguous().numpy().data for index in range(len(images)))
        return [hashlib.sha256(each).digest() for each in pixels]
    return [digest.tobytes() for digest in _contents(images).digests]


def are_same(images: Images, others: Images) -> bool:
    """Return whether two parts of equal names have equal contents too."""
    digests, other_digests = _digests(images), _digests(others)
    order, other_order = images.ids.order().tolist(), others.ids.order().tolist()
    return [digests[index] for index in order] == [other_digests[index] for index in other_order]


def count_shared(images: Images, others: Images) -> int:
    """Return how many of ``images`` are among ``others``, by content and not by name.

    Packed images and files are not compared.
    """
    if isinstance(images, PackedImages) != isinstance(others, PackedImages):
        return 0
    known = set(_digests(others))
    return sum(digest in known for digest in _digests(images))


def pack(
    images: FileImages,
    threads: Threads = ONE_THREAD,
    *,
    budget_bytes: int,
    store: Store | None = None,
    worth_processes: int = _WORTH_PROCESSES,
) -> Images:
    """Return the images decoded if they are of one size and fit into the memory; else unchanged.

    Args:
        threads: those that decode. Tiny images are decoded by as many processes, since decoding them holds the GIL most
            of the time (32x32 JPEGs: two threads took 1.5 times as long as one).
        budget_bytes: most memory for the pixels.
        store: where the pixels are kept for later runs; progress is not shown if it has them.
        worth_processes: fewer tiny images are decoded without processes.

    Raises:
        DataError: one of them cannot be decoded, or was changed meanwhile.
    """
    height, width = picture_size(images.path(0), images.max_pixels)
    shape = (len(images), 3, height, width)
    size = math.prod(shape)
    if size > budget_bytes or min(height, width) > WHOLE_UP_TO or max(height, width) > _LONGEST:
        return images
    read, key = images, ""
    if store is not None and size >= _WORTH_KEEPING_BYTES:
        read = replace(images, contents=_contents(images))
        key = fingerprint(read)
        stored = store.find(key)
        if stored is not None:
            return PackedImages(images.ids, images.labels, torch.from_numpy(stored))
    pixels = _decode_all(read, shape, threads, worth_processes)
    if changed := changed_files(read):
        raise DataError(f"files in {images.root} changed while they were read: {some(changed)}; wait and try again")
    if pixels is None:
        return images
    if store is not None and key:
        # If they cannot be stored, the next run decodes them again.
        with suppress(StorageError):
            store.keep(key, pixels.numpy())
    return PackedImages(images.ids, images.labels, pixels)


def _decode_all(images: FileImages, shape: tuple[int, ...], threads: Threads, worth_processes: int) -> Tensor | None:
    """Return the pixels (N, 3, H, W) uint8; None if an image has another size."""
    pixels = torch.empty(shape, dtype=torch.uint8)
    by_pixel = pixels.permute(0, 2, 3, 1).numpy()

    def fill(index: int) -> bool:
        values = images.open(index).pixels
        is_same_size = values.shape == by_pixel.shape[1:]
        if is_same_size:
            by_pixel[index] = values
        return is_same_size

    is_tiny = pixels[0].numel() <= _TINY_VALUES
    left: Sequence[int] = range(len(images))
    if is_tiny and threads.workers > 1 and len(images) >= worth_processes:
        ranges = decode_aside(
            lambda share: [images.path(index) for index in share],
            pixels.numpy(),
            threads.workers,
            lambda done: threads.progress("decoding images", done, len(images)),
            images.pixel_range,
        )
        left = [index for part in ranges for index in part]
    if is_tiny:
        threads = replace(threads, workers=1)
    is_filled = all(threads.map(fill, left, "decoding images", done=len(images) - len(left)))
    return pixels if is_filled else None


def fingerprint(images: Images) -> str:
    """Return a digest of the contents of images, in order and without names.

    It includes the pixel range of deep pictures, and an unusual limit on pixels: the fraction of its size at which a
    large JPEG is decoded depends on it.

    Raises:
        DataError: a file does not exist or cannot be read; names it.
    """
    if isinstance(images, PackedImages):
        seen = hashlib.sha256(f"{tuple(images.pixels.shape)}".encode())
        for part in images.pixels.split(4096):
            seen.update(part.contiguous().numpy().data)
        return seen.hexdigest()
    limit = "" if images.max_pixels in (None, MAX_PIXELS) else f" {images.max_pixels}"
    seen = hashlib.sha256(f"{_KEPT_FORMAT} {images.pixel_range}{limit}\0{PIL.__version__}\0".encode())
    seen.update(np.ascontiguousarray(_contents(images).digests).data)
    return seen.hexdigest()

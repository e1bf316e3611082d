"""Labelled images in the two forms there are: packed in memory, or files that are decoded as they are needed."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
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
from tl_cli.data.decode import MAX_PIXELS, WHOLE_UP_TO, decode_pixels, picture_size
from tl_cli.data.decode_pool import decode_aside
from tl_cli.data.packed_names import Names
from tl_cli.data.preprocess import Picture, open_picture
from tl_cli.errors import DataError, StorageError, some
from tl_cli.io.array_cache import Store
from tl_cli.io.download import Progress, silent

T = TypeVar("T")
_TINY_VALUES = 3 * 64 * 64
# Fewer are decoded before a process has started.
_WORTH_PROCESSES = 6000
# Fewer are decoded in a tenth of a second (2,700 of 32 x 32).
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
        return Picture.of(self.pixels[index])


@dataclass(frozen=True, slots=True)
class FileImages:
    """Images of any sizes, as files.

    Attributes:
        ids: the path of each, relative to the folder that was given.
        labels: (N,) int64, indices into the class names.
        root: the folder that was given.
        pixel_range: the numbers that become black and white in pictures of more than 8 bits per channel; None is 0 and
            the largest of 16 bits.
        max_pixels: how many may be decoded of one; None is the usual limit.
        contents: what the files held when they were last read; None where they were not.
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
        return self.open(index, short_side).pixels.contiguous()

    def open(self, index: int, short_side: int | None = None) -> Picture:
        """Return one image decoded, a large JPEG perhaps at a fraction of its size.

        Raises:
            DataError: it cannot be decoded; names the file.
        """
        path = self.root / self.ids[index]
        return open_picture(path, short_side=short_side, pixel_range=self.pixel_range, max_pixels=self.max_pixels)

    def load_pixels(self, index: int) -> np.ndarray:
        """Return one image decoded whole, (H, W, 3) uint8: what ``load`` does, without a tensor for each.

        Raises:
            DataError: it cannot be decoded; names the file.
        """
        path = os.path.join(self.root, self.ids[index])
        return decode_pixels(path, pixel_range=self.pixel_range, max_pixels=self.max_pixels)


Images = PackedImages | FileImages


def with_contents(parts: Mapping[T, Images], *, workers: int = 1, progress: Progress = silent) -> dict[T, Images]:
    """Return the same images with contents; files without are read, unless unchanged since they were read before.

    Raises:
        DataError: a file is not there or cannot be read; names it.
    """
    files = {
        name: images for name, images in parts.items() if isinstance(images, FileImages) and images.contents is None
    }
    read: dict[T, Images] = dict(parts)
    for root in {images.root for images in files.values()}:
        here = {name: images for name, images in files.items() if images.root == root}
        # Together, as they are remembered.
        names = Names.joined([images.ids for images in here.values()])
        limits = {images.max_pixels or MAX_PIXELS for images in here.values()}
        contents = read_contents(root, names, max_pixels=max(limits), workers=workers, progress=progress)
        start = 0
        for name, images in here.items():
            end = start + len(images)
            read[name] = replace(images, contents=contents.take(np.arange(start, end)))
            start = end
    return read


def describe(images: Images, classes: Sequence[str], scheme: DigestScheme = "contents") -> Split:
    """Return count and digest: SHA-256 over each image's id, class name and content.

    Packed images are hashed by their pixels, files by their bytes; in the scheme ``lengths`` by how many these are.

    Raises:
        DataError: a file is not there or cannot be read; names it.
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
    """Whether images are those of a split that was recorded, as far as its digest can tell."""
    return len(images) == then.count and describe(images, classes, then.scheme) == then


def changed_files(images: Images) -> list[str]:
    """Return the names of the files that no longer hold what they did when they were read."""
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
    """Whether two parts of one digest hold the same pictures under the same names, whatever the digest covers."""
    digests, other_digests = _digests(images), _digests(others)
    order, other_order = images.ids.order().tolist(), others.ids.order().tolist()
    return [digests[index] for index in order] == [other_digests[index] for index in other_order]


def shared(images: Images, others: Images) -> int:
    """Return how many of ``images`` are among ``others``, by content and whatever they are called.

    Packed images and files are not compared.
    """
    if isinstance(images, PackedImages) != isinstance(others, PackedImages):
        return 0
    known = set(_digests(others))
    return sum(digest in known for digest in _digests(images))


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
        progress: not called if ``store`` has the pixels.
        store: where the pixels are kept for the next time.

    Raises:
        DataError: one of them cannot be decoded.
    """
    height, width = picture_size(images.root / images.ids[0], images.max_pixels)
    if (
        3 * height * width * len(images) > budget_bytes
        or min(height, width) > WHOLE_UP_TO
        or max(height, width) > _LONGEST
    ):
        return images
    first = images.load(0)
    size = first.numel() * len(images)
    if store is None or size < _WORTH_KEEPING_BYTES:
        pixels = _decoded_unchanged(images, first, workers, progress)
    else:
        pixels = _decode_once(images, first, workers, progress, store)
    return images if pixels is None else PackedImages(images.ids, images.labels, pixels)


def _decoded_unchanged(images: FileImages, first: Tensor, workers: int, progress: Progress) -> Tensor | None:
    """Return the pixels, as ``_decode_all`` does.

    Raises:
        DataError: a file was changed meanwhile, so that the pixels are not of what was read before; names it.
    """
    pixels = _decode_all(images, first, workers, progress)
    if changed := changed_files(images):
        raise DataError(f"files in {images.root} changed while they were read: {some(changed)}; wait and try again")
    return pixels


def _decode_once(images: FileImages, first: Tensor, workers: int, progress: Progress, store: Store) -> Tensor | None:
    images = replace(images, contents=_contents(images))
    key = fingerprint(images)
    kept = store.find(key)
    if kept is None:
        pixels = _decoded_unchanged(images, first, workers, progress)
        if pixels is None:
            return None
        # What cannot be kept only costs time the next time.
        with suppress(StorageError):
            store.keep(key, pixels.numpy())
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
    """Return a digest that is another one where these are not the same images in the same order, whatever their names.

    It includes the range with which deep pictures are decoded, and a limit on pixels that is not the usual one: it
    decides at which fraction of its size a large JPEG is decoded.

    Raises:
        DataError: a file is not there or cannot be read; names it.
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


def _chunks(part: range, size: int = 512) -> list[range]:
    return [part[start : start + size] for start in range(0, len(part), size)]

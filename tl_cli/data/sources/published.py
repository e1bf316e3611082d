"""Sets of the catalogue: files are fetched, checked, unpacked, and read by torchvision's own class."""

import gzip
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torchvision import datasets
from torchvision.datasets import GTSRB, Caltech101, Caltech256, OxfordIIITPet

from tl_cli.contract import SplitName
from tl_cli.data.images import FileImages, Images, PackedImages
from tl_cli.data.packed_names import Names
from tl_cli.data.sources.catalogue import BuiltIn, File
from tl_cli.data.sources.found import Found
from tl_cli.data.sources.unpack import is_archive, unpack
from tl_cli.errors import DataError
from tl_cli.io import download
from tl_cli.io.atomic import make_folder_once, storing
from tl_cli.io.download import Missing, Progress, silent

_ADVICE = (
    "Fetch it on a machine with network and put it into {folder} (--data-dir moves the data folder), or use "
    "--data digits or --data FOLDER."
)
# What torchvision's readers raise for missing or damaged files.
_UNREADABLE = (RuntimeError, OSError, ValueError, LookupError, TypeError, AssertionError, AttributeError, EOFError)


def open_set(built_in: BuiltIn, root: Path, progress: Progress = silent) -> Found:
    """Return the images of a set of the catalogue, fetched into ``root`` on first use.

    Every file is opened only after its MD5 is checked against the published one: some hold pickles.

    Raises:
        DataError: ``root`` does not hold the published set.
        DownloadError: a file cannot be fetched, or is not the published one.
        StorageError: the disk is full or may not be written.
    """
    root = root.expanduser().resolve()
    _fetch(built_in, root, progress)
    with _explained(built_in, root):
        opened = {part: open_part(built_in, root, part) for part in built_in.images}
        classes = _class_names(built_in, opened["train"])
        parts = {part: _images(built_in, root, part, dataset) for part, dataset in opened.items()}
    _check(built_in, root, classes, parts)
    return Found(classes, parts)


def open_part(built_in: BuiltIn, root: Path, part: SplitName) -> Any:
    """Return a part of a set that is in ``root`` as torchvision's own dataset, with paths instead of decoded images."""
    reader = built_in.reader
    if reader is None:
        return _digits()
    arguments: dict[str, object] = dict(reader.options) | ({"loader": str} if reader.reads_paths else {})
    if reader.part_argument:
        is_name = reader.part_argument == "split"
        arguments[reader.part_argument] = reader.split_names.get(part, part) if is_name else part == "train"
    return getattr(datasets, reader.dataset)(str(root), **arguments)


def _digits() -> SimpleNamespace:
    """Return scikit-learn's digits, their gray levels 0..16 stretched to 0..255."""
    from sklearn.datasets import load_digits  # here, since it takes a second to import and no other set needs it

    digits = load_digits()
    return SimpleNamespace(data=np.rint(digits.images * (255 / 16)).astype(np.uint8), targets=digits.target)


def is_here(built_in: BuiltIn, root: Path) -> bool:
    """Whether a set of the catalogue can be opened without fetching anything."""
    return not built_in.files or (root.expanduser().resolve() / built_in.stored_as).exists()


def missing(built_in: BuiltIn, root: Path) -> Missing | None:
    """Return the files that ``open_set`` would fetch; None if there are none."""
    root = root.expanduser().resolve()
    folder = root if built_in.folder is None else root / "archives" / built_in.name
    if built_in.folder is not None and is_here(built_in, root):
        return None
    urls = tuple(file.url for file in built_in.files if not (folder / file.name).exists())
    return Missing(urls, folder, _ADVICE.format(folder=folder)) if urls else None


def _fetch(built_in: BuiltIn, root: Path, progress: Progress) -> None:
    """Fetch and unpack the files of a set to where torchvision looks for them."""
    if built_in.folder is None:
        for file in built_in.files:
            _download(file, root, progress)
        return
    folder = built_in.folder

    def fill(temporary: Path) -> Path:
        for file in built_in.files:
            downloaded = _download(file, root / "archives" / built_in.name, progress)
            _unpack(downloaded, temporary / file.into, file.inner, temporary / "inner", progress)
        return temporary / folder

    make_folder_once(root / folder, fill)


def _download(file: File, folder: Path, progress: Progress) -> Path:
    target = folder / file.name
    advice = _ADVICE.format(folder=folder)
    download.download(file.url, target, file.md5, algorithm="md5", progress=progress, advice=advice)
    return target


def _unpack(downloaded: Path, into: Path, inner: str, aside: Path, progress: Progress) -> None:
    """Put a fetched file into a folder: an archive's files, those of the archives in it, or the file."""
    into.mkdir(parents=True, exist_ok=True)
    if inner:
        aside.mkdir()
        unpack(downloaded, aside, select=lambda name: fnmatch(name, inner), is_trusted=True, progress=progress)
        for nested in sorted(aside.glob(inner)):
            _unpack(nested, into, "", aside, progress)
    elif is_archive(downloaded.name):
        unpack(downloaded, into, is_trusted=True, progress=progress)
    else:
        _copy(downloaded, into)


def _copy(downloaded: Path, into: Path) -> None:
    is_packed = downloaded.suffix == ".gz"
    target = into / (downloaded.stem if is_packed else downloaded.name)
    with storing(target), (gzip.open if is_packed else open)(downloaded, "rb") as source, target.open("wb") as file:
        shutil.copyfileobj(source, file)


def _class_names(built_in: BuiltIn, dataset: Any) -> tuple[str, ...]:
    if built_in.names:
        return built_in.names
    found = dataset.categories if isinstance(dataset, Caltech101 | Caltech256) else dataset.classes
    # Imagenette has synonyms, the first of which is used; Caltech-256 numbers its folders.
    names = (name if isinstance(name, str) else name[0] for name in found)
    return tuple(re.sub(r"^\d{3}\.", "", name) for name in names)


def _images(built_in: BuiltIn, root: Path, part: SplitName, dataset: Any) -> Images:
    if not hasattr(dataset, "data"):
        return _files(root / str(built_in.folder), _listed(dataset))
    pixels = np.asarray(dataset.data)
    labels = np.asarray(dataset.targets if hasattr(dataset, "targets") else dataset.labels)
    return _pack(
        part if len(built_in.images) > 1 else built_in.name,
        pixels.swapaxes(1, 2) if built_in.transposed else pixels,
        # QMNIST has eight facts per digit; the first is its class.
        labels[:, 0] if labels.ndim == 2 else labels,
    )


def _pack(prefix: str, pixels: np.ndarray, labels: np.ndarray) -> PackedImages:
    """Take (N, H, W), (N, H, W, 3) or (N, 3, H, W) uint8 and N labels."""
    if pixels.ndim == 3:
        pixels = np.repeat(pixels[:, None], 3, axis=1)
    elif pixels.shape[-1] == 3:
        pixels = pixels.transpose(0, 3, 1, 2)
    ids = Names.of(f"{prefix}/{index:05d}" for index in range(len(pixels)))
    return PackedImages(ids, labels.astype(np.int64), torch.from_numpy(np.ascontiguousarray(pixels)))


def _files(folder: Path, listed: Iterable[tuple[str | Path, int]]) -> FileImages:
    pairs = list(listed)
    ids = Names.of(Path(path).relative_to(folder).as_posix() for path, _ in pairs)
    return FileImages(ids, np.array([label for _, label in pairs], dtype=np.int64), folder)


def _listed(dataset: Any) -> Iterable[tuple[str | Path, int]]:
    """Yield each image's path and label, undecoded."""
    match dataset:
        case OxfordIIITPet():
            yield from zip(dataset._images, dataset._labels, strict=True)
        case GTSRB():
            yield from dataset._samples
        case Caltech101() | Caltech256():
            is_256 = isinstance(dataset, Caltech256)
            folder = Path(dataset.root) / ("256_ObjectCategories" if is_256 else "101_ObjectCategories")
            for number, label in zip(dataset.index, dataset.y, strict=True):
                stem = f"{label + 1:03d}_{number:04d}" if is_256 else f"image_{number:04d}"
                yield folder / dataset.categories[label] / f"{stem}.jpg", label
        case _:
            for index in range(len(dataset)):
                yield dataset[index]


def _check(built_in: BuiltIn, root: Path, classes: tuple[str, ...], parts: dict[SplitName, Images]) -> None:
    """Refuse an incomplete folder, which torchvision's classes would accept."""
    found = {part: len(images) for part, images in parts.items()}
    if len(classes) != built_in.classes or found != dict(built_in.images):
        raise DataError(
            f"{root / built_in.stored_as} is not all of {built_in.title}: it has {len(classes)} classes "
            f"and {_counts(found)} images, instead of {built_in.classes} and {_counts(built_in.images)}; "
            "remove it and it will be unpacked again"
        )


def _counts(images: Any) -> str:
    return ", ".join(f"{count:,} {part}" for part, count in images.items())


@contextmanager
def _explained(built_in: BuiltIn, root: Path) -> Iterator[None]:
    try:
        yield
    except _UNREADABLE as error:
        raise DataError(
            f"{root / built_in.stored_as} is not the published {built_in.title} ({error}); "
            "remove it and it will be unpacked again"
        ) from error

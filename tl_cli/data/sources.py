"""From ``--data`` to labelled images in train, val and test, and from a saved model's data spec back to the same."""

import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import platformdirs
import psutil
import torch
from torchvision.datasets import CIFAR10

from tl_cli import fetch
from tl_cli.contract import SPLIT_NAMES, DataSpec, SplitName
from tl_cli.data import folder, splits
from tl_cli.data.images import FileImages, Images, PackedImages, describe, pack
from tl_cli.errors import DataError, StorageError
from tl_cli.fetch import Progress, silent

BUILT_IN = ("cifar10", "digits")
_PACK_LIMIT_BYTES = 4 << 30


@dataclass(frozen=True, slots=True)
class LabelledData:
    """A data set, split.

    Attributes:
        classes: names, sorted; a label is an index into them.
        parts: images of ``train``, ``val`` and, where there are any, ``test``.
        spec: what finds the same images and split again.
        notes: things a person should know.
    """

    classes: tuple[str, ...]
    parts: dict[SplitName, Images]
    spec: DataSpec
    notes: tuple[str, ...] = ()

    @property
    def native_size(self) -> int | None:
        """The images' short side in pixels where the training images are all of one size, else None."""
        train = self.parts["train"]
        return min(train.pixels.shape[-2:]) if isinstance(train, PackedImages) else None


@dataclass(frozen=True, slots=True)
class _Raw:
    classes: tuple[str, ...]
    layout: folder.Layout
    parts: dict[SplitName, Images]
    notes: tuple[str, ...] = ()


def open_data(spec: DataSpec, *, workers: int, progress: Progress = silent) -> LabelledData:
    """Return the images that ``spec`` names, split by its rule. Its layout and its digests are filled in.

    Raises:
        DataError: the source is unknown or its images cannot be used; says what was found.
        DownloadError: it must be fetched and cannot be.
    """
    raw = _open_source(spec.source, spec.data_dir, progress)
    parts = _split(raw, spec)
    described = {name: describe(parts[name], raw.classes) for name in SPLIT_NAMES if name in parts}
    packed: dict[SplitName, Images] = {}
    # Of all memory, not of what happens to be free: the same data must come out the same tomorrow.
    budget = min(_PACK_LIMIT_BYTES, psutil.virtual_memory().total // 4)
    for name in SPLIT_NAMES:
        if name in parts:
            images = parts[name]
            if isinstance(images, FileImages):
                images = pack(images, budget_bytes=budget, workers=workers, progress=progress)
            if isinstance(images, PackedImages):
                budget -= images.pixels.nbytes
            packed[name] = images
    source = spec.source if spec.source in BUILT_IN else str(Path(spec.source).expanduser().resolve())
    filled = spec.model_copy(update={"source": source, "layout": raw.layout, "splits": described})
    return LabelledData(raw.classes, packed, filled, raw.notes)


def changed_parts(then: DataSpec, now: DataSpec) -> list[SplitName]:
    """Return the parts whose images are no longer those of the digest."""
    return [name for name in SPLIT_NAMES if name in then.splits and then.splits[name] != now.splits.get(name)]


def check_still_there(source: str) -> None:
    """Raise where a data set that was used before has gone.

    Raises:
        DataError: the folder is not where it was; names the flag that says where it is.
    """
    if source not in BUILT_IN and not Path(source).exists():
        raise DataError(f"the images are no longer in {source}; say where they are now with --data DIR")


def cache_folder(data_dir: str | None) -> Path:
    """Return where downloaded sets are kept: ``--data-dir``, or the user's cache folder."""
    return Path(data_dir).expanduser() if data_dir else platformdirs.user_cache_path("tl") / "data"


def open_cifar10(root: Path, progress: Progress = silent, dataset: type[CIFAR10] = CIFAR10) -> dict[SplitName, Images]:
    """Return CIFAR-10's 50,000 training and 10,000 test images, fetched into ``root`` on first use.

    The archive holds pickles, so it is opened only after its MD5 and those of its members are checked against
    the ones that torchvision publishes.

    Raises:
        DownloadError: it is not in ``root`` and cannot be fetched, or is not the published one.
    """
    extracted = root / dataset.base_folder
    members = [name for name, _ in (*dataset.train_list, *dataset.test_list)]
    if not all((extracted / name).exists() for name in members):
        archive = root / dataset.filename
        fetch.download(
            dataset.url,
            archive,
            dataset.tgz_md5,
            algorithm="md5",
            progress=progress,
            advice=f"Fetch it on a machine with network and put it into {root} (--data-dir moves that folder), "
            "or use --data digits or --data FOLDER.",
        )
        _extract(archive, root)
    try:
        found = {part: dataset(str(root), train=part == "train", download=False) for part in ("train", "test")}
    except RuntimeError as error:
        raise DataError(
            f"{extracted} is not the published CIFAR-10; remove it and it will be unpacked again"
        ) from error
    return {
        "train": _pack_array("train", found["train"].data, found["train"].targets),
        "test": _pack_array("test", found["test"].data, found["test"].targets),
    }


def _open_source(source: str, data_dir: str | None, progress: Progress) -> _Raw:
    if source == "digits":
        return _digits()
    if source == "cifar10":
        parts = open_cifar10(cache_folder(data_dir), progress)
        names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
        return _Raw(names, "train/test", parts)
    path = Path(source).expanduser()
    if not path.exists() and "/" not in source:
        raise DataError(f"--data {source!r} is neither {' nor '.join(BUILT_IN)} nor a folder here. For a folder, "
                        + folder.EXPECTED)  # fmt: skip
    scanned = folder.scan(path)
    return _Raw(scanned.classes, scanned.layout, dict(scanned.parts), scanned.notes)


def _digits() -> _Raw:
    """scikit-learn's 1,797 handwritten digits, 8x8, grey levels 0..16 stretched to 0..255."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    rgb = np.repeat(grey[..., None], 3, axis=-1)
    classes = tuple(str(name) for name in digits.target_names)
    return _Raw(classes, "classes", {"train": _pack_array("digits", rgb, digits.target)})


def _pack_array(prefix: str, pixels: np.ndarray, labels: np.ndarray | list[int]) -> PackedImages:
    """Take (N, H, W, 3) uint8 and N labels."""
    ids = np.array([f"{prefix}/{index:05d}" for index in range(len(pixels))], dtype=object)
    tensor = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
    return PackedImages(ids, np.asarray(labels, dtype=np.int64), tensor)


def _split(raw: _Raw, spec: DataSpec) -> dict[SplitName, Images]:
    parts = dict(raw.parts)
    if spec.limit is not None:
        for name, images in parts.items():
            if spec.limit < len(images):
                parts[name] = images.subset(splits.subset(images.labels, spec.limit, spec.split_seed))
    if raw.layout == "classes":
        rest, out = splits.hold_out(parts["train"].labels, spec.test_fraction, spec.split_seed, raw.classes)
        parts["test"] = parts["train"].subset(out)
        parts["train"] = parts["train"].subset(rest)
    if "val" not in parts:
        # The share is of all training images, those already held out for the test included.
        share = spec.val_fraction / (1 - spec.test_fraction) if raw.layout == "classes" else spec.val_fraction
        kept, out = splits.hold_out(parts["train"].labels, share, spec.split_seed, raw.classes)
        parts["val"] = parts["train"].subset(out)
        parts["train"] = parts["train"].subset(kept)
    return parts


def _extract(archive: Path, root: Path) -> None:
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(root, filter="data")
    except tarfile.TarError as error:
        raise DataError(f"{archive} cannot be unpacked: {error}; delete it and try again") from error
    except OSError as error:
        raise StorageError(f"cannot unpack {archive} into {root}: {error.strerror or error}") from error

"""The outputs of a network's frozen first layers, computed once and kept; the rest trains on them at little cost."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from tl_cli.choices import FeatureDtype
from tl_cli.compute.device import Autocasting, Machine
from tl_cli.data.augment.settings import Augmentation, Stream, uniform
from tl_cli.data.batches import Batch, Loader, free_bytes, steps_in_epoch, training_order
from tl_cli.data.images import Images, changed_files, fingerprint
from tl_cli.data.preprocess import send
from tl_cli.errors import DamagedError, DataError, DivergedError, StorageError, some
from tl_cli.evaluation.logits import outputs
from tl_cli.io.array_cache import Rows, Store
from tl_cli.io.download import cache_root
from tl_cli.io.memory import memory_bytes
from tl_cli.models.graph import Cut
from tl_cli.training.config import TrainConfig
from tl_cli.training.phases import Phase

# Raised by every change that gives other features for the same images and weights.
_FORMAT = 2
_DEVICE_SHARE = 0.2
_MOST_DISK_BYTES = 50 << 30
_DISK_SHARE = 0.5
_DTYPES: dict[FeatureDtype, torch.dtype] = {"fp16": torch.float16, "fp32": torch.float32}

View = Literal["plain", "mirrored"] | int


@dataclass(frozen=True, slots=True)
class CacheLimits:
    """Which features are cached, and where.

    Attributes:
        least_gain: how many times faster a phase must become, unless only the head trains, where the cached views are
            fewer than the augmentations.
        least_gain_if_exact: the same where they are all: each image as it is, and mirrored if it may be. MACs
            underestimate the gain, since the first layers have the largest maps: epochs from ``blocks.3`` of
            EfficientNet-Lite0 at 96 px took 94 s instead of 134 (45,000 images, two threads of an Intel Xeon with AMX).
        memory_share: fraction of the memory; larger features are read from the disk.
    """

    least_gain: float = 1.5
    least_gain_if_exact: float = 1.02
    memory_share: float = 0.25


LIMITS = CacheLimits()


@dataclass(frozen=True, slots=True)
class CachePlan:
    """How a phase trains on cached features.

    Attributes:
        cut: of the network, frozen as in the phase.
        views: of each training image: plain, mirrored, or the number of an augmented view.
        dtype: of the stored features.
        size_bytes: of all features of the phase.
        in_memory: whether they fit the memory; otherwise they are read from the disk.
        gain: how many times faster the phase becomes, by MACs.
    """

    cut: Cut
    views: tuple[View, ...]
    dtype: torch.dtype
    size_bytes: int
    in_memory: bool
    gain: float

    def describe(self) -> str:
        """Return what is cached, for people."""
        numbers = " x ".join(map(str, self.cut.shape))
        views = f"{len(self.views)} augmented views" if isinstance(self.views[0], int) else " and ".join(
            str(view) for view in self.views
        )  # fmt: skip
        where = "memory" if self.in_memory else "a file"
        return f"features after {self.cut.after}: {numbers}, {views}, {self.size_bytes / 1e6:,.0f} MB in {where}"


class DiskView:
    """The features of one view, (N, ...), read from the disk when used, and recomputed if they are damaged.

    It has the methods of a tensor that ``CachedFeatures`` uses.
    """

    device = torch.device("cpu")

    def __init__(self, rows: Rows, again: Callable[[], Rows]) -> None:
        """Use rows of a file.

        Args:
            again: returns the same rows, recomputed if the file is damaged.
        """
        self._rows = rows
        self._again = again
        self.shape = rows.shape
        self.dtype = torch.from_numpy(np.empty(0, rows.dtype)).dtype
        self.nbytes = int(np.prod(rows.shape)) * rows.dtype.itemsize

    def __getitem__(self, rows: slice) -> Tensor:
        """Return successive rows."""
        return self._take(np.arange(*rows.indices(self.shape[0])))

    def index_select(self, dim: Literal[0], index: Tensor) -> Tensor:
        """Return the rows at ``index``, in that order."""
        return self._take(index.numpy())

    def to(self, device: torch.device, rows_per_copy: int = 256) -> Tensor:
        """Return all rows on a device."""
        moved = torch.empty(self.shape, dtype=self.dtype, device=device)
        for first in range(0, self.shape[0], rows_per_copy):
            rows = slice(first, first + rows_per_copy)
            moved[rows] = self[rows].to(device)
        return moved

    def _take(self, indices: np.ndarray) -> Tensor:
        try:
            return torch.from_numpy(self._rows.take(indices))
        except DamagedError:
            self._rows = self._again()
            return torch.from_numpy(self._rows.take(indices))


@dataclass(frozen=True, slots=True)
class CachedFeatures:
    """The cached features of one split.

    Attributes:
        views: (N, ...) each, of one dtype; on the device where they fit, otherwise on the CPU or on the disk.
        labels: (N, ...), on the CPU.
        batch_size: images per training step.
        clean_batch: images per evaluation batch.
        device: of the batches.
        balanced: whether training shows every class equally often.
        drop_single: whether a last batch of one image is left out of a training epoch.
        flips: whether the second view is the mirror image of the first, drawn like the augmentation's flip.
    """

    views: tuple[Tensor | DiskView, ...]
    labels: Tensor
    batch_size: int
    clean_batch: int
    device: torch.device
    balanced: bool = False
    drop_single: bool = False
    flips: bool = False

    @property
    def steps(self) -> int:
        """Batches in one training epoch."""
        return steps_in_epoch(len(self.labels), self.batch_size, drop_single=self.drop_single)

    def train(self, seed: int, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of one training epoch in the order of ``training_order``, with a random view of each image.

        Args:
            start: number of batches to skip at the beginning.
        """
        order, keys = training_order(self.labels.numpy(), seed, epoch, balanced=self.balanced)
        chosen = self._draw(seed, epoch, keys)
        labels = self.labels[torch.from_numpy(order)].to(self.device)
        for first in range(start * self.batch_size, self.steps * self.batch_size, self.batch_size):
            batch = slice(first, first + self.batch_size)
            yield Batch(self._gather(chosen[batch], order[batch]), labels[batch])

    def clean(self, views: int = 1) -> Iterator[Batch]:
        """Yield the first views of every image, in order: a batch of one view, then the same images in the next."""
        count = self.clean_batch
        for number, labels in enumerate(self.labels.split(count)):
            for view in self.views[:views]:
                features = view[number * count : (number + 1) * count]
                # Always a copy: the network may modify it in place.
                inputs = features.to(self.device, torch.float32, non_blocking=True, copy=True)
                yield Batch(inputs, labels.to(self.device))

    def _draw(self, seed: int, epoch: int, keys: np.ndarray) -> np.ndarray:
        """Return the index of a view for each key, (B,) int64."""
        if self.flips:
            return (uniform(seed, epoch, keys, Stream.FLIP) < 0.5).astype(np.int64)
        return (uniform(seed, epoch, keys, Stream.VIEW) * len(self.views)).astype(np.int64)

    def _gather(self, chosen: np.ndarray, indices: np.ndarray) -> Tensor:
        first = self.views[0]
        gathered = torch.empty((len(indices), *first.shape[1:]), dtype=first.dtype, device=first.device)
        for number, view in enumerate(self.views):
            rows = np.flatnonzero(chosen == number)
            taken = view.index_select(0, send(indices[rows], first.device))
            gathered.index_copy_(0, send(rows, first.device), taken)
        return gathered.to(self.device, non_blocking=True).float()


def on_device(views: tuple[Tensor | DiskView, ...], device: torch.device) -> tuple[Tensor | DiskView, ...]:
    """Return the views moved to the device if they need little of its memory, otherwise as they are."""
    if device.type == "cpu" or sum(view.nbytes for view in views) > _DEVICE_SHARE * free_bytes(device):
        return views
    return tuple(view.to(device) for view in views)


def views_of(config: TrainConfig, settings: Augmentation, most: int | None) -> tuple[View, ...]:
    """Return the views of each training image, ``most`` at most."""
    if config.feature_views == "flip":
        chosen: tuple[View, ...] = ("plain", "mirrored") if settings.flip else ("plain",)
    elif config.feature_views == "plain":
        chosen = ("plain",)
    else:
        chosen = tuple(range(1, int(config.feature_views) + 1))
    return chosen[:most]


def judged_views(config: TrainConfig) -> tuple[View, ...]:
    """Return the views of each validation image."""
    return ("plain", "mirrored") if config.tta == "flip" else ("plain",)


def plan_cache(
    cut: Cut | None,
    phase: Phase,
    config: TrainConfig,
    settings: Augmentation,
    images: tuple[int, int],
    limits: CacheLimits = LIMITS,
) -> CachePlan | str:
    """Return how a phase trains on cached features, or the reason why it does not.

    Args:
        cut: of the network, frozen as in the phase; None where it cannot be cut.
        settings: augmentation of the training images.
        images: numbers of training and validation images.
    """
    if cut is None:
        return "no single tensor passes from what is frozen to what trains"
    is_head = phase.name == "head"
    if not is_head and config.image_changes:
        return f"{', '.join(config.image_changes)} need images"
    train, val = images[0], images[1] * len(judged_views(config))
    # An epoch of steps sees one view of each image, a regression all.
    views = views_of(config, settings, None if is_head and config.head_fit == "logistic" else phase.epochs)
    # A backward pass costs as much as two forward passes.
    tail = 3 * cut.tail_cost * phase.epochs * train
    without = tail + cut.prefix_cost * phase.epochs * (train + val)
    gain = without / (tail + cut.prefix_cost * (len(views) * train + val))
    is_exact = views == settings.all_views
    if not is_head and gain < (limits.least_gain_if_exact if is_exact else limits.least_gain):
        return f"images would be seen in {len(views)} views only, and it would be only {gain:.2f} times faster"
    dtype = _DTYPES[config.feature_dtype]
    size = (len(views) * train + val) * int(np.prod(cut.shape)) * dtype.itemsize
    # A fraction of all memory, not of the free memory: a resumed run must decide as before.
    memory = memory_bytes() * limits.memory_share
    room = store().room
    if size > max(memory, room):
        return f"they would take {size / 1e9:.1f} GB; {memory / 1e9:.1f} GB of memory or {room / 1e9:.1f} GB of disk"
    return CachePlan(cut, views, dtype, size, size <= memory, gain)


def store(say: Callable[[str], None] = lambda message: None) -> Store:
    """Return the store that keeps features between runs.

    Args:
        say: called with a warning where stored features are damaged.
    """

    def damaged(path: Path) -> None:
        say(f"the cached features in {path} were damaged; they are computed again")

    return Store(cache_root() / "features", _MOST_DISK_BYTES, _DISK_SHARE, damaged)


@dataclass(frozen=True, slots=True)
class Cache:
    """Computes features, or finds those of an earlier run.

    Attributes:
        plan: what is cached.
        machine: device and precision of the computation.
        say: called with a warning where stored features are damaged.
    """

    plan: CachePlan
    machine: Machine
    say: Callable[[str], None] = lambda message: None

    def features(
        self, loader: Loader, views: Sequence[View], settings: Augmentation, seed: int, counted: Callable[[int], None]
    ) -> tuple[tuple[Tensor | DiskView, ...], bool]:
        """Return the features (N, ...) of a loader's images in each view, and whether all were found in the store.

        Args:
            settings: augmentation of the augmented views.
            seed: of the augmented views.
            counted: called with the number of images done, over all views.

        Raises:
            DivergedError: a feature overflows the dtype, which happens in untrained deep networks.
            StorageError: the features do not fit the memory, and the disk is full.
        """
        data = fingerprint(loader.images)
        features: list[Tensor | DiskView] = []
        is_new: list[int] = []
        for number, view in enumerate(views):
            key = self._key(loader, data, view, settings, seed)
            before = number * len(loader.images)

            def computed(view: View = view, before: int = before) -> Iterator[np.ndarray]:
                is_new.append(before)
                return self._rows(_batches(loader, view, settings, seed), lambda done: counted(before + done))

            features.append((self._in_memory if self.plan.in_memory else self._on_disk)(key, loader.images, computed))
            counted(before + len(loader.images))
        return tuple(features), not is_new

    def _on_disk(self, key: str, images: Images, computed: Callable[[], Iterator[np.ndarray]]) -> DiskView:
        def rows() -> Rows:
            unchanged = _unchanged(computed, images)
            return store(self.say).find_or_make(key, self._shape(images), self._dtype, unchanged)

        return DiskView(rows(), rows)

    def _in_memory(self, key: str, images: Images, computed: Callable[[], Iterator[np.ndarray]]) -> Tensor:
        stored = store(self.say).find(key)
        if stored is not None:
            return torch.from_numpy(stored)
        made = np.empty(self._shape(images), self._dtype)
        start = 0
        for rows in computed():
            made[start : start + len(rows)] = rows
            start += len(rows)
        # Never store features of changed images under the digest of the original ones.
        if not changed_files(images):
            # Failing to store them only costs time in the next run.
            with suppress(StorageError):
                store().keep(key, made)
        return torch.from_numpy(made)

    def _shape(self, images: Images) -> tuple[int, ...]:
        return (len(images), *self.plan.cut.shape)

    @property
    def _dtype(self) -> np.dtype:
        return torch.empty(0, dtype=self.plan.dtype).numpy().dtype

    def _rows(self, batches: Iterator[Batch], counted: Callable[[int], None]) -> Iterator[np.ndarray]:
        network = Autocasting(self.plan.cut.prefix, self.machine)
        done = 0
        for _, computed in outputs(network, batches, at_once=self.machine.at_once):
            features = computed.to("cpu", self.plan.dtype)
            if not torch.isfinite(features).all():
                raise DivergedError(
                    f"the outputs of the frozen layers overflow {str(self.plan.dtype).removeprefix('torch.')}; "
                    "use --feature-dtype fp32, --no-feature-cache or pretrained weights"
                )
            yield features.numpy()
            done += len(features)
            counted(done)

    def _key(self, loader: Loader, data: str, view: View, settings: Augmentation, seed: int) -> str:
        return json.dumps(
            {
                "format": _FORMAT,
                "torch": torch.__version__,
                "timm": version("timm"),
                "torchvision": version("torchvision"),
                "code": self.plan.cut.code,
                "weights": _digest(self.plan.cut.prefix),
                "data": data,
                "preprocessing": loader.preprocessing.model_dump(mode="json"),
                "view": [view, repr(settings), seed] if isinstance(view, int) else view,
                "dtype": str(self.plan.dtype),
                "machine": self.machine.arithmetic(),
            },
            sort_keys=True,
        )


def _unchanged(computed: Callable[[], Iterator[np.ndarray]], images: Images) -> Iterator[np.ndarray]:
    """Yield computed rows; the error after the last one keeps features of changed images out of the store.

    Raises:
        DataError: images changed meanwhile; names the files.
    """
    yield from computed()
    if changed := changed_files(images):
        raise DataError(f"images changed while their features were computed: {some(changed)}; start a new run")


def _batches(loader: Loader, view: View, settings: Augmentation, seed: int) -> Iterator[Batch]:
    if isinstance(view, int):
        return loader.in_order(settings, seed, view)
    return loader.clean(mirrored=view == "mirrored")


def _digest(network: nn.Module) -> str:
    """Return the SHA-256 of all parameters and buffers, and of the modules' text form."""
    digest = hashlib.sha256(repr(network).encode())
    for name, value in network.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\0".encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()

"""Features of a frozen backbone, computed once: the head then trains on them at almost no cost."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import psutil
import torch
from torch import Tensor, nn

from tl_cli.data.augmentation import Stream, uniform
from tl_cli.data.loaders import Batch, Loader, steps_in_epoch, training_order
from tl_cli.errors import DivergedError
from tl_cli.models.zoo import Classifier
from tl_cli.training.machine import Machine

STORED_AS = torch.float16
# More than this share of the memory is not taken.
_MEMORY_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class CachedFeatures:
    """What the backbone made of one part of the data.

    Attributes:
        views: (V, N, ...) of ``STORED_AS`` on the CPU: the plain images and, where there are two, the mirrored ones.
        labels: (N,) int64.
        batch_size: of training.
        device: where batches are wanted.
        balanced: in training every class comes equally often.
    """

    views: Tensor
    labels: Tensor
    batch_size: int
    device: torch.device
    balanced: bool = False

    @property
    def steps(self) -> int:
        """Batches in one training epoch."""
        return steps_in_epoch(len(self.labels), self.batch_size)

    def train(self, seed: int, epoch: int) -> Iterator[Batch]:
        """Yield the features of one training epoch (``training_order``), each from a view drawn for its key."""
        order, keys = training_order(self.labels.numpy(), seed, epoch, balanced=self.balanced)
        view = (uniform(seed, epoch, keys, Stream.VIEW) * len(self.views)).astype(np.int64)
        places, chosen = torch.from_numpy(order), torch.from_numpy(view)
        for start in range(0, len(order), self.batch_size):
            index = places[start : start + self.batch_size]
            yield self._batch(self.views[chosen[start : start + self.batch_size], index], self.labels[index])

    def clean(self) -> Iterator[Batch]:
        """Yield the plain view of every image, in order."""
        for start in range(0, len(self.labels), 4096):
            yield self._batch(self.views[0, start : start + 4096], self.labels[start : start + 4096])

    def _batch(self, features: Tensor, labels: Tensor) -> Batch:
        return Batch(features.to(self.device).float(), labels.to(self.device))


def can_cache(classifier: Classifier, machine: Machine, input_size: int, images: int) -> str | None:
    """Return None where the head can train on cached features, else the reason why not.

    Args:
        images: how many feature vectors would be kept, views counted.
    """
    if len(classifier.head) != 1:
        return "its head has several parts"
    classifier.model.eval()
    example = torch.zeros(2, 3, input_size, input_size, device=machine.device)
    with torch.inference_mode():
        logits = classifier.model(example)
        with without_head(classifier) as backbone:
            features = backbone(example)
        rebuilt = classifier.head_modules[0](features) if _fits(classifier.head_modules[0], features) else None
    if rebuilt is None or rebuilt.shape != logits.shape or not torch.allclose(rebuilt, logits, atol=1e-4):
        return "its head is not the last thing it computes"
    needed = features[0].numel() * images * STORED_AS.itemsize
    # Of all memory, not of what happens to be free: a resumed run must decide as the first one did.
    free = psutil.virtual_memory().total * _MEMORY_SHARE
    if needed > free:
        return f"they would take {needed / 1e9:.1f} GB of memory, of which {free / 1e9:.1f} GB may be used"
    return None


def cache_features(
    classifier: Classifier,
    machine: Machine,
    loader: Loader,
    *,
    mirrored: bool,
    counted: Callable[[int], None],
) -> CachedFeatures:
    """Return the features of a loader's images, in float16.

    Args:
        mirrored: keep the features of the mirrored images as a second view.
        counted: told how many images are done, over all views.

    Raises:
        DivergedError: a feature is beyond float16, as an untrained deep network's may be.
    """
    classifier.model.eval()
    count = len(loader.images)
    views: Tensor | None = None
    done = 0
    for view, flip in enumerate((False, True) if mirrored else (False,)):
        start = 0
        for batch in loader.clean(mirrored=flip):
            with torch.inference_mode(), without_head(classifier) as backbone, machine.autocast():
                inputs = batch.inputs.contiguous(memory_format=machine.memory_format)
                features = backbone(inputs).to("cpu", STORED_AS)
            if not torch.isfinite(features).all():
                raise DivergedError(
                    "the frozen backbone gives numbers that half precision cannot hold; use --no-feature-cache, "
                    "or weights that were trained"
                )
            if views is None:
                views = torch.empty((1 + mirrored, count, *features.shape[1:]), dtype=STORED_AS)
            views[view, start : start + len(features)] = features
            start += len(features)
            done += len(features)
            counted(done)
    assert views is not None
    return CachedFeatures(views, torch.from_numpy(loader.images.labels), loader.batch_size, loader.device)


@contextmanager
def without_head(classifier: Classifier) -> Iterator[nn.Module]:
    """Lend the model with its one head replaced by the identity: it then returns the head's input."""
    (name,) = classifier.head
    head = classifier.model.get_submodule(name)
    classifier.model.set_submodule(name, nn.Identity())
    try:
        yield classifier.model
    finally:
        classifier.model.set_submodule(name, head)


def _fits(head: nn.Module, features: Tensor) -> bool:
    return isinstance(head, nn.Linear) and features.dim() == 2 and features.shape[1] == head.in_features

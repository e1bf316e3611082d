"""Splits images into training, validation and test: stratified, seeded, equal on every machine."""

import numpy as np

from tl_cli.errors import DataError


def stratified_order(labels: np.ndarray, seed: int) -> np.ndarray:
    """Return a shuffled order of all images, of which any first N have the proportions of the classes.

    Args:
        labels: (N,) int64.
    """
    by_class, rank, counts = _by_class(_shuffled(labels, seed), labels)
    # Image k of a class with n images goes to position (k + 1/2) / n: classes interleave in proportion.
    position = (rank + 0.5) / counts[labels[by_class]]
    order: np.ndarray = by_class[np.argsort(position, kind="stable")]
    return order


def subset(labels: np.ndarray, count: int, seed: int, *, least: int = 1, flag: str = "--limit") -> np.ndarray:
    """Return the sorted indices of a stratified subset.

    Args:
        least: minimum images per class; all images of a smaller class are kept.
        flag: the option with which ``count`` was given.

    Raises:
        DataError: ``count`` is too small for that.
    """
    needed = int(np.minimum(np.bincount(labels), least).sum())
    if count < needed:
        each = "an image" if least == 1 else f"{least} images, so that a random split has some of each"
        raise DataError(
            f"{flag} {count} is too few for {len(np.unique(labels))} classes; each needs {each}: {flag} {needed}"
        )
    order = stratified_order(labels, seed)
    by_class, rank, _ = _by_class(order, labels)
    is_first = np.isin(order, by_class[rank < least])
    return np.sort(np.concatenate([order[is_first], order[~is_first]])[:count])


def beginning(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return the sorted indices of ``count`` images, as nearly as possible in the proportions of the classes."""
    return np.sort(stratified_order(labels, seed)[:count])


def hold_out(
    labels: np.ndarray, fraction: float, seed: int, whole: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return (kept, held out) as sorted indices; a class of two or more images has one on both sides.

    Args:
        fraction: share of each class that is held out, rounded, one at least.
        whole: labels of the classes of which no image is held out.
    """
    by_class, rank, counts = _by_class(_shuffled(labels, seed), labels)
    out = np.minimum(np.maximum(np.rint(counts * fraction).astype(np.int64), 1), np.maximum(counts - 1, 0))
    if whole is not None:
        out[whole] = 0
    is_out = rank < out[labels[by_class]]
    return np.sort(by_class[~is_out]), np.sort(by_class[is_out])


def _shuffled(labels: np.ndarray, seed: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(seed)).permutation(len(labels))


def _by_class(order: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the indices in ``order`` sorted by class, the rank of each in its class, and the class counts."""
    by_class = order[np.argsort(labels[order], kind="stable")]
    counts = np.bincount(labels)
    return by_class, np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts), counts

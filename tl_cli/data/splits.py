"""Which image is training, validation or test: stratified, seeded, the same on every machine."""

import numpy as np

from tl_cli.errors import DataError


def stratified_order(labels: np.ndarray, seed: int) -> np.ndarray:
    """Return a shuffled order of all images in which every beginning has the classes' own proportions.

    Args:
        labels: (N,) int64.
    """
    by_class, rank, counts = _shuffled_by_class(labels, seed)
    # Image k of a class with n images goes to position (k + 1/2) / n: classes interleave in proportion.
    place = (rank + 0.5) / counts[labels[by_class]]
    order: np.ndarray = by_class[np.argsort(place, kind="stable")]
    return order


def subset(labels: np.ndarray, count: int, seed: int, *, least: int = 1, flag: str = "--limit") -> np.ndarray:
    """Return the sorted indices of a stratified subset.

    Args:
        least: images of each class that are kept, or all it has.
        flag: that asks for ``count`` images.

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
    rank = np.empty(len(labels), dtype=np.int64)
    by_class = order[np.argsort(labels[order], kind="stable")]
    counts = np.bincount(labels)
    rank[by_class] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    firsts = order[rank[order] < least]
    rest = order[~np.isin(order, firsts)]
    return np.sort(np.concatenate([firsts, rest])[:count])


def beginning(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return the sorted indices of ``count`` images in the classes' own proportions, as far as so few can have them."""
    return np.sort(stratified_order(labels, seed)[:count])


def hold_out(
    labels: np.ndarray, fraction: float, seed: int, whole: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return (kept, held out) as sorted indices; every class of two images has one on both sides.

    Args:
        fraction: share of each class that is held out, rounded, one at least.
        whole: labels of the classes of which nothing is held out.
    """
    by_class, rank, counts = _shuffled_by_class(labels, seed)
    out = np.minimum(np.maximum(np.rint(counts * fraction).astype(np.int64), 1), np.maximum(counts - 1, 0))
    if whole is not None:
        out[whole] = 0
    is_out = rank < out[labels[by_class]]
    return np.sort(by_class[~is_out]), np.sort(by_class[is_out])


def _shuffled_by_class(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the indices class by class in random order, each one's rank in its class, and the class counts."""
    shuffled = np.random.Generator(np.random.Philox(seed)).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    counts = np.bincount(labels)
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return by_class, rank, counts

"""Which image is training, validation or test: stratified, seeded, the same on every machine."""

import numpy as np

from tl_cli.errors import DataError


def stratified_order(labels: np.ndarray, seed: int) -> np.ndarray:
    """Return a shuffled order of all images in which every beginning has the classes' own proportions.

    Args:
        labels: (N,) int64.
    """
    by_class, rank, counts = _shuffled_by_class(labels, seed)
    # Image k of a class with n images goes to place (k + 1/2) / n: classes interleave in proportion.
    place = (rank + 0.5) / counts[labels[by_class]]
    order: np.ndarray = by_class[np.argsort(place, kind="stable")]
    return order


def subset(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return the sorted indices of a stratified subset, with at least one image of every class.

    Raises:
        DataError: ``count`` is smaller than the number of classes.
    """
    classes = np.unique(labels)
    if count < len(classes):
        raise DataError(f"--limit {count} is fewer than the {len(classes)} classes; each needs an image")
    order = stratified_order(labels, seed)
    firsts = order[np.unique(labels[order], return_index=True)[1]]
    rest = order[~np.isin(order, firsts)]
    return np.sort(np.concatenate([firsts, rest])[:count])


def beginning(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return the sorted indices of ``count`` images in the classes' own proportions, as far as so few can have them."""
    return np.sort(stratified_order(labels, seed)[:count])


def hold_out(labels: np.ndarray, fraction: float, seed: int, classes: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return (kept, held out) as sorted indices; every class has an image on both sides.

    Args:
        fraction: share of each class that is held out, rounded, one at least.

    Raises:
        DataError: a class has a single image.
    """
    by_class, rank, counts = _shuffled_by_class(labels, seed)
    lonely = [classes[label] for label in np.flatnonzero(counts == 1)]
    if lonely:
        raise DataError(f"a single image cannot be split: {', '.join(lonely[:5])}; give each class 3 or more")
    out = np.clip(np.rint(counts * fraction).astype(np.int64), 1, np.maximum(counts - 1, 1))
    is_out = rank < out[labels[by_class]]
    return np.sort(by_class[~is_out]), np.sort(by_class[is_out])


def _shuffled_by_class(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the indices class by class in random order, each one's rank in its class, and the class counts."""
    shuffled = np.random.Generator(np.random.Philox(seed)).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    counts = np.bincount(labels)
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return by_class, rank, counts

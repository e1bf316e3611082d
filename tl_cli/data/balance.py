"""Class imbalance of a training set, and the ratio above which the recipes correct it."""

import numpy as np

# Imbalance above which the recipes use the balanced sampler (measurements: training/recipes.py).
UNEVEN = 10.0


def imbalance(labels: np.ndarray, num_classes: int) -> float:
    """Return the size of the largest class over that of the smallest; an empty class counts as one image."""
    sizes = np.bincount(labels, minlength=num_classes)
    return float(sizes.max() / max(1, sizes.min()))

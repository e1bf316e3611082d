"""How uneven the classes of a training set are, and from where on the recipes correct for it."""

import numpy as np

# Ratio of the largest class to the smallest from which on the recipes use the balanced sampler (training/recipes.py
# has the measurements).
UNEVEN = 10.0


def imbalance(labels: np.ndarray, num_classes: int) -> float:
    """Return how many times as many images the largest class has as the smallest, an empty one counted as one image."""
    sizes = np.bincount(labels, minlength=num_classes)
    return float(sizes.max() / max(1, sizes.min()))

"""Models to rank, made from the images that each predicts correctly."""

import numpy as np
import torch

from tl_cli.evaluation.logits import LabelledLogits, SavedLogits
from tl_cli.evaluation.ranking import Contender, Cost, Training

CLASSES = ("ant", "bee", "cow")
COST = Cost(1000, 2000, 32, 4000, 100.0)


def contender(name: str, *rights: np.ndarray, cost: Cost = COST, **facts: object) -> Contender:
    facts = {"conditions": {"architecture": name}, **facts}
    return Contender(
        name, tuple(Training(f"{name}-{i}", saved_logits_of(each), **facts) for i, each in enumerate(rights)), cost
    )


def some_right(share: float, count: int = 1000, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(count) < share


def saved_logits_of(right: np.ndarray, *, classes: tuple[str, ...] = CLASSES, shuffled: bool = False) -> SavedLogits:
    """Logits that are correct for these images; the labels cycle through the classes."""
    labels = np.arange(len(right)) % 3
    predicted = np.where(right, labels, (labels + 1) % 3)
    order = np.random.default_rng(0).permutation(len(right)) if shuffled else np.arange(len(right))
    indices = np.array([classes.index(name) for name in CLASSES])
    logits = torch.nn.functional.one_hot(torch.from_numpy(indices[predicted[order]]), len(classes)).float()
    ordered_labels = torch.from_numpy(indices[labels[order]])
    return SavedLogits(LabelledLogits(logits, ordered_labels), tuple(f"{i}.png" for i in order), classes)

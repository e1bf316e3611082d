"""Dropout on the input of a head, for any architecture."""

from typing import Any

import torch.nn.functional as F  # noqa: N812
from torch import nn

from tl_cli.models.zoo.registry import Classifier


def set_dropout(classifier: Classifier, probability: float) -> None:
    """Apply dropout to the head's input in training, instead of the architecture's own dropout there.

    It works in every phase, on cached features too: it is part of the head, which is in training mode whenever it
    trains. Hidden layers of a classifier keep their own dropout.
    """
    for name, head in zip(classifier.head, classifier.head_modules, strict=True):
        own = _dropout_before(classifier.model, name)
        if own is not None:
            own.p = 0.0
        head.register_forward_pre_hook(_Dropping(probability))


class _Dropping:
    """A forward pre-hook of a head. A class, since copies of the model keep it, unlike a closure."""

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def __call__(self, head: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (F.dropout(inputs[0], self.probability, head.training), *inputs[1:])


def _dropout_before(model: nn.Module, head: str) -> nn.Dropout | None:
    """Return the last dropout among the head's preceding siblings."""
    parent, _, own = head.rpartition(".")
    found = None
    for name, child in model.get_submodule(parent).named_children():
        if name == own:
            return found
        if isinstance(child, nn.Dropout):
            found = child
        elif any(True for _ in child.parameters()):
            found = None  # a hidden layer is between
    return found

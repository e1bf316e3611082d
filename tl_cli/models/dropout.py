"""Dropout on the input of a head, for any architecture."""

from functools import partial
from typing import Any

import torch.nn.functional as F  # noqa: N812
from torch import nn

from tl_cli.models.classifier import Classifier


def set_dropout(classifier: Classifier, probability: float) -> None:
    """Apply dropout to the head's input in training, instead of the architecture's own dropout there.

    It works in every phase, on cached features too: it is part of the head, which is in training mode whenever it
    trains. Hidden layers of a classifier keep their own dropout.
    """
    for name, head in zip(classifier.head, classifier.head_modules, strict=True):
        own = _dropout_before(classifier.model, name)
        if own is not None:
            own.p = 0.0
        # Copies of the model keep this hook, unlike a closure.
        head.register_forward_pre_hook(partial(_drop_input, probability))


def _drop_input(probability: float, head: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (F.dropout(inputs[0], probability, head.training), *inputs[1:])


def _dropout_before(model: nn.Module, head: str) -> nn.Dropout | None:
    """Return the last dropout among the head's preceding siblings."""
    parent, _, own = head.rpartition(".")
    last = None
    for name, child in model.get_submodule(parent).named_children():
        if name == own:
            break
        if isinstance(child, nn.Dropout):
            last = child
        elif any(True for _ in child.parameters()):
            last = None  # a hidden layer is between
    return last

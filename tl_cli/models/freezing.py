"""What trains and what stays as it is, by module identity. Never by a part of a parameter's name."""

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

BatchNormMode = Literal["frozen", "train"]


def freeze_backbone(model: nn.Module, head: Collection[nn.Module]) -> None:
    """Leave only ``head`` trainable; everything else stops changing, buffers included.

    A frozen module is put into eval mode and stays there when ``model.train()`` is called, so BatchNorm
    statistics and dropout stand still too.
    """
    thaw(model)
    in_head = {module for part in head for module in part.modules()}
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for module in model.modules():
        if module not in in_head:
            _pin_to_eval(module)
    for part in head:
        part.requires_grad_(True)


def unfreeze(model: nn.Module, batch_norm: BatchNormMode) -> None:
    """Make every parameter trainable.

    Args:
        batch_norm: ``frozen`` keeps the running statistics of BatchNorm as they are and uses them (its scale
            and shift still train); ``train`` normalises by the batch and updates the statistics.
    """
    thaw(model)
    model.requires_grad_(True)
    if batch_norm == "frozen":
        for module in batch_norms(model.modules()):
            _pin_to_eval(module)


def freeze(modules: Iterable[nn.Module], parameters: Iterable[nn.Parameter]) -> None:
    """Let these modules and parameters stop changing, buffers included, as ``freeze_backbone`` does with all others."""
    for module in modules:
        for part in module.modules():
            _pin_to_eval(part)
    for parameter in parameters:
        parameter.requires_grad_(False)


def thaw(model: nn.Module) -> None:
    """Let ``train()`` reach every module again; parameters are left as they are."""
    for module in model.modules():
        module.__dict__.pop("train", None)


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode while the block lasts; each module is in its own mode again afterwards."""
    were = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        # LeViT keeps what it computed from its weights in eval mode until it is told to train.
        model.train()
        for module, was in were:
            module.training = was


def batch_norms(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """Return those modules that keep running statistics of batches."""
    return [module for module in modules if isinstance(module, _BatchNorm)]


def _pin_to_eval(module: nn.Module) -> None:
    module.training = False
    # An attribute of the instance, so that the parent's train() finds it, and a copy of the model keeps it.
    module.train = MethodType(_train_children_only, module)  # type: ignore[method-assign]


def _train_children_only(self: nn.Module, mode: bool = True) -> nn.Module:
    self.training = False
    for child in self.children():
        child.train(mode)
    return self

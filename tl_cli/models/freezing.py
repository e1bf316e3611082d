"""Freezing and unfreezing by module identity, never by a substring of a parameter's name."""

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

BatchNormMode = Literal["frozen", "train"]


def freeze_backbone(model: nn.Module, head: Collection[nn.Module]) -> None:
    """Make only ``head`` trainable; everything else is frozen, buffers included.

    A frozen module is in eval mode and stays there when ``model.train()`` is called, so its BatchNorm statistics do not
    change and its dropout is off.
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
        batch_norm: ``frozen`` normalises with the running statistics and does not update them (scale and shift still
            train); ``train`` normalises with the batch and updates them.
    """
    thaw(model)
    model.requires_grad_(True)
    if batch_norm == "frozen":
        for module in batch_norms(model.modules()):
            _pin_to_eval(module)


def freeze(modules: Iterable[nn.Module], parameters: Iterable[nn.Parameter]) -> None:
    """Freeze these modules and parameters, buffers included, like ``freeze_backbone``."""
    for module in modules:
        for part in module.modules():
            _pin_to_eval(part)
    for parameter in parameters:
        parameter.requires_grad_(False)


def thaw(model: nn.Module) -> None:
    """Let ``train()`` affect every module again; ``requires_grad`` of parameters is not changed."""
    for module in model.modules():
        module.__dict__.pop("train", None)


@contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Restore when the block ends what is frozen, and whether each module is in training mode."""
    parameters = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    modules = [(module, module.training, module.__dict__.get("train")) for module in model.modules()]
    try:
        yield
    finally:
        # LeViT caches values computed from its weights in eval mode until ``train()`` is called.
        model.train()
        for parameter, requires_grad in parameters:
            if parameter.requires_grad != requires_grad:
                parameter.requires_grad_(requires_grad)
        thaw(model)
        for module, training, train in modules:
            module.training = training
            if train is not None:
                module.__dict__["train"] = train


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode while the block lasts; each module's mode is restored afterwards."""
    with restored(model):
        model.eval()
        yield


def batch_norms(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """Return the BatchNorm modules."""
    return [module for module in modules if isinstance(module, _BatchNorm)]


def _pin_to_eval(module: nn.Module) -> None:
    module.training = False
    # As an attribute of the instance the parent's train() finds it, and copies of the model keep it.
    module.train = MethodType(_train_children_only, module)  # type: ignore[method-assign]


def _train_children_only(self: nn.Module, mode: bool = True) -> nn.Module:
    self.training = False
    for child in self.children():
        child.train(mode)
    return self

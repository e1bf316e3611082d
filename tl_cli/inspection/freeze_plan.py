"""What trains and what does not, part by part, read off the model after freezing it as a run would."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from tl_cli.models.freezing import BatchNormMode, batch_norms, freeze_backbone, unfreeze
from tl_cli.models.zoo import Classifier


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a model, head or backbone.

    Attributes:
        name: qualified name of the module.
        is_head: whether it produces the classes.
        parameters: in all.
        trainable_frozen: that train while the backbone is frozen.
        trainable_unfrozen: that train afterwards.
        batch_norms: layers with running statistics.
        updating_frozen: of those, whose statistics change while the backbone is frozen.
        updating_unfrozen: of those, whose statistics change afterwards.
    """

    name: str
    is_head: bool
    parameters: int
    trainable_frozen: int
    trainable_unfrozen: int
    batch_norms: int
    updating_frozen: int
    updating_unfrozen: int


def freeze_plan(classifier: Classifier, bn: BatchNormMode) -> list[Part]:
    """Return the parts of a model with what each phase does to them. The model is left unfrozen, in eval mode."""
    model = classifier.model
    freeze_backbone(model, classifier.head_modules)
    frozen = _states(classifier)
    unfreeze(model, bn)
    unfrozen = _states(classifier)
    model.eval()
    return [
        Part(name, name in classifier.head, before[0], before[1], after[1], before[2], before[3], after[3])
        for (name, before), after in zip(frozen.items(), unfrozen.values(), strict=True)
    ]


def _states(classifier: Classifier) -> dict[str, tuple[int, int, int, int]]:
    """Return (parameters, trainable, BatchNorm layers, those that update) by part, in training mode."""
    classifier.model.train()
    head = set(classifier.head)
    states: dict[str, tuple[int, int, int, int]] = {}
    loose = [p for _, p in classifier.model.named_parameters(recurse=False)]
    if loose:
        states["(tokens and embeddings)"] = (_count(loose), _count(p for p in loose if p.requires_grad), 0, 0)
    for name, child in classifier.model.named_children():
        inside = [part for part in head if part == name or part.startswith(name + ".")]
        head_modules = [classifier.model.get_submodule(part) for part in inside]
        in_head = {m for module in head_modules for m in module.modules()}
        body = [m for m in child.modules() if m not in in_head]
        if any(list(m.parameters(recurse=False)) for m in body):
            states[name] = _state(body)
        for part, module in zip(inside, head_modules, strict=True):
            states[part] = _state(list(module.modules()))
    return states


def _state(modules: list[nn.Module]) -> tuple[int, int, int, int]:
    parameters = [p for module in modules for p in module.parameters(recurse=False)]
    norms = batch_norms(modules)
    return (
        _count(parameters),
        _count(p for p in parameters if p.requires_grad),
        len(norms),
        sum(norm.training for norm in norms),
    )


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(p.numel() for p in parameters)

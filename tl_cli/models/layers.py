"""The layers of a network in the order of execution, by which it is frozen and learning rates decay."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tl_cli.errors import UsageError, suggest
from tl_cli.models.zoo.registry import Classifier

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True, slots=True)
class Layer:
    """A stem, a block or a head, with the norms and activations after it.

    Attributes:
        name: qualified name of its first module.
        modules: its modules, none inside another.
        parameters: of the modules; in the first layer also those of the model itself (tokens, position embeddings).
        is_head: whether it produces the classes.
    """

    name: str
    modules: tuple[nn.Module, ...]
    parameters: tuple[nn.Parameter, ...]
    is_head: bool = False


def layers_of(classifier: Classifier, example: Tensor) -> list[Layer]:
    """Return the layers in the order of execution, the head last; every parameter is in exactly one.

    A block of the architecture (a residual block, a Transformer block, a dense layer) is one layer.

    Args:
        example: one image (1, 3, S, S), on the model's device.
    """
    model, head = classifier.model, classifier.head
    units = units_of(classifier)
    order = _executed(model, units, example)
    groups: list[list[str]] = []
    for place, name in enumerate(order):
        if groups and not _starts_a_layer(name, groups[-1], order[place + 1 :], units):
            groups[-1].append(name)
        else:
            groups.append([name])
    inside = {id(p) for unit in units.values() for p in unit.parameters()}
    in_head = {id(p) for module in classifier.head_modules for p in module.parameters()}
    loose = tuple(p for p in model.parameters() if id(p) not in inside | in_head)
    layers, seen = [], set[int](in_head)
    for place, names in enumerate(groups):
        modules = tuple(units[name] for name in names)
        own = [p for module in modules for p in module.parameters()]
        parameters = []
        for parameter in (*loose, *own) if place == 0 else own:
            # A parameter shared by two layers belongs to the first.
            if id(parameter) not in seen:
                seen.add(id(parameter))
                parameters.append(parameter)
        layers.append(Layer(names[0], modules, tuple(parameters)))
    heads = tuple(classifier.head_modules)
    return [*layers, Layer(head[0], heads, tuple(p for m in heads for p in m.parameters()), is_head=True)]


def units_of(classifier: Classifier) -> dict[str, nn.Module]:
    """Return the parts of layers by qualified name: blocks, and modules outside of blocks; without the head."""
    return dict(_units(classifier.model, "", classifier.head))


def index_of(layers: Sequence[Layer], classifier: Classifier, name: str) -> int:
    """Return the index of the first layer of the module ``name``.

    Raises:
        UsageError: no module has that name, it is part of a layer, or it is the head.
    """
    firsts = {layer.name: index for index, layer in enumerate(layers)}
    qualified = {id(module): path for path, module in classifier.model.named_modules()}
    for index, layer in enumerate(layers):
        paths = [qualified[id(module)] for module in layer.modules]
        if any(path == name or path.startswith(f"{name}.") for path in paths):
            if not (paths[0] == name or paths[0].startswith(f"{name}.")):
                raise UsageError(f"{name} is part of the layer {layer.name}; freeze until {layer.name} or one after it")
            if layer.is_head:
                raise UsageError(f"{name} is the head; to train only the head, set --freeze-epochs to --epochs")
            return index
        within = next((path for path in paths if name.startswith(f"{path}.")), None)
        if within is not None and name in qualified.values():
            raise UsageError(f"{name} is part of the layer {within}; freeze until {within} or a layer after it")
    known = [*firsts, *{path.partition(".")[0]: None for path in firsts}]
    raise UsageError(f"{classifier.name} has no layer {name!r}.{suggest(name, known)} tl inspect shows them all")


def _starts_a_layer(name: str, before: list[str], after: Sequence[str], units: dict[str, nn.Module]) -> bool:
    """Whether a unit begins a layer: it has a matrix, or it is a norm before such a unit.

    A norm belongs to the convolution before it, except in ConvNeXt's downsampling and DenseNet's transitions, where it
    belongs to the one after it in the same module.
    """
    if _has_matrix(units[name]):
        return any(_has_matrix(units[other]) for other in before)
    following = next((other for other in after if _has_matrix(units[other])), "")
    parent = _parent(name)
    return _parent(following) == parent != "" and parent not in {_parent(other) for other in before}


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _units(module: nn.Module, prefix: str, head: tuple[str, ...]) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules that are not divided further, also those without parameters, by qualified name."""
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        if path in head:
            continue
        holds_head = any(part.startswith(f"{path}.") for part in head)
        if holds_head or isinstance(child, _CONTAINERS) or _holds_blocks(child):
            yield from _units(child, f"{path}.", head)
        else:
            yield path, child


def _holds_blocks(module: nn.Module) -> bool:
    """Whether it, or a container inside it, has two or more blocks of the same type as children."""
    for part in module.modules():
        if part is module or isinstance(part, _CONTAINERS):
            kinds = [type(child) for child in part.children() if _is_block(child)]
            if len(kinds) > len(set(kinds)):
                return True
    return False


def _is_block(module: nn.Module) -> bool:
    """Whether it is a library's own module with several matrices of weights, unlike a convolution with its norm."""
    if isinstance(module, _CONTAINERS) or type(module).__module__.startswith("torch.nn."):
        return False
    return sum(any(p.dim() > 1 for p in part.parameters(recurse=False)) for part in module.modules()) > 1


def _has_matrix(module: nn.Module) -> bool:
    return any(parameter.dim() > 1 for parameter in module.parameters())


def _executed(model: nn.Module, units: dict[str, nn.Module], example: Tensor) -> list[str]:
    """Return the names of the units in the order of their first calls; those that are not called come last."""
    called: list[str] = []
    handles = [
        unit.register_forward_pre_hook(lambda module, inputs, name=name: called.append(name))
        for name, unit in units.items()
    ]
    was_training = model.training
    try:
        with torch.inference_mode():
            model.eval()(example)
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    return list(dict.fromkeys([*called, *units]))

"""The layers of a network in the order of execution, by which it is frozen and learning rates decay."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tl_cli.errors import UsageError, suggest
from tl_cli.models.classifier import Classifier
from tl_cli.models.freezing import in_eval_mode

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
    units = units_of(model, head)
    order = _executed(model, units, example)
    groups: list[list[str]] = []
    for index, name in enumerate(order):
        if groups and not _starts_a_layer(name, groups[-1], order[index + 1 :], units):
            groups[-1].append(name)
        else:
            groups.append([name])
    heads = tuple(classifier.head_modules)
    head_parameters = _parameters_of(heads)
    in_units = set(_parameters_of(units.values()))
    taken = set(head_parameters)
    layers = []
    # Parameters outside of all units (tokens, position embeddings) belong to the first layer.
    added = [parameter for parameter in model.parameters() if parameter not in in_units]
    for names in groups:
        modules = tuple(units[name] for name in names)
        # A parameter shared by two layers belongs to the first.
        parameters = [each for each in dict.fromkeys((*added, *_parameters_of(modules))) if each not in taken]
        taken.update(parameters)
        layers.append(Layer(names[0], modules, tuple(parameters)))
        added = []
    return [*layers, Layer(head[0], heads, head_parameters, is_head=True)]


def _parameters_of(modules: Iterable[nn.Module]) -> tuple[nn.Parameter, ...]:
    return tuple(parameter for module in modules for parameter in module.parameters())


def units_of(model: nn.Module, head: tuple[str, ...]) -> dict[str, nn.Module]:
    """Return the parts of layers by qualified name: blocks, and modules outside of blocks; without the head."""
    return dict(_units(model, "", head))


def index_of(layers: Sequence[Layer], classifier: Classifier, name: str) -> int:
    """Return the index of the first layer of the module ``name``.

    Raises:
        UsageError: no module has that name, it is part of a layer, or it is the head.
    """
    qualified = {id(module): path for path, module in classifier.model.named_modules()}
    for index, layer in enumerate(layers):
        paths = [qualified[id(module)] for module in layer.modules]
        if any(f"{path}.".startswith(f"{name}.") for path in paths):
            if not f"{paths[0]}.".startswith(f"{name}."):
                raise UsageError(f"{name} is part of the layer {layer.name}; freeze until {layer.name} or one after it")
            if layer.is_head:
                raise UsageError(f"{name} is the head; to train only the head, set --freeze-epochs to --epochs")
            return index
        within = next((path for path in paths if name.startswith(f"{path}.")), None)
        if within is not None and name in qualified.values():
            raise UsageError(f"{name} is part of the layer {within}; freeze until {within} or a layer after it")
    known = [layer.name for layer in layers]
    known += dict.fromkeys(path.partition(".")[0] for path in known)
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
    with ExitStack() as hooks:
        for name, unit in units.items():
            hook = unit.register_forward_pre_hook(lambda module, inputs, name=name: called.append(name))
            hooks.enter_context(hook)
        with in_eval_mode(model), torch.inference_mode():
            model(example)
    return list(dict.fromkeys([*called, *units]))

"""The tree of a model: types, shapes, parameters, work and memory. Runs on the meta device: no weights, no data."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from tl_cli.errors import UsageError, first_line
from tl_cli.models import freezing, zoo
from tl_cli.models.counting import Counting


@dataclass(frozen=True, slots=True)
class Node:
    """One module of a model.

    Attributes:
        name: qualified; "" is the model itself.
        type: name of its class.
        output: shape of its output for one image, with the batch; None where it was not called or gives no tensor.
        parameters: with those of its children.
        trainable: of those, the ones that train while the backbone is frozen.
        multiply_adds: for one image, with those of its children: half of what torch's own formulas say.
        activation_bytes: what autograd keeps of one image for the backward pass, in fp32, when everything trains; with
            its children, and what several modules share with the first of them.
        is_head: whether it produces the classes.
        children: in order.
    """

    name: str
    type: str
    output: tuple[int, ...] | None
    parameters: int
    trainable: int
    multiply_adds: int
    activation_bytes: int
    is_head: bool
    children: tuple["Node", ...]


def summarize(name: str, num_classes: int, input_size: int, options: dict[str, int] | None = None) -> Node:
    """Return the tree of an architecture with its backbone frozen.

    Args:
        input_size: side of the input in pixels.
        options: what the architecture is built with (ViT's image_size).

    Raises:
        UsageError: no such model, or it cannot take that input.
    """
    with torch.device("meta"):
        model = zoo.build(name, num_classes, options)
        images = torch.empty(1, 3, input_size, input_size)
    head = zoo.find_head(name)
    costs = _measure(model, images)
    freezing.freeze_backbone(model, [model.get_submodule(part) for part in head])
    return _node("", model, head, costs)


def head_reason(root: Node) -> list[str]:
    """Return, for each module of the head, a sentence that says why it is one."""
    found = [node for node in _all(root) if node.is_head]
    return [f"{node.name} ({node.type}): its parameters change shape with the number of classes" for node in found]


def _all(node: Node) -> Iterator[Node]:
    yield node
    for child in node.children:
        yield from _all(child)


@dataclass(slots=True)
class _Cost:
    """What a module was seen to do in a forward pass, its children included."""

    output: tuple[int, ...] | None = None
    multiply_adds: int = 0
    activation_bytes: int = 0


@dataclass(slots=True)
class _Watch:
    """Notes what each module does, while a network runs once."""

    costs: dict[str, _Cost]
    counting: Counting
    own: set[int]
    saved: set[int] = field(default_factory=set)
    # Alive, so that no other comes to bear the number of one.
    kept: list[Tensor] = field(default_factory=list)
    bytes: int = 0
    began: list[tuple[int, int]] = field(default_factory=list)

    def keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.saved | self.own:
            self.saved.add(storage._cdata)
            self.kept.append(tensor)
            self.bytes += storage.nbytes()
        return tensor

    def enter(self) -> None:
        self.began.append((self.counting.flops, self.bytes))

    def leave(self, name: str, output: Any) -> None:
        flops, kept = self.began.pop()
        cost = self.costs[name]
        cost.multiply_adds += (self.counting.flops - flops) // 2
        cost.activation_bytes += self.bytes - kept
        if isinstance(output, Tensor):
            cost.output = tuple(output.shape)


def _measure(model: nn.Module, images: Tensor) -> dict[str, _Cost]:
    model.eval()
    costs = {name: _Cost() for name, _ in model.named_modules()}
    counting = Counting()  # type: ignore[no-untyped-call]
    watch = _Watch(costs, counting, {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())})
    try:
        with _hooked(model, watch), saved_tensors_hooks(watch.keep, lambda kept: kept), counting:
            model(images)
    except (RuntimeError, AssertionError, ValueError, NotImplementedError) as error:
        message = first_line(error)
        raise UsageError(f"this model cannot take images of {tuple(images.shape[-2:])}: {message}") from error
    return costs


@contextmanager
def _hooked(model: nn.Module, watch: _Watch) -> Iterator[None]:
    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda *_: watch.enter()))
        handles.append(module.register_forward_hook(lambda m, i, output, name=name: watch.leave(name, output)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _node(name: str, module: nn.Module, head: tuple[str, ...], costs: Mapping[str, _Cost]) -> Node:
    prefix = f"{name}." if name else ""
    children = tuple(_node(prefix + child, inner, head, costs) for child, inner in module.named_children())
    parameters = list(module.parameters())
    # One that has two names stands under the first in named_modules().
    cost = costs.get(name, _Cost())
    return Node(
        name=name,
        type=type(module).__name__,
        output=cost.output,
        parameters=sum(p.numel() for p in parameters),
        trainable=sum(p.numel() for p in parameters if p.requires_grad),
        # A list of modules is not called itself.
        multiply_adds=cost.multiply_adds or sum(child.multiply_adds for child in children),
        activation_bytes=cost.activation_bytes or sum(child.activation_bytes for child in children),
        is_head=name in head,
        children=children,
    )

"""The tree of a model: types, shapes, parameters, work and memory. Runs on fake tensors: no weights, no data."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call

from tl_cli.errors import UsageError, first_line
from tl_cli.models import freezing
from tl_cli.models.list.counting import Counting
from tl_cli.models.zoo import registry

# Batches that are compared for what one more image costs: what a step keeps once, such as standardised weights, is in
# both of them.
_FEW, _MORE = 1, 3


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
        activation_bytes: what autograd keeps of each image for the backward pass, in fp32, when everything trains; with
            its children, and what several modules share with the first of them. Without the images themselves and what
            a step keeps once, whatever the batch. Attention as torch computes it on a CPU: where the fused kernel takes
            the inputs (no bias that trains), its matrix of weights is not kept, as in a GPU's fused kernels.
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
        model = registry.build(name, num_classes, options)
    head = registry.find_head(name)
    costs = _measure(model.eval(), input_size)
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

    counting: Counting
    own: set[int]
    costs: dict[str, _Cost] = field(default_factory=lambda: defaultdict(_Cost))
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


def _measure(model: nn.Module, side: int) -> dict[str, _Cost]:
    """Return what each module does with one image, and what it keeps of each more."""
    try:
        # Fake tensors are said to be on the CPU, so its kernels are chosen; the meta device has no fused attention.
        with FakeTensorMode(allow_non_fake_inputs=True):
            few, more = (_watched(model, torch.empty(count, 3, side, side)) for count in (_FEW, _MORE))
    except (RuntimeError, AssertionError, ValueError, NotImplementedError) as error:
        raise UsageError(f"this model cannot take images of {(side, side)}: {first_line(error)}") from error
    for name, cost in few.items():
        cost.activation_bytes = (more[name].activation_bytes - cost.activation_bytes) // (_MORE - _FEW)
    return few


def _watched(model: nn.Module, images: Tensor) -> dict[str, _Cost]:
    state = {
        name: torch.empty(tensor.shape, dtype=tensor.dtype, requires_grad=tensor.requires_grad)
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
    }
    counting = Counting()  # type: ignore[no-untyped-call]
    watch = _Watch(counting, {tensor.untyped_storage()._cdata for tensor in (*state.values(), images)})
    with _hooked(model, watch), saved_tensors_hooks(watch.keep, lambda kept: kept), counting:
        functional_call(model, state, (images,))
    return watch.costs


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

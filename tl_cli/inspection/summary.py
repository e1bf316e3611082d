"""The tree of a model: types, shapes, parameters, MACs and memory. Runs on fake tensors: no weights, no data."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call

from tl_cli.contract import Preprocessing
from tl_cli.errors import UsageError, first_line
from tl_cli.models import freezing
from tl_cli.models.macs import Counting
from tl_cli.models.zoo import registry

# Batch sizes whose difference gives the memory per image: what a step keeps once, such as standardised weights, is in
# both.
_FEW, _MORE = 1, 3


@dataclass(frozen=True, slots=True)
class Node:
    """One module of a model.

    Attributes:
        name: qualified; "" is the model itself.
        type: name of its class.
        output: shape of its output for one image, with the batch; None where it was not called or returns no tensor.
        parameters: including its children's.
        trainable: parameters that train while the backbone is frozen.
        multiply_adds: MACs per image, including its children's: half of the FLOPs of torch's own formulas.
        activation_bytes: memory per image that autograd keeps for the backward pass, in fp32, when everything trains;
            including its children's, and what several modules share counts for the first. The images and what a step
            keeps once are not counted. Attention is counted as on a CPU: where the fused kernel accepts the inputs (no
            bias that trains), its weight matrix is not kept, as in a GPU's fused kernels.
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
        options: arguments of the architecture's constructor (ViT's image_size).

    Raises:
        UsageError: no such model, or that input size does not fit.
    """
    with torch.device("meta"):
        model = registry.build(name, num_classes, options)
    head = registry.find_head(name)
    costs = _measure(model.eval(), input_size)
    freezing.freeze_backbone(model, [model.get_submodule(part) for part in head])
    return _node("", model, head, costs)


def head_reason(root: Node) -> list[str]:
    """Return, for each module of the head, a sentence on why it is part of the head."""
    head = [node for node in _all(root) if node.is_head]
    return [f"{node.name} ({node.type}): its parameters change shape with the number of classes" for node in head]


def describe_preprocessing(how: Preprocessing) -> str:
    """Return how a picture becomes an input, in one line."""
    side = {"center": "short side", "squash": "both sides", "border": "long side"}[how.crop_mode]
    square = "padded to" if how.crop_mode == "border" and how.resize <= how.crop else "centre"
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (how.mean, how.std))
    depth = (
        f", deeper than 8 bits: {how.pixel_range[0]:g} black, {how.pixel_range[1]:g} white" if how.pixel_range else ""
    )
    return (
        f"{side} to {how.resize} px ({how.interpolation}), {square} {how.crop} x {how.crop}, mean ({mean}), std ({std})"
        f"{depth}"
    )


def _all(node: Node) -> Iterator[Node]:
    yield node
    for child in node.children:
        yield from _all(child)


@dataclass(slots=True)
class _Cost:
    """The cost of a module in a forward pass, including its children."""

    output: tuple[int, ...] | None = None
    multiply_adds: int = 0
    activation_bytes: int = 0


@dataclass(slots=True)
class _Meter:
    """Measures each module during a forward pass."""

    counting: Counting
    own: set[int]
    costs: dict[str, _Cost] = field(default_factory=lambda: defaultdict(_Cost))
    saved: set[int] = field(default_factory=set)
    # References that keep the storages alive, so that no id is reused.
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

    def enter(self, module: nn.Module, inputs: Any) -> None:
        self.began.append((self.counting.flops, self.bytes))

    def leave(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        flops, bytes_before = self.began.pop()
        cost = self.costs[name]
        cost.multiply_adds += (self.counting.flops - flops) // 2
        cost.activation_bytes += self.bytes - bytes_before
        if isinstance(output, Tensor):
            cost.output = tuple(output.shape)


def _measure(model: nn.Module, side: int) -> dict[str, _Cost]:
    """Return the cost of each module for one image."""
    try:
        # Fake tensors report the CPU as their device, so its kernels run; the meta device has no fused attention.
        with FakeTensorMode(allow_non_fake_inputs=True):
            few, more = (_measured(model, torch.empty(count, 3, side, side)) for count in (_FEW, _MORE))
    except (RuntimeError, AssertionError, ValueError, NotImplementedError) as error:
        raise UsageError(f"the model does not accept images of {(side, side)}: {first_line(error)}") from error
    for name, cost in few.items():
        cost.activation_bytes = (more[name].activation_bytes - cost.activation_bytes) // (_MORE - _FEW)
    return few


def _measured(model: nn.Module, images: Tensor) -> dict[str, _Cost]:
    state = {
        name: torch.empty(tensor.shape, dtype=tensor.dtype, requires_grad=tensor.requires_grad)
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
    }
    counting = Counting()  # type: ignore[no-untyped-call]
    meter = _Meter(counting, {tensor.untyped_storage()._cdata for tensor in (*state.values(), images)})
    with ExitStack() as hooks, saved_tensors_hooks(meter.keep, lambda kept: kept), counting:
        for name, module in model.named_modules():
            hooks.enter_context(module.register_forward_pre_hook(meter.enter))
            hooks.enter_context(module.register_forward_hook(partial(meter.leave, name)))
        functional_call(model, state, (images,))
    return meter.costs


def _node(name: str, module: nn.Module, head: tuple[str, ...], costs: Mapping[str, _Cost]) -> Node:
    prefix = f"{name}." if name else ""
    children = tuple(_node(prefix + child, inner, head, costs) for child, inner in module.named_children())
    parameters = list(module.parameters())
    # A module with two names is listed under the first in named_modules().
    cost = costs.get(name, _Cost())
    return Node(
        name=name,
        type=type(module).__name__,
        output=cost.output,
        parameters=sum(p.numel() for p in parameters),
        trainable=sum(p.numel() for p in parameters if p.requires_grad),
        # A ModuleList is not called itself.
        multiply_adds=cost.multiply_adds or sum(child.multiply_adds for child in children),
        activation_bytes=cost.activation_bytes or sum(child.activation_bytes for child in children),
        is_head=name in head,
        children=children,
    )

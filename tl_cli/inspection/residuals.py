"""Residual connections: found in what a network computes, not by the names of its classes."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor, nn

from tl_cli.inspection.trace import Step, ancestors, trace

Shortcut = Literal["identity", "pooling", "projection"]

# What only moves numbers about, or scales them: no work of its own. Names are those of torch's own operations (aten).
_ARRANGES = frozenset((
    "view", "_unsafe_view", "reshape", "_reshape_alias", "permute", "transpose", "t", "expand", "squeeze", "unsqueeze",
    "flatten", "unflatten", "movedim", "slice", "narrow", "select", "split", "split_with_sizes", "chunk", "unbind",
    "index", "index_select", "gather", "cat", "stack", "clone", "contiguous", "copy", "_to_copy", "to", "detach",
    "alias", "as_strided", "lift_fresh", "constant_pad_nd", "pad", "roll", "flip", "im2col", "col2im", "pixel_shuffle",
    "pixel_unshuffle", "channel_shuffle", "mul", "div", "neg", "dropout", "native_dropout",
))  # fmt: skip
_NORMALISES = frozenset((
    "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "_batch_norm_no_update",
    "batch_norm", "cudnn_batch_norm", "miopen_batch_norm", "instance_norm", "native_layer_norm", "native_group_norm",
    "_fused_rms_norm",
))  # fmt: skip
_ACTIVATES = frozenset((
    "relu", "hardtanh", "silu", "gelu", "hardswish", "hardsigmoid", "leaky_relu", "elu", "sigmoid", "mish", "prelu",
    "_prelu_kernel", "softplus", "tanh", "clamp", "clamp_min",
))  # fmt: skip
_POOLS = frozenset((
    "avg_pool2d", "max_pool2d", "max_pool2d_with_indices", "adaptive_avg_pool2d", "_adaptive_avg_pool2d",
    "adaptive_max_pool2d", "mean", "amax", "upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d",
    "_upsample_bilinear2d_aa",
))  # fmt: skip
_PROJECTS = frozenset(("convolution", "_convolution", "mkldnn_convolution", "addmm", "mm", "linear"))
# They bring two ways together, or stand at the end of one.
_JOINS = frozenset(("add", "sub", "rsub", "sum", "pow", "sqrt", "rsqrt", "addcmul", "addcdiv"))
# A shortcut has two convolutions in GhostNet, one in others.
_MOST_PROJECTIONS = 2


@dataclass(frozen=True, slots=True)
class Residual:
    """An addition x + F(x): a shortcut past a branch.

    Attributes:
        block: qualified name of the innermost module that holds both; "" is the model itself.
        label: which of the block's residuals it is: the part that does most of its work; "" where there is one only.
        branch: the parts of the block that it passes, in order.
        shortcut: how x gets past the branch: as it is, pooled or resized, or through a convolution or linear layer.
        addition: which addition of two tensors it is in a forward pass, from 0.
        x_first: whether the shortcut is the first operand.
        shape: of the sum, with the batch.
    """

    block: str
    label: str
    branch: tuple[str, ...]
    shortcut: Shortcut
    addition: int
    x_first: bool
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """The block and, where it has several residuals, what the branch is."""
        return ".".join(part for part in (self.block, self.label) if part) or "(model)"


@dataclass(frozen=True, slots=True, order=True)
class _Work:
    """How much happens on a way: operations with a kernel or a product of their own, and those that bend or pool."""

    heavy: int
    light: int

    def exceeds(self, other: "_Work") -> bool:
        """Whether there is more of it. Of as many products, they are branches of equal rank (RepVGG's 3x3 and 1x1)."""
        return self.heavy > other.heavy if self.heavy or other.heavy else self.light > other.light

    def plus(self, other: "_Work") -> "_Work":
        """Return both together."""
        return _Work(self.heavy + other.heavy, self.light + other.light)


_NOTHING = _Work(0, 0)


@dataclass(frozen=True, slots=True)
class _Way:
    """A shortcut: where it ends, with how much work and of what kind, and what the branch beside it is."""

    end: Step
    cost: _Work
    kind: Shortcut
    branch: tuple[Step, ...]


def find_residuals(model: nn.Module, images: Tensor, head: Collection[str] = ()) -> list[Residual]:
    """Return the residual connections of a network in order of execution.

    One is an addition of two tensors that both depend on one earlier tensor x, the one by a short way: x itself, or x
    pooled, normalised or through at most two convolutions or linear layers, on which nothing else joins; the other by
    more work than that. Biases and masks of attention, position embeddings and rotations of queries are none: there one
    operand does not depend on the images, or neither has work of its own.

    Args:
        images: (B, 3, H, W), on the model's device; meta will do.
        head: names of the modules that produce the classes; what they say is no shortcut past what others say.

    Raises:
        UsageError: the network cannot be run on them, or not be followed.
    """
    steps = trace(model, images)
    found = []
    for step in steps:
        one, other = step.operands or (None, None)
        if one is None or other is None:
            continue
        ways = [way for way in (_way(one, other, head), _way(other, one, head)) if way is not None]
        if ways:
            way = min(ways, key=lambda each: each.cost)
            found.append(_residual(step, way, x_first=way.end is one))
    return _named(found)


def _way(end: Step, other: Step, head: Collection[str]) -> _Way | None:
    """Return the shortest shortcut that ends in ``end``, past a branch that ends in ``other``; None where none does."""
    taken: list[Step] = []
    here, cost = end, _NOTHING
    while cost.heavy <= _MOST_PROJECTIONS:
        branch = _between(here, other)
        if branch and _longest(here, branch).exceeds(cost):
            return _Way(end, cost, _kind(taken), branch)
        if len(here.inputs) != 1 or _weight(here) is None or any(name in head for name in here.modules):
            return None
        taken.append(here)
        cost = cost.plus(_work(here))
        (here,) = here.inputs
    return None


def _between(start: Step, end: Step) -> tuple[Step, ...]:
    """Return the steps by which ``end`` depends on ``start``, in order, itself not included; none where it does not."""
    reached = {start}
    for step in ancestors(end, start.place):
        if step is not start and any(earlier in reached for earlier in step.inputs):
            reached.add(step)
    return tuple(sorted(reached - {start}, key=lambda each: each.place)) if end in reached else ()


def _longest(start: Step, branch: Sequence[Step]) -> _Work:
    """Return the work on the longest way through a branch: what runs side by side counts once."""
    until = {start: _NOTHING}
    for step in branch:
        until[step] = max(until[earlier] for earlier in step.inputs if earlier in until).plus(_work(step))
    return until[branch[-1]]


def _weight(step: Step) -> _Work | None:
    """Return the work of a step that a shortcut may have; None of any other."""
    if step.name in _ARRANGES:
        return _NOTHING
    if step.name in _NORMALISES or step.name in _ACTIVATES or step.name in _POOLS:
        return _Work(0, 1)
    return _Work(1, 0) if step.name in _PROJECTS else None


def _work(step: Step) -> _Work:
    # What is not known is taken for work: attention, Fourier transforms, products of two tensors.
    return _weight(step) or (_NOTHING if step.name in _JOINS else _Work(1, 0))


def _kind(steps: Sequence[Step]) -> Shortcut:
    names = {step.name for step in steps}
    if names & _PROJECTS:
        return "projection"
    return "pooling" if names & _POOLS else "identity"


def _residual(step: Step, way: _Way, *, x_first: bool) -> Residual:
    assert step.addition is not None
    block = _common([step.modules, *(each.modules for each in way.branch)])
    parts = [each.modules[len(block)] for each in way.branch if len(each.modules) > len(block)]
    prefix = f"{block[-1]}." if block else ""
    names = tuple(dict.fromkeys(part.removeprefix(prefix) for part in parts))
    heavy = [
        each.modules[len(block)].removeprefix(prefix)
        for each in way.branch
        if len(each.modules) > len(block) and _work(each).heavy
    ]
    label = max(dict.fromkeys(heavy), key=heavy.count) if heavy else next(iter(names), "")
    return Residual(block[-1] if block else "", label, names, way.kind, step.addition, x_first, step.shape)


def _common(paths: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    common = paths[0]
    for path in paths[1:]:
        length = next((n for n, (a, b) in enumerate(zip(common, path, strict=False)) if a != b), len(path))
        common = common[: min(length, len(common))]
    return common


def _named(found: list[Residual]) -> list[Residual]:
    """Return the residuals with names that tell them apart, as short as can be."""
    blocks = Counter(each.block for each in found)
    plain = [replace(each, label=each.label if blocks[each.block] > 1 else "") for each in found]
    seen, total = Counter[str](), Counter(each.name for each in plain)
    named = []
    for each in plain:
        seen[each.name] += 1
        if total[each.name] > 1:
            each = replace(each, label=f"{each.label}#{seen[each.name]}")
        named.append(each)
    return named

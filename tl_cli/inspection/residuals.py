"""Residual connections, found in the traced graph of a network, not by the names of its classes."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor, nn

from tl_cli.inspection.trace import Step, ancestors, trace

Shortcut = Literal["identity", "pooling", "projection"]

# Operations that only rearrange or scale values: no work of their own. Names are those of aten operations.
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
# Operations that combine two paths, or end one.
_JOINS = frozenset(("add", "sub", "rsub", "sum", "pow", "sqrt", "rsqrt", "addcmul", "addcdiv"))
# A shortcut has two convolutions in GhostNet, one in others.
_MOST_PROJECTIONS = 2


@dataclass(frozen=True, slots=True)
class Residual:
    """An addition x + F(x): a shortcut past a branch.

    Attributes:
        block: qualified name of the innermost module that contains both; "" is the model itself.
        label: the branch's main part, where the block has several residuals; else "".
        branch: the parts of the block on the branch, in order.
        shortcut: how x bypasses the branch: unchanged, pooled or resized, or through a convolution or linear layer.
        addition: index of the addition in a forward pass, from 0.
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
        """The block and, where it has several residuals, the branch's main part."""
        return ".".join(part for part in (self.block, self.label) if part) or "(model)"


@dataclass(frozen=True, slots=True, order=True)
class _Work:
    """The work on a path: operations with weights or products, and those that activate, normalise or pool."""

    heavy: int
    light: int

    def exceeds(self, other: "_Work") -> bool:
        """Whether this is more work. Paths with equally many products are parallel branches (RepVGG's 3x3 and 1x1)."""
        return self.heavy > other.heavy if self.heavy or other.heavy else self.light > other.light

    def plus(self, other: "_Work") -> "_Work":
        """Return the sum."""
        return _Work(self.heavy + other.heavy, self.light + other.light)


_NOTHING = _Work(0, 0)


@dataclass(frozen=True, slots=True)
class _Path:
    """A shortcut: its last step, its work and kind, and the steps of the branch beside it."""

    end: Step
    cost: _Work
    kind: Shortcut
    branch: tuple[Step, ...]


def find_residuals(model: nn.Module, images: Tensor, head: Collection[str] = ()) -> list[Residual]:
    """Return the residual connections of a network in order of execution.

    A residual connection is an addition of two tensors that both depend on one earlier tensor x, one by a short path (x
    itself, or x pooled, normalised or through at most two convolutions or linear layers, with no other input), the
    other by more work. Attention biases and masks, position embeddings and rotary embeddings are not: there one operand
    does not depend on the images, or neither path has work.

    Args:
        images: (B, 3, H, W), on the model's device, which may be meta.
        head: names of the modules that produce the classes; a path through them is no shortcut.

    Raises:
        UsageError: the forward pass fails.
    """
    steps = trace(model, images)
    found = []
    for step in steps:
        one, other = step.operands or (None, None)
        if one is None or other is None:
            continue
        paths = [path for path in (_path(one, other, head), _path(other, one, head)) if path is not None]
        if paths:
            path = min(paths, key=lambda each: each.cost)
            found.append(_residual(step, path, x_first=path.end is one))
    return _named(found)


def _path(end: Step, other: Step, head: Collection[str]) -> _Path | None:
    """Return the shortest shortcut that ends in ``end``, beside a branch that ends in ``other``, or None."""
    taken: list[Step] = []
    here, cost = end, _NOTHING
    while cost.heavy <= _MOST_PROJECTIONS:
        branch = _between(here, other)
        if branch and _longest(here, branch).exceeds(cost):
            return _Path(end, cost, _kind(taken), branch)
        if len(here.inputs) != 1 or _weight(here) is None or any(name in head for name in here.modules):
            return None
        taken.append(here)
        cost = cost.plus(_work(here))
        (here,) = here.inputs
    return None


def _between(start: Step, end: Step) -> tuple[Step, ...]:
    """Return the steps after ``start`` by which ``end`` depends on it, in order; empty where it does not."""
    reached = {start}
    for step in ancestors(end, start.index):
        if step is not start and any(earlier in reached for earlier in step.inputs):
            reached.add(step)
    return tuple(sorted(reached - {start}, key=lambda each: each.index)) if end in reached else ()


def _longest(start: Step, branch: Sequence[Step]) -> _Work:
    """Return the work on the longest path through a branch: parallel paths count once."""
    until = {start: _NOTHING}
    for step in branch:
        until[step] = max(until[earlier] for earlier in step.inputs if earlier in until).plus(_work(step))
    return until[branch[-1]]


def _weight(step: Step) -> _Work | None:
    """Return the work of a step that a shortcut may contain; None for any other."""
    if step.name in _ARRANGES:
        return _NOTHING
    if step.name in _NORMALISES or step.name in _ACTIVATES or step.name in _POOLS:
        return _Work(0, 1)
    return _Work(1, 0) if step.name in _PROJECTS else None


def _work(step: Step) -> _Work:
    # Any other operation counts as work: attention, Fourier transforms, products of two tensors.
    return _weight(step) or (_NOTHING if step.name in _JOINS else _Work(1, 0))


def _kind(steps: Sequence[Step]) -> Shortcut:
    names = {step.name for step in steps}
    if names & _PROJECTS:
        return "projection"
    return "pooling" if names & _POOLS else "identity"


def _residual(step: Step, path: _Path, *, x_first: bool) -> Residual:
    assert step.addition is not None
    block = _common([step.modules, *(each.modules for each in path.branch)])
    parts = [each.modules[len(block)] for each in path.branch if len(each.modules) > len(block)]
    prefix = f"{block[-1]}." if block else ""
    names = tuple(dict.fromkeys(part.removeprefix(prefix) for part in parts))
    heavy = [
        each.modules[len(block)].removeprefix(prefix)
        for each in path.branch
        if len(each.modules) > len(block) and _work(each).heavy
    ]
    label = max(dict.fromkeys(heavy), key=heavy.count) if heavy else next(iter(names), "")
    return Residual(block[-1] if block else "", label, names, path.kind, step.addition, x_first, step.shape)


def _common(paths: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    common = paths[0]
    for names in paths[1:]:
        length = next((n for n, (a, b) in enumerate(zip(common, names, strict=False)) if a != b), len(names))
        common = common[: min(length, len(common))]
    return common


def _named(found: list[Residual]) -> list[Residual]:
    """Return the residuals with unique names, as short as possible."""
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

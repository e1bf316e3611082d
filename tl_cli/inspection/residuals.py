"""Residual connections, found in the traced graph of a network, not by the names of its classes."""

import tomllib
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from tl_cli.inspection.trace import Step, ancestors, trace

Shortcut = Literal["identity", "pooling", "projection"]

# Names of aten operations, by what they do.
_OPERATIONS = {
    kind: frozenset(names)
    for kind, names in tomllib.loads(Path(__file__).with_name("operations.toml").read_text("utf-8")).items()
}
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


_NOTHING, _LIGHT, _HEAVY = _Work(0, 0), _Work(0, 1), _Work(1, 0)
_WORK_BY_KIND = {"arranges": _NOTHING, "normalises": _LIGHT, "activates": _LIGHT, "pools": _LIGHT, "projects": _HEAVY}
# By operation; a shortcut may contain no others.
_WORK = {name: work for kind, work in _WORK_BY_KIND.items() for name in _OPERATIONS[kind]}


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
    residuals = []
    for step in steps:
        one, other = step.operands or (None, None)
        if one is None or other is None:
            continue
        paths = [path for path in (_path(one, other, head), _path(other, one, head)) if path is not None]
        if paths:
            path = min(paths, key=lambda each: each.cost)
            residuals.append(_residual(step, path, x_first=path.end is one))
    return _named(residuals)


def _path(end: Step, other: Step, head: Collection[str]) -> _Path | None:
    """Return the shortest shortcut that ends in ``end``, beside a branch that ends in ``other``, or None."""
    taken: list[Step] = []
    here, cost = end, _NOTHING
    while cost.heavy <= _MOST_PROJECTIONS:
        branch = _between(here, other)
        if branch and _longest(here, branch).exceeds(cost):
            return _Path(end, cost, _kind(taken), branch)
        if len(here.inputs) != 1 or here.name not in _WORK or any(name in head for name in here.modules):
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


def _work(step: Step) -> _Work:
    # Any other operation counts as work: attention, Fourier transforms, products of two tensors.
    return _WORK.get(step.name, _NOTHING if step.name in _OPERATIONS["joins"] else _HEAVY)


def _kind(steps: Sequence[Step]) -> Shortcut:
    names = {step.name for step in steps}
    if names & _OPERATIONS["projects"]:
        return "projection"
    return "pooling" if names & _OPERATIONS["pools"] else "identity"


def _residual(step: Step, path: _Path, *, x_first: bool) -> Residual:
    assert step.addition is not None
    levels = zip(step.modules, *(each.modules for each in path.branch), strict=False)
    block = [names[0] for names in takewhile(lambda names: len(set(names)) == 1, levels)]
    prefix = f"{block[-1]}." if block else ""
    inner = [each for each in path.branch if len(each.modules) > len(block)]
    parts = [each.modules[len(block)].removeprefix(prefix) for each in inner]
    heavy = [part for part, each in zip(parts, inner, strict=True) if _work(each).heavy]
    names = tuple(dict.fromkeys(parts))
    label = max(dict.fromkeys(heavy), key=heavy.count) if heavy else next(iter(names), "")
    return Residual(block[-1] if block else "", label, names, path.kind, step.addition, x_first, step.shape)


def _named(residuals: list[Residual]) -> list[Residual]:
    """Return the residuals with unique names, as short as possible."""
    blocks = Counter(each.block for each in residuals)
    plain = [replace(each, label=each.label if blocks[each.block] > 1 else "") for each in residuals]
    seen, total = Counter[str](), Counter(each.name for each in plain)
    named = []
    for each in plain:
        seen[each.name] += 1
        if total[each.name] > 1:
            each = replace(each, label=f"{each.label}#{seen[each.name]}")
        named.append(each)
    return named

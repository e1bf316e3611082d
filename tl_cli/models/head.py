"""Which rows of a pretrained head are kept: matched by class name, by position, or none."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tl_cli.errors import UsageError, some

HeadChoice = Literal["new", "keep"]


@dataclass(frozen=True, slots=True)
class HeadStart:
    """Where the rows of a head come from.

    Attributes:
        rows: for each class, the index of its row in the weights' head; None is a new row.
        reason: the decision and its reason, for people.
    """

    rows: tuple[int | None, ...]
    reason: str

    @property
    def is_new(self) -> bool:
        """Whether no row of the weights' head is kept."""
        return all(row is None for row in self.rows)


def choose_start(
    choice: HeadChoice | None,
    *,
    count: int,
    classes: tuple[str, ...] | None,
    outputs: int | None,
    known: tuple[str, ...] | None,
) -> HeadStart:
    """Return which rows of the weights' head are kept.

    Args:
        choice: None keeps rows by class name, ``keep`` all rows by position, ``new`` none.
        count: number of classes of the new head.
        classes: their names; None assumes those of the weights, in their order.
        outputs: number of classes of the weights' head; None where they have no head that fits.
        known: class names in the weights, if any.

    Raises:
        UsageError: the head is to be kept by position, but has another number of classes or does not exist.
    """
    new, all_rows = (None,) * count, tuple(range(count))
    if choice == "new":
        return HeadStart(new, "new (--head new)")
    if choice == "keep" and outputs != count:
        has = f"a head for {outputs:,} classes" if outputs else "no head"
        raise UsageError(f"--head keep: the weights have {has} and the data {count:,} classes; leave out --head keep")
    if choice == "keep":
        others = "; the weights name other classes, or another order" if known not in (None, classes) else ""
        return HeadStart(all_rows, f"kept by position (--head keep){others}")
    if outputs is None:
        return HeadStart(new, "new: the weights have no head of this shape")
    if classes is None:
        same = outputs == count
        return HeadStart(all_rows if same else new, "kept" if same else f"new: the weights have {outputs:,} classes")
    if known is None or len(known) != outputs:
        advice = "; if they are the same in the same order: --head keep" if outputs == count else ""
        return HeadStart(new, f"new: the weights do not name their {outputs:,} classes{advice}")
    indices = {name: index for index, name in enumerate(known)}
    return HeadStart(tuple(map(indices.get, classes)), _matched(classes, known))


def _matched(classes: tuple[str, ...], known: tuple[str, ...]) -> str:
    """Return the result of matching two sets of class names, for people."""
    if classes == known:
        return f"kept: the weights have the same {len(classes):,} classes"
    added, lost = [name for name in classes if name not in known], len(set(known) - set(classes))
    if len(added) == len(classes):
        return f"new: none of the weights' {len(known):,} classes is among these"
    summary = f"{len(classes) - len(added):,} of {len(classes):,} classes kept, matched by name"
    return f"{summary}{f'; new: {some(added)}' if added else ''}{f'; {lost:,} of the weights not used' if lost else ''}"


def outputs_in(state: Mapping[str, Tensor], target: Mapping[str, Tensor], axes: Mapping[str, int]) -> int | None:
    """Return the number of classes of a head whose other dimensions are those of ``target``; None if it does not fit.

    Args:
        axes: for each parameter of the head, the axis of its classes.
    """
    sizes = set()
    for key, axis in axes.items():
        shape, expected = list(state[key].shape) if key in state else [], list(target[key].shape)
        if shape[:axis] + shape[axis + 1 :] != expected[:axis] + expected[axis + 1 :] or len(shape) != len(expected):
            return None
        sizes.add(shape[axis])
    return sizes.pop() if len(sizes) == 1 else None


def with_rows(fresh: Tensor, trained: Tensor, axis: int, rows: tuple[int | None, ...]) -> Tensor:
    """Return a new head's tensor with the kept rows at the indices of their classes."""
    indices = torch.tensor([index for index, row in enumerate(rows) if row is not None])
    kept_rows = trained.index_select(axis, torch.tensor([row for row in rows if row is not None]))
    return fresh.index_copy(axis, indices, kept_rows.to(fresh.dtype))

"""The graph of a network at the level of torch's own operations, as one forward pass computed it."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tl_cli.errors import UsageError, first_line
from tl_cli.models.freezing import in_eval_mode

# What a stranger's forward pass raises is the stranger's choice.
_STRANGERS = (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError, AssertionError)
# They look at a tensor's shape and kind, not at its numbers.
_MADE_ANEW = frozenset((
    "new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided", "zeros_like", "ones_like", "full_like",
    "empty_like", "rand_like", "randn_like",
))  # fmt: skip
_ADDITIONS = ("aten::add.Tensor", "aten::add_.Tensor")


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One operation that depends on the images.

    Attributes:
        place: in the order of execution; 0 is the images themselves.
        name: of the operation in torch's own library, without overload and without the underscore of one in place.
        inputs: the operations whose results went in, each once; constants and parameters are none.
        shape: of its result, with the batch; of the first where there are several.
        modules: qualified names of the modules that were being called, the outermost, the model itself, left out.
        addition: how many additions came before, where it is one of two tensors; else None. What goes on inside of
            torch's own recurrent layers is left out.
        operands: of an addition, which steps its two tensors are; None for one that does not depend on the images.
    """

    place: int
    name: str
    inputs: tuple["Step", ...]
    shape: tuple[int, ...]
    modules: tuple[str, ...]
    addition: int | None = None
    operands: tuple["Step | None", "Step | None"] | None = None


def trace(model: nn.Module, images: Tensor) -> list[Step]:
    """Return the operations of a forward pass in eval mode that depend on the images, in order of execution.

    Nothing is guessed from the source: a branch in Python that another image would take otherwise is not seen.

    Args:
        images: (B, 3, H, W), on the model's device; meta will do.

    Raises:
        UsageError: the network cannot be run on them, or not be followed.
    """
    with in_eval_mode(model), torch.no_grad():
        try:
            # What is made at the first call only (masks, tables of positions) is not part of it.
            model(images)
            with _Recorder(model, images) as recorder:
                model(images)
        except _STRANGERS as error:
            raise UsageError(f"this network cannot be followed: {first_line(error)}") from error
    return recorder.steps


class Additions(TorchDispatchMode):
    """Counts the additions of two tensors while a network runs, and lets each be looked at or replaced."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._next = 0

    def added(self, place: int, one: Tensor, other: Tensor, alpha: float) -> Tensor | None:
        """Return what the addition is to give, or None for what it gives by itself.

        Args:
            place: how many additions came before.
            alpha: by which ``other`` is multiplied.
        """
        return None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if _is_addition(func, args):
            place, self._next = self._next, self._next + 1
            alpha = (kwargs or {}).get("alpha", 1)
            replaced = self.added(place, args[0], args[1], alpha)
            if replaced is not None:
                return args[0].copy_(replaced) if func._schema.name.endswith("_") else replaced
        return func(*args, **(kwargs or {}))


def _is_addition(func: Any, args: Any) -> bool:
    """Whether an operation adds two tensors, both with numbers in them."""
    return (
        str(func.name()) in _ADDITIONS
        and all(isinstance(each, Tensor) and each.dim() > 0 for each in args[:2])
        and args[0].is_floating_point()
    )


class _Recorder(TorchDispatchMode):
    def __init__(self, model: nn.Module, images: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        start = Step(0, "images", (), tuple(images.shape), ())
        self.steps = [start]
        # By identity; what is in here stays alive, so that no other tensor can come to bear its number.
        self._known: dict[int, tuple[Tensor, Step]] = {id(images): (images, start)}
        self._views: dict[int, list[Tensor]] = {_storage(images): [images]}
        self._calls = _Calls(model)
        self._additions = 0
        self._recurrent = {name for name, part in model.named_modules() if isinstance(part, nn.RNNBase)}

    def __enter__(self) -> "_Recorder":
        self._calls.begin()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        self._calls.end()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        addition = None
        if _is_addition(func, args):
            addition, self._additions = self._additions, self._additions + 1
            if self._recurrent.intersection(self._calls.names):
                addition = None
        inputs = dict.fromkeys(known[1] for leaf in given if (known := self._known.get(id(leaf))))
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        name = str(func.name()).partition("::")[2].partition(".")[0].rstrip("_")
        if not inputs or not outputs or name in _MADE_ANEW:
            return result
        step = Step(
            place=len(self.steps),
            name=name,
            inputs=tuple(inputs),
            shape=tuple(outputs[0].shape),
            modules=tuple(self._calls.names),
            addition=addition,
            operands=(self._step_of(args[0]), self._step_of(args[1])) if addition is not None else None,
        )
        self.steps.append(step)
        for output in outputs:
            self._remember(output, step, written=any(output is leaf for leaf in given))
        return result

    def _step_of(self, tensor: Tensor) -> Step | None:
        known = self._known.get(id(tensor))
        return known[1] if known else None

    def _remember(self, output: Tensor, step: Step, *, written: bool) -> None:
        views = self._views.setdefault(_storage(output), [])
        if written:
            # Whoever shares the memory that was written in place has the new numbers too.
            for view in views:
                self._known[id(view)] = (view, step)
        views.append(output)
        self._known[id(output)] = (output, step)


class _Calls:
    """Knows which modules are being called."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._handles: list[Any] = []
        self.names: list[str] = []

    def begin(self) -> None:
        for name, module in self._model.named_modules():
            if name:
                self._handles.append(module.register_forward_pre_hook(lambda *_, name=name: self.names.append(name)))
                self._handles.append(module.register_forward_hook(lambda *_: self._left()))

    def _left(self) -> None:
        self.names.pop()

    def end(self) -> None:
        for handle in self._handles:
            handle.remove()


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def ancestors(step: Step, after: int) -> list[Step]:
    """Return the steps that one was computed from, itself included, no further back than ``after``."""
    seen, waiting = {step}, [step]
    while waiting:
        for earlier in waiting.pop().inputs:
            if earlier.place >= after and earlier not in seen:
                seen.add(earlier)
                waiting.append(earlier)
    return sorted(seen, key=lambda each: each.place)

"""The graph of a network in torch operations, recorded during one forward pass."""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tl_cli.errors import UsageError, first_line
from tl_cli.models.freezing import in_eval_mode

# Third-party forward code may raise anything.
_FORWARD_ERRORS = (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError, AssertionError)
# Operations that use a tensor's shape and type, but not its values.
_CREATE = frozenset((
    "new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided", "zeros_like", "ones_like", "full_like",
    "empty_like", "rand_like", "randn_like",
))  # fmt: skip
_ADDITIONS = ("aten::add.Tensor", "aten::add_.Tensor")


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One operation that depends on the images.

    Attributes:
        index: in the order of execution; 0 is the images themselves.
        name: of the aten operation, without overload and without the underscore of an in-place one.
        inputs: the steps whose results it uses, each once; constants and parameters are not steps.
        shape: of its result, with the batch; of the first where there are several.
        modules: qualified names of the modules being called, outermost first, without the model itself.
        addition: index among the additions of two tensors; None for any other operation and inside torch's recurrent
            layers.
        operands: the steps whose results are added; None for an operand that does not depend on the images.
    """

    index: int
    name: str
    inputs: tuple["Step", ...]
    shape: tuple[int, ...]
    modules: tuple[str, ...]
    addition: int | None = None
    operands: tuple["Step | None", "Step | None"] | None = None


def trace(model: nn.Module, images: Tensor) -> list[Step]:
    """Return the operations of a forward pass in eval mode that depend on the images, in order of execution.

    A Python branch that depends on the image is recorded as these images take it.

    Args:
        images: (B, 3, H, W), on the model's device, which may be meta.

    Raises:
        UsageError: the forward pass fails.
    """
    with in_eval_mode(model), torch.no_grad():
        try:
            # A first call, so that what is computed only once (masks, tables of positions) is not recorded.
            model(images)
            with _Recorder(model, images) as recorder:
                model(images)
        except _FORWARD_ERRORS as error:
            raise UsageError(f"the forward pass cannot be traced: {first_line(error)}") from error
    return recorder.steps


class Additions(TorchDispatchMode):
    """Calls ``added`` for each addition of two tensors while a network runs; override it to read or replace the sum."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._next = 0

    def added(self, index: int, one: Tensor, other: Tensor, alpha: float) -> Tensor | None:
        """Return a replacement for the sum, or None to leave it as it is.

        Args:
            index: of the addition in the forward pass, from 0.
            alpha: factor of ``other``.
        """
        return None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if _is_addition(func, args):
            index, self._next = self._next, self._next + 1
            alpha = (kwargs or {}).get("alpha", 1)
            replaced = self.added(index, args[0], args[1], alpha)
            if replaced is not None:
                return args[0].copy_(replaced) if func._schema.name.endswith("_") else replaced
        return func(*args, **(kwargs or {}))


def _is_addition(func: Any, args: Any) -> bool:
    """Whether an operation adds two floating-point tensors, neither of them a scalar."""
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
        # By id; the tensors are kept alive, so that no id is reused.
        self._known: dict[int, tuple[Tensor, Step]] = {id(images): (images, start)}
        self._views: dict[int, list[Tensor]] = {_storage(images): [images]}
        self._model = model
        self._hooks = ExitStack()
        # Qualified names of the modules being called, outermost first.
        self._calls: list[str] = []
        self._additions = 0
        self._recurrent = {name for name, part in model.named_modules() if isinstance(part, nn.RNNBase)}

    def __enter__(self) -> "_Recorder":
        for name, module in self._model.named_modules():
            if name:
                begin = module.register_forward_pre_hook(lambda *_, name=name: self._calls.append(name))
                self._hooks.enter_context(begin)
                self._hooks.enter_context(module.register_forward_hook(self._leave))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        self._hooks.close()

    def _leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._calls.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        addition = None
        if _is_addition(func, args):
            addition, self._additions = self._additions, self._additions + 1
            if self._recurrent.intersection(self._calls):
                addition = None
        inputs = dict.fromkeys(known[1] for leaf in given if (known := self._known.get(id(leaf))))
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        name = str(func.name()).partition("::")[2].partition(".")[0].rstrip("_")
        if not inputs or not outputs or name in _CREATE:
            return result
        step = Step(
            index=len(self.steps),
            name=name,
            inputs=tuple(inputs),
            shape=tuple(outputs[0].shape),
            modules=tuple(self._calls),
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
            # An in-place write changes every view of the same memory.
            for view in views:
                self._known[id(view)] = (view, step)
        views.append(output)
        self._known[id(output)] = (output, step)


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def ancestors(step: Step, after: int) -> list[Step]:
    """Return the steps that a step depends on, including itself, from index ``after`` on."""
    seen, waiting = {step}, [step]
    while waiting:
        for earlier in waiting.pop().inputs:
            if earlier.index >= after and earlier not in seen:
                seen.add(earlier)
                waiting.append(earlier)
    return sorted(seen, key=lambda each: each.index)

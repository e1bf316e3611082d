"""Equal but cheaper ways through a network: convolutions on small maps, and BatchNorm folded into a convolution.

Shortcuts are installed for a forward pass and removed afterwards: modules, parameters, buffers and state keys stay as
they are. Each is checked on the network itself (``find_shortcuts``); which exist, and when they are used on a CPU:

- BatchNorm with fixed statistics is folded into the convolution before it: maps with at least 2 numbers per weight.
- A dense kernel becomes one matrix (``small_maps``): 16 images, maps of at most 4 pixels.
- A depthwise kernel loses the taps that never reach the map; its weight gradient is a product per channel on maps of at
  most 16 pixels (``small_maps``).
- Under autocast, a depthwise convolution with gradients computes in float32 (``small_maps``).
- With ``--layout images-last``, folded depthwise convolutions on maps of at most 144 pixels, and pointwise ones after
  them, are matrix products (``images_last``): 16 images, with gradients.
"""

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tl_cli.compute import images_last
from tl_cli.compute.small_maps import convolve, is_supported, output_pixels
from tl_cli.models.freezing import in_eval_mode

# In float32 the order of sums alone may change a deep random network's output by 1% of its largest value, which hides
# wrong folding; in float64 it is 1e-11.
_TOLERANCES = {torch.float64: 1e-6, torch.float32: 2e-3}
# A third-party forward pass may raise these in float64, or where a convolution is computed in another way.
_FORWARD_ERRORS = (RuntimeError, TypeError, ValueError, IndexError, AssertionError)
# Larger networks are not copied to float64.
_MOST_PARAMETERS = 200_000_000
# Numbers in the feature maps per weight: folding changes every weight, a norm every number of the maps. One thread,
# median step: folding everything made ResNet18 at 32 px 18% slower and EfficientNet-Lite0 at 64 px 11% faster; with a
# threshold of 2 the first was no slower, and the second as fast.
_WORTH_FOLDING = 2.0


# Weight and bias of a convolution with its norm, by convolution and autocast's type.
FoldedWeights = dict[tuple[nn.Conv2d, torch.dtype | None], tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class Shortcut:
    """A convolution and, where nothing else uses its output, the BatchNorm after it.

    Attributes:
        images_last: whether the convolution may return maps with images last, which no later module depends on.
    """

    conv: nn.Conv2d
    norm: nn.BatchNorm2d | None = None
    images_last: bool = False


@contextmanager
def installed(
    shortcuts: Sequence[Shortcut],
    *,
    fold: bool,
    images_last: bool = False,
    folded: FoldedWeights | None = None,
    always: bool = False,
) -> Iterator[None]:
    """Let a network use these shortcuts while the block lasts.

    BatchNorm in training mode is never folded.

    Args:
        fold: fold BatchNorm also where it or its convolution trains; where neither does, it is folded anyway.
        images_last: compute folded convolutions on small maps with images last while there are gradients.
        folded: keeps the folded weights of passes without gradients, for callers whose weights do not change; None:
            norms are folded in each pass.
        always: use every shortcut that is possible, also where it does not pay.
    """
    with ExitStack() as stack:
        for shortcut in shortcuts:
            route = _Route(shortcut.conv, shortcut.norm, fold, images_last and shortcut.images_last, folded, always)
            stack.enter_context(_forward_of(shortcut.conv, route.convolve))
            if shortcut.norm is not None:
                stack.enter_context(_forward_of(shortcut.norm, route.follow))
        yield


def find_shortcuts(model: nn.Module, example: Tensor, *, images_last: bool = False) -> tuple[Shortcut, ...]:
    """Return the shortcuts of a network, checked on the example: with them every module must have the same output.

    The model is left as it was. Shortcuts are given up until no output changes: first images last, then folding, then
    all others.

    Args:
        example: images (B, C, H, W) on the model's device; two are enough (with one, both layouts are equal).
        images_last: try also maps with images last.
    """
    with torch.inference_mode(False), torch.no_grad():
        if example.is_inference():
            example = example.clone()
        try:
            return _find(*_in_float64(model, example), images_last=images_last)
        except _FORWARD_ERRORS:
            # No memory for the copy, a device without float64, or a network that creates float32 tensors.
            return _find(model, example, model, images_last=images_last)


def _in_float64(model: nn.Module, example: Tensor) -> tuple[nn.Module, Tensor, nn.Module]:
    if sum(parameter.numel() for parameter in model.parameters()) > _MOST_PARAMETERS:
        return model, example, model
    return deepcopy(model).double(), example.double(), model


def _find(tried: nn.Module, example: Tensor, model: nn.Module, *, images_last: bool) -> tuple[Shortcut, ...]:
    """Return the shortcuts of ``model``; ``tried`` is the model itself or a copy of it."""
    original: dict[nn.Module | None, Any] = {None: None, **dict(zip(tried.modules(), model.modules(), strict=True))}
    with in_eval_mode(tried):
        watched = _watch(tried, example)
        convs = [module for module in tried.modules() if isinstance(module, nn.Conv2d) and is_supported(module)]
        folding = tuple(Shortcut(conv, watched.norms.get(conv)) for conv in convs)
        moving = tuple(replace(shortcut, images_last=True) for shortcut in folding) if images_last else ()
        for shortcuts in (moving, folding, tuple(Shortcut(conv) for conv in convs)):
            if shortcuts and _agree(tried, example, watched, shortcuts):
                return tuple(
                    Shortcut(original[shortcut.conv], original[shortcut.norm], shortcut.images_last)
                    for shortcut in shortcuts
                )
    return ()


class _PerThread(threading.local):
    """Whether the norm of the current pass is folded, per thread: batches may be of different sizes."""

    folded: bool = False

    def __deepcopy__(self, memo: object) -> "_PerThread":
        return _PerThread()


@dataclass(frozen=True, slots=True)
class _Route:
    """The forward passes of a convolution and its norm while a shortcut is installed."""

    conv: nn.Conv2d
    norm: nn.BatchNorm2d | None
    fold: bool
    images_last: bool
    folded: FoldedWeights | None
    always: bool
    now: _PerThread = field(default_factory=_PerThread)

    def convolve(self, maps: Tensor) -> Tensor:
        conv, norm = self.conv, self.norm
        moves = self._puts_images_last(maps)
        self.now.folded = norm is not None and self._folds(norm, maps, moves=moves)
        if norm is None or not self.now.folded:
            return convolve(conv, _images_first(maps), conv.weight, conv.bias)
        weight, bias = self._fold(norm)
        if moves:
            return images_last.convolve(conv, maps, weight, bias)
        return convolve(conv, _images_first(maps), weight, bias)

    def follow(self, maps: Tensor) -> Tensor:
        assert self.norm is not None
        if not self.now.folded:
            normalized: Tensor = type(self.norm).forward(self.norm, maps)
            return normalized
        for part in _after_norm(self.norm):
            maps = part(maps)
        return maps

    def _fold(self, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
        """Return weight and bias of the convolution and its norm in one."""
        conv, device = self.conv, self.conv.weight.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        known = None if torch.is_grad_enabled() else self.folded
        if known is not None and (conv, dtype) in known:
            return known[conv, dtype]
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        mean = norm.running_mean if conv.bias is None else norm.running_mean - conv.bias
        weight, bias = conv.weight * scale.view(-1, 1, 1, 1), norm.bias - mean * scale
        if known is not None:
            # Autocast would convert them in each pass.
            weight, bias = known[conv, dtype] = (weight.to(dtype), bias.to(dtype)) if dtype else (weight, bias)
        return weight, bias

    def _puts_images_last(self, maps: Tensor) -> bool:
        if not self.images_last or not images_last.fits(self.conv, maps):
            return False
        has_gradients = torch.is_grad_enabled() and (maps.requires_grad or self._trains)
        return self.always or (has_gradients and len(maps) >= images_last.FEWEST_IMAGES)

    def _folds(self, norm: nn.BatchNorm2d, maps: Tensor, *, moves: bool) -> bool:
        if norm.training or (not self.fold and self._trains and torch.is_grad_enabled()):
            return False
        pixels = len(maps) * output_pixels(self.conv, maps)
        return moves or self.always or pixels >= _WORTH_FOLDING * self.conv.weight[0].numel()

    @property
    def _trains(self) -> bool:
        parameters = (self.conv.weight, self.norm.weight, self.norm.bias) if self.norm is not None else ()
        return any(parameter.requires_grad for parameter in parameters)


def _images_first(maps: Tensor) -> Tensor:
    """Return maps that other convolutions take: those with images last are copied."""
    return maps.contiguous(memory_format=torch.channels_last) if images_last.is_images_last(maps) else maps


def _after_norm(norm: nn.BatchNorm2d) -> list[nn.Module]:
    """Return the modules that timm's BatchNorm applies after normalizing."""
    return [part for name in ("drop", "act") if isinstance(part := getattr(norm, name, None), nn.Module)]


def _can_fold(norm: nn.Module) -> bool:
    is_plain = type(norm).forward is nn.BatchNorm2d.forward
    return (
        isinstance(norm, nn.BatchNorm2d)
        and norm.affine
        and norm.running_mean is not None
        and (is_plain or len(_after_norm(norm)) == 2)
    )


@contextmanager
def _forward_of(module: nn.Module, forward: Any) -> Iterator[None]:
    # As an attribute of the instance, which calls find before the class's method.
    before = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        del module.__dict__["forward"]
        if before is not None:
            module.__dict__["forward"] = before


@dataclass(frozen=True, slots=True)
class _Watched:
    """What was observed in a forward pass.

    Attributes:
        norms: by convolution, the BatchNorm that is the only user of its output.
        outputs: each module with its output, in order, where that is one tensor.
    """

    norms: dict[nn.Module, nn.BatchNorm2d]
    outputs: list[tuple[nn.Module, Tensor]]


def _watch(model: nn.Module, example: Tensor) -> _Watched:
    outputs: list[tuple[nn.Module, Tensor]] = []
    pairs: list[tuple[nn.Module, nn.Module, Tensor]] = []
    # By id; the tensors are kept alive, so that no id is reused.
    convolved: dict[int, tuple[nn.Module, Tensor]] = {}
    uses = _Uses()

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor):
            outputs.append((module, output))
            if isinstance(module, nn.Conv2d):
                convolved[id(output)] = (module, output)
                # An earlier tensor, freed by now, may have had the same id.
                uses.count[id(output)] = 0
        if inputs and id(inputs[0]) in convolved and _can_fold(module):
            pairs.append((convolved[id(inputs[0])][0], module, inputs[0]))

    handles = [module.register_forward_hook(note) for module in model.modules()]
    try:
        with uses:
            model(example)
    finally:
        for handle in handles:
            handle.remove()
    calls = Counter(module for module, _ in outputs)
    norms = {
        conv: norm
        for conv, norm, between in pairs
        if isinstance(norm, nn.BatchNorm2d) and uses.count[id(between)] == calls[conv] == calls[norm] == 1
    }
    return _Watched(norms, outputs)


class _Uses(TorchDispatchMode):
    """Counts how often each tensor is the input of an operation."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = Counter[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count.update(id(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
        return func(*args, **(kwargs or {}))


def _agree(model: nn.Module, example: Tensor, watched: _Watched, shortcuts: Sequence[Shortcut]) -> bool:
    """Whether every module's output is the same with shortcuts; convolutions with a folded norm are left out."""
    try:
        with installed(shortcuts, fold=True, images_last=True, always=True):
            again = _watch(model, example)
    except _FORWARD_ERRORS:
        return False
    folded = {shortcut.conv for shortcut in shortcuts if shortcut.norm is not None}
    before, after = ([pair for pair in seen.outputs if pair[0] not in folded] for seen in (watched, again))
    return len(before) == len(after) and all(
        module is same and _is_close(output, other)
        for (module, output), (same, other) in zip(before, after, strict=True)
    )


def _is_close(output: Tensor, other: Tensor) -> bool:
    if output.shape != other.shape or output.dtype != other.dtype:
        return False
    if not output.is_floating_point() or output.numel() == 0:
        return torch.equal(output, other)
    tolerance = _TOLERANCES.get(output.dtype, max(_TOLERANCES.values()))
    return bool((output - other).abs().max() <= tolerance * output.abs().max())

"""How far training moved a model: its weights, and the outputs of its layers on the same images."""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tl_cli.data.batches import Batch
from tl_cli.errors import UsageError
from tl_cli.evaluation.logits import Counted, check_finite
from tl_cli.models.classifier import Classifier
from tl_cli.models.layers import Layer, layers_of

# The HSIC estimate divides by n (n - 3).
FEWEST_IMAGES = 4


@dataclass(frozen=True, slots=True)
class LayerDrift:
    """How far one layer has moved.

    Attributes:
        name: qualified name of its first module.
        parameters: number of parameters.
        moved: norm of the change of its parameters divided by their norm before; None where it has none, or where they
            were all zero (a new head).
        statistics: the relative change of its BatchNorm running statistics; None where it has none.
        similarity: linear CKA of its outputs before and after on the same images, 1 where they differ only by a
            rotation and a scale; None where it was not measured.
        is_head: whether it produces the classes.
    """

    name: str
    parameters: int
    moved: float | None
    statistics: float | None
    similarity: float | None
    is_head: bool


def measure_drift(
    before: Classifier,
    after: Classifier,
    example: Tensor,
    batches: Iterable[Batch] = (),
    counted: Counted = lambda done: None,
) -> list[LayerDrift]:
    """Return how far each layer of a model has moved, in order of execution, the head last.

    CKA is that of Kornblith et al. (2019), https://arxiv.org/abs/1905.00414, with the unbiased estimate of HSIC over
    batches of Nguyen et al. (2021), https://arxiv.org/abs/2010.15327, which does not depend on the batch size.

    Args:
        before: the earlier model, of the same architecture, on the same device; its head may have other classes.
        after: the later model. Both are left in eval mode.
        example: one image (1, 3, S, S).
        batches: images on which outputs are compared; batches of fewer than four are skipped.
        counted: called with the number of batches done.

    Raises:
        UsageError: the architectures differ.
        WeightsError: a model returns NaN or infinity.
    """
    layers, earlier = layers_of(after, example), layers_of(before, example)
    if [layer.name for layer in layers] != [layer.name for layer in earlier]:
        raise UsageError(f"{after.name} and {before.name} do not have the same layers")
    modules, before_modules = ([_last_with_weights(layer) for layer in each] for each in (layers, earlier))
    similarities = _similarities(before.model, after.model, before_modules, modules, batches, counted)
    return [
        LayerDrift(
            layer.name,
            sum(p.numel() for p in layer.parameters),
            _moved(was.parameters, layer.parameters),
            _moved(_statistics(was.modules), _statistics(layer.modules)),
            similarity,
            layer.is_head,
        )
        for layer, was, similarity in zip(layers, earlier, similarities, strict=True)
    ]


def _last_with_weights(layer: Layer) -> nn.Module:
    """Return the module whose output represents a layer: not the pooling that may follow it."""
    with_weights = [module for module in layer.modules if any(True for _ in module.parameters())]
    return (with_weights or layer.modules)[-1]


def _moved(before: Sequence[Tensor], after: Sequence[Tensor]) -> float | None:
    if not before or any(was.shape != now.shape for was, now in zip(before, after, strict=True)):
        return None
    length = _squared(before)
    change = _squared([now.detach() - was.detach() for was, now in zip(before, after, strict=True)])
    return float((change / length) ** 0.5) if length > 0 else None


def _squared(tensors: Sequence[Tensor]) -> float:
    return sum(tensor.detach().double().square().sum().item() for tensor in tensors)


def _statistics(modules: Sequence[nn.Module]) -> list[Tensor]:
    return [buffer for module in modules for buffer in module.buffers() if buffer.is_floating_point()]


@dataclass(slots=True)
class _Similarity:
    """Sums over batches of three HSIC estimates: before with after, and each with itself."""

    both: float = 0.0
    before: float = 0.0
    after: float = 0.0
    outputs: list[Tensor | None] = field(default_factory=lambda: [None, None])

    def keep(self, index: int, module: nn.Module, inputs: Any, output: Any) -> None:
        self.outputs[index] = _gram(output) if isinstance(output, Tensor) else None

    def add(self) -> None:
        one, other = self.outputs
        if one is not None and other is not None and one.shape == other.shape:
            self.both += _hsic(one, other)
            self.before += _hsic(one, one)
            self.after += _hsic(other, other)
        self.outputs = [None, None]

    @property
    def cka(self) -> float | None:
        scale = self.before * self.after
        return self.both / scale**0.5 if self.before > 0 and self.after > 0 else None


def _similarities(
    before: nn.Module,
    after: nn.Module,
    before_modules: Sequence[nn.Module],
    after_modules: Sequence[nn.Module],
    batches: Iterable[Batch],
    counted: Counted,
) -> list[float | None]:
    similarities = [_Similarity() for _ in after_modules]
    before.eval()
    after.eval()
    with ExitStack() as hooks, torch.no_grad():
        for index, modules in enumerate((before_modules, after_modules)):
            for module, each in zip(modules, similarities, strict=True):
                hooks.enter_context(module.register_forward_hook(partial(each.keep, index)))
        for number, batch in enumerate(batches, 1):
            if len(batch.labels) >= FEWEST_IMAGES:
                check_finite(before(batch.inputs))
                check_finite(after(batch.inputs))
                for each in similarities:
                    each.add()
            counted(number)
    return [each.cka for each in similarities]


def _gram(output: Tensor) -> Tensor | None:
    """Return the Gram matrix (B, B) of the images' centred features, each image flattened to one vector."""
    if output.dim() < 2:
        return None
    features = output.flatten(1).double()
    # The mean is common to all images, and its norm would dominate.
    features = features - features.mean(0)
    return features @ features.T


def _hsic(one: Tensor, other: Tensor) -> float:
    """Return the unbiased estimate of HSIC from two matrices (n, n): Song et al. (2012), equation 5."""
    count = len(one)
    one, other = one - one.diag().diag(), other - other.diag().diag()
    total = (one * other).sum() + one.sum() * other.sum() / ((count - 1) * (count - 2))
    total = total - 2 * (one.sum(0) @ other.sum(1)) / (count - 2)
    return (total / (count * (count - 3))).item()

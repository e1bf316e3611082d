"""How far training has moved a network: its weights, and what its layers make of images."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tl_cli.data.batches import Batch
from tl_cli.errors import UsageError
from tl_cli.evaluation.logits import Counted, check_finite
from tl_cli.models.layers import Layer, layers_of
from tl_cli.models.zoo.registry import Classifier

# The estimate divides by n (n - 3).
FEWEST_IMAGES = 4


@dataclass(frozen=True, slots=True)
class LayerDrift:
    """How far one layer has moved.

    Attributes:
        name: of its first module.
        parameters: how many.
        moved: length of the change of its parameters, in lengths of what they were; None where it has none, or where
            they were all zero (a new head).
        statistics: the same of its BatchNorm's running statistics; None where it has none.
        similarity: linear CKA of its output before and after on the same images, 1 where the two are alike but for a
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
    """Return how far each layer of a network has moved, in order of execution, the head last.

    CKA is that of Kornblith et al. (2019), https://arxiv.org/abs/1905.00414, with the unbiased estimate of HSIC over
    batches of Nguyen et al. (2021), https://arxiv.org/abs/2010.15327: it does not depend on the size of a batch.

    Args:
        before: the network as it was, of the same architecture, on the same device; its head may have other classes.
        after: as it is now. Both are left in eval mode.
        example: one image (1, 3, S, S).
        batches: images on which the layers are compared; those of fewer than four are left out.
        counted: told how many batches are done.

    Raises:
        UsageError: the two are of different architectures.
        WeightsError: one of them answers with what is no number.
    """
    layers, earlier = layers_of(after, example), layers_of(before, example)
    if [layer.name for layer in layers] != [layer.name for layer in earlier]:
        raise UsageError(f"{after.name} and {before.name} have not the same layers")
    places, before_places = ([_last_with_weights(layer) for layer in each] for each in (layers, earlier))
    similar = _similarities(before.model, after.model, before_places, places, batches, counted)
    return [
        LayerDrift(
            layer.name,
            sum(p.numel() for p in layer.parameters),
            _moved(was.parameters, layer.parameters),
            _moved(_statistics(was.modules), _statistics(layer.modules)),
            similarity,
            layer.is_head,
        )
        for layer, was, similarity in zip(layers, earlier, similar, strict=True)
    ]


def _last_with_weights(layer: Layer) -> nn.Module:
    """Return the module whose output stands for a layer: not the pooling that may follow it."""
    with_weights = [module for module in layer.modules if any(True for _ in module.parameters())]
    return (with_weights or layer.modules)[-1]


def _moved(before: Sequence[Tensor], after: Sequence[Tensor]) -> float | None:
    if not before or any(was.shape != now.shape for was, now in zip(before, after, strict=True)):
        return None
    length = sum(was.detach().double().square().sum().item() for was in before)
    change = sum(
        (now.detach() - was.detach()).double().square().sum().item() for was, now in zip(before, after, strict=True)
    )
    return float((change / length) ** 0.5) if length > 0 else None


def _statistics(modules: Sequence[nn.Module]) -> list[Tensor]:
    return [buffer for module in modules for buffer in module.buffers() if buffer.is_floating_point()]


@dataclass(slots=True)
class _Alike:
    """Sums over batches of three estimates of HSIC: before with after, and each with itself."""

    both: float = 0.0
    before: float = 0.0
    after: float = 0.0
    outputs: list[Tensor | None] = field(default_factory=lambda: [None, None])

    def note(self, place: int, output: Any) -> None:
        self.outputs[place] = _gram(output) if isinstance(output, Tensor) else None

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
    before_places: Sequence[nn.Module],
    after_places: Sequence[nn.Module],
    batches: Iterable[Batch],
    counted: Counted,
) -> list[float | None]:
    alike = [_Alike() for _ in after_places]
    before.eval()
    after.eval()
    with _noting(before_places, alike, 0), _noting(after_places, alike, 1), torch.no_grad():
        for number, batch in enumerate(batches, 1):
            if len(batch.labels) >= FEWEST_IMAGES:
                check_finite(before(batch.inputs))
                check_finite(after(batch.inputs))
                for each in alike:
                    each.add()
            counted(number)
    return [each.cka for each in alike]


@contextmanager
def _noting(modules: Sequence[nn.Module], alike: Sequence[_Alike], place: int) -> Iterator[None]:
    handles = [
        module.register_forward_hook(lambda m, i, output, each=each: each.note(place, output))
        for module, each in zip(modules, alike, strict=True)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _gram(output: Tensor) -> Tensor | None:
    """Return the products of every two images' features (B, B), each image's numbers taken as one vector."""
    if output.dim() < 2:
        return None
    features = output.flatten(1).double()
    # What all images have in common says nothing, and would drown what they have not.
    features = features - features.mean(0)
    return features @ features.T


def _hsic(one: Tensor, other: Tensor) -> float:
    """Return the unbiased estimate of HSIC from two matrices (n, n): Song et al. (2012), equation 5."""
    count = len(one)
    one, other = one - one.diag().diag(), other - other.diag().diag()
    total = (one * other).sum() + one.sum() * other.sum() / ((count - 1) * (count - 2))
    total = total - 2 * (one.sum(0) @ other.sum(1)) / (count - 2)
    return (total / (count * (count - 3))).item()

"""The head by logistic regression on cached features: to convergence, without schedule and learning rate."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from tl_cli.data.splits import beginning, stratified_order
from tl_cli.evaluation.task import Task
from tl_cli.training.cached_features import CachedFeatures, DiskView

# L2 penalties in the order in which they are tried; each solution is the start of the next search.
_PENALTIES = tuple(10.0 ** -(step / 2) for step in range(11))
# The search ends after so many penalties without a lower loss.
_PATIENCE = 2
# With fewer training images the penalty is chosen by folds of them: the validation images are too few to choose by.
_FEW_IMAGES = 2000
_FOLDS = 5
# The penalty is searched on so many images.
_SEARCHED_IMAGES = 5000
_ITERATIONS = 60
# Times the chosen penalty for a head that fine-tuning follows: a head that fits the training images leaves the backbone
# little to learn. EfficientNet-Lite0, six pairs of runs on four sets of 540 images: 0.6 points more in the end.
_UNFINISHED = 10.0
# A solution is found when the mean loss, in nats, changes less between iterations. With 1e-6 the accuracy was the same
# (EfficientNet-Lite0, 5,000 of CIFAR-10's images); with 1e-4 unfinished solutions spoil the choice of the penalty.
_LEAST_CHANGE = 1e-5
# Of a group's root mean square: a feature that hardly varies in few training images may be large in others. After
# training on 540 letters, 4% of the letters of other fonts were correct without it, 90% with it.
_LEAST_DEVIATION = 0.3
_ROWS = 8192
# Features are converted to float32 once if they then take less; otherwise in each iteration.
_MOST_BYTES = 2 << 30


@dataclass(frozen=True, slots=True)
class HeadFit:
    """The result of a regression.

    Attributes:
        penalty: L2 penalty on the weights of standardized features.
        held_out_loss: mean loss of held-out images with the chosen penalty, in nats.
        by_folds: whether those were folds of the training images, and not the validation images.
        loss: mean loss of the training features, all views, in nats, without the penalty.
        correct: fraction of the training features with a correct prediction.
    """

    penalty: float
    held_out_loss: float
    by_folds: bool
    loss: float
    correct: float


def fit_head(
    head: nn.Linear,
    train: CachedFeatures,
    val: CachedFeatures,
    widths: Sequence[int],
    task: Task,
    class_weights: Tensor | None,
    smoothing: float = 0.0,
    *,
    is_final: bool = True,
    counted: Callable[[int, int], None] = lambda done, total: None,
) -> HeadFit:
    """Set a head to the minimum of its mean loss over all views of the training images plus an L2 penalty.

    Features are standardized, and each group of them has the same total variance, so that the penalty spares narrow
    groups. The penalty is the one with the lowest loss on held-out images, of which no view trains.

    Args:
        head: its weights and bias are replaced.
        widths: numbers of successive features that form a group.
        class_weights: (num_classes,) factors of the losses.
        smoothing: label smoothing of the loss that is minimized, that of fine-tuning: its first steps then have no
            reason to change the head. Held-out losses are without.
        is_final: whether no fine-tuning follows.
        counted: called with the number of regressions that are done, and their largest number.
    """
    views, labels = _in_float32(train.views), train.labels
    scale = _Scale.of(views, widths, head.weight.device)
    regression = _Regression(scale, task, class_weights, smoothing, head.out_features)
    few = len(labels) < _FEW_IMAGES
    splits = _folds(views, labels) if few else [_searched(views, labels, val)]
    search = _search(regression, splits, counted)
    penalty = search.penalty * (1.0 if is_final else _UNFINISHED)
    solution = regression.solve(views, labels, penalty, search.solution)
    loss, correct = regression.score(views, labels, solution)
    weight, bias = scale.raw(solution)
    with torch.no_grad():
        head.weight.copy_(weight.T)
        head.bias.copy_(bias)
    return HeadFit(penalty, search.loss, few, loss, correct)


def images_read(images: int) -> int:
    """Return about how many images a regression reads, each pass over them counted, for a forecast.

    Measured: 220 times 4,500 images with validation images, 870 and 1,080 times 540 images by folds.
    """
    return 1000 * images if images < _FEW_IMAGES else 150 * min(images, _SEARCHED_IMAGES) + 70 * images


# The features of a view, (N, D).
_View = Tensor | DiskView


@dataclass(frozen=True, slots=True)
class _Scale:
    """How features are standardized.

    Attributes:
        mean: (D,) float32.
        factor: (D,) float32, by which centred features are multiplied.
    """

    mean: Tensor
    factor: Tensor

    @classmethod
    def of(cls, views: Sequence[_View], widths: Sequence[int], device: torch.device) -> Self:
        """Return the scale under which each group has about the variance of its mean width."""
        count = sum(view.shape[0] for view in views)
        # On the CPU in float64, which not every device has.
        total, squares = torch.zeros(2, sum(widths), dtype=torch.float64)
        for rows in (rows for view in views for rows in _chunks(view, torch.device("cpu"))):
            total += rows.double().sum(0)
            squares += rows.double().square().sum(0)
        mean = total / count
        deviation = (squares / count - mean.square()).clamp(min=0).sqrt()
        balance, floor = torch.ones(2, sum(widths), dtype=torch.float64)
        for first, width in zip(accumulate(widths, initial=0), widths, strict=False):
            group = slice(first, first + width)
            balance[group] = (sum(widths) / len(widths) / width) ** 0.5
            floor[group] = _LEAST_DEVIATION * deviation[group].square().mean().sqrt()
        factor = balance / deviation.clamp(min=floor).clamp(min=1e-6)
        return cls(mean.float().to(device), factor.float().to(device))

    def raw(self, solution: Tensor) -> tuple[Tensor, Tensor]:
        """Return weights (D, num_classes) and bias (num_classes,) for features as they are.

        Args:
            solution: (D + 1, num_classes) for standardized features, the bias last.
        """
        weight = solution[:-1] * self.factor[:, None]
        return weight, solution[-1] - self.mean @ weight


@dataclass(frozen=True, slots=True)
class _Regression:
    scale: _Scale
    task: Task
    class_weights: Tensor | None
    smoothing: float
    num_classes: int

    def start(self) -> Tensor:
        """Return a solution of zeros, (D + 1, num_classes), the bias last."""
        return self.scale.mean.new_zeros(len(self.scale.mean) + 1, self.num_classes)

    def solve(self, views: Sequence[_View], labels: Tensor, penalty: float, start: Tensor) -> Tensor:
        """Return the minimum, by L-BFGS from ``start``."""
        solution, total = start.clone().requires_grad_(True), len(views) * self._weight(labels)
        optimizer = torch.optim.LBFGS(
            [solution],
            max_iter=_ITERATIONS,
            tolerance_grad=0.0,
            tolerance_change=_LEAST_CHANGE,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            raw = self.scale.raw(solution)
            weight, bias = (each.detach().requires_grad_(True) for each in raw)
            # In pieces, whose gradients add up: all logits together may not fit the memory.
            loss = solution.new_zeros(())
            for rows, targets in _labelled_chunks(views, labels, solution.device):
                part = self._summed(rows @ weight + bias, targets, self.smoothing) / total
                part.backward()
                loss += part.detach()
            torch.autograd.backward(raw, [weight.grad, bias.grad])
            shrinking = penalty / 2 * solution[:-1].square().sum()
            shrinking.backward()
            return loss + shrinking.detach()

        optimizer.step(closure)
        return solution.detach()

    @torch.no_grad()
    def score(self, views: Sequence[_View], labels: Tensor, solution: Tensor) -> tuple[float, float]:
        """Return mean loss and fraction of correct predictions."""
        weight, bias = self.scale.raw(solution)
        loss = correct = 0.0
        for rows, targets in _labelled_chunks(views, labels, solution.device):
            logits = rows @ weight + bias
            loss += float(self._summed(logits, targets))
            correct += float(self.task.is_correct(logits, targets).sum())
        return loss / (len(views) * self._weight(labels)), correct / (len(views) * len(labels))

    def _summed(self, logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
        return self.task.loss(logits, labels, class_weights=self.class_weights, smoothing=smoothing, reduction="sum")

    def _weight(self, labels: Tensor) -> float:
        weights = self.class_weights.cpu() if self.class_weights is not None else None
        return float(self.task.weight(labels, weights))


@dataclass(frozen=True, slots=True)
class _Split:
    """Features to fit and features of held-out images."""

    views: Sequence[_View]
    labels: Tensor
    held_out: _View
    held_out_labels: Tensor


@dataclass(frozen=True, slots=True)
class _Search:
    """The penalty with the lowest loss on held-out images, that loss, and the solution for the first split."""

    penalty: float
    loss: float
    solution: Tensor


def _search(regression: _Regression, splits: Sequence[_Split], counted: Callable[[int, int], None]) -> _Search:
    solutions = [regression.start() for _ in splits]
    best: _Search | None = None
    since = 0
    for number, penalty in enumerate(_PENALTIES):
        losses = []
        for index, split in enumerate(splits):
            solutions[index] = regression.solve(split.views, split.labels, penalty, solutions[index])
            losses.append(regression.score([split.held_out], split.held_out_labels, solutions[index])[0])
            counted(number * len(splits) + index + 1, len(_PENALTIES) * len(splits))
        loss = sum(losses) / len(losses)
        since += 1
        if best is None or loss < best.loss:
            best, since = _Search(penalty, loss, solutions[0]), 0
        if since == _PATIENCE:
            break
    assert best is not None
    return best


def _searched(views: Sequence[_View], labels: Tensor, val: CachedFeatures) -> _Split:
    """Return some of the training images, and the validation images."""
    (held_out,) = _in_float32(val.views[:1])
    if len(labels) <= _SEARCHED_IMAGES:
        return _Split(views, labels, held_out, val.labels)
    some = torch.from_numpy(beginning(labels.numpy(), _SEARCHED_IMAGES, seed=0))
    return _Split([_rows(view, some) for view in views], labels[some], held_out, val.labels)


def _folds(views: Sequence[_View], labels: Tensor) -> list[_Split]:
    """Return stratified folds; all views of an image are in one."""
    order = stratified_order(labels.numpy(), seed=0)
    splits = []
    for fold in range(min(_FOLDS, len(order))):
        out = np.zeros(len(order), dtype=bool)
        out[order[fold::_FOLDS]] = True
        kept, held = (torch.from_numpy(np.flatnonzero(each)) for each in (~out, out))
        splits.append(_Split([_rows(view, kept) for view in views], labels[kept], _rows(views[0], held), labels[held]))
    return splits


def _in_float32(views: Sequence[_View]) -> Sequence[_View]:
    tensors = [view for view in views if isinstance(view, Tensor)]
    if len(tensors) < len(views) or sum(view.numel() for view in tensors) * 4 > _MOST_BYTES:
        return views
    return [view.float() for view in tensors]


def _rows(view: _View, indices: Tensor) -> Tensor:
    return view.index_select(0, indices.to(view.device)).float()


def _chunks(view: _View, device: torch.device) -> Iterator[Tensor]:
    for first in range(0, view.shape[0], _ROWS):
        yield view[first : first + _ROWS].to(device, torch.float32)


def _labelled_chunks(views: Sequence[_View], labels: Tensor, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    for view in views:
        yield from zip(_chunks(view, device), labels.to(device).split(_ROWS), strict=True)

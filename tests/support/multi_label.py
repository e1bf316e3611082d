"""A multi-label task, which the product does not have: each image has any number of classes."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from tl_cli.evaluation.task import Reduction


class MultiLabel:
    """Labels (N, num_classes) of zeros and ones; sigmoid; an image is correct if all of its classes are."""

    def loss(
        self,
        logits: Tensor,
        targets: Tensor,
        *,
        class_weights: Tensor | None = None,
        smoothing: float = 0.0,
        reduction: Reduction = "mean",
    ) -> Tensor:
        losses = F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="none").mean(1)
        return {"none": lambda: losses, "mean": losses.mean, "sum": losses.sum}[reduction]()

    def weight(self, targets: Tensor, class_weights: Tensor | None) -> float:
        return float(len(targets))

    def balanced_weights(self, labels: Tensor, num_classes: int) -> Tensor:
        return torch.ones(num_classes)

    def probabilities(self, logits: Tensor, temperature: float = 1.0) -> Tensor:
        return (logits / temperature).sigmoid()

    def decide(self, logits: Tensor) -> Tensor:
        return (logits > 0).long()

    def is_correct(self, logits: Tensor, targets: Tensor) -> Tensor:
        return (self.decide(logits) == targets).all(1)

    def divergence(self, logits: Tensor, changed: Tensor) -> Tensor:
        shares = logits.sigmoid()
        return self.loss(changed, shares) - self.loss(logits, shares)

    def confidence(self, probabilities: Tensor) -> Tensor:
        return torch.maximum(probabilities, 1 - probabilities).prod(1)

    def names(self, probabilities: Tensor, classes: Sequence[str]) -> list[str]:
        return self.label_names((probabilities > 0.5).long(), classes)

    def label_names(self, labels: Tensor | np.ndarray, classes: Sequence[str]) -> list[str]:
        return [", ".join(name for name, is_it in zip(classes, row, strict=True) if is_it) for row in labels.tolist()]

    def is_among_likeliest(self, logits: Tensor, labels: Tensor, count: int) -> Tensor | None:
        return None

    def confusion(self, logits: Tensor, labels: Tensor) -> Tensor:
        return labels.T @ self.decide(logits)

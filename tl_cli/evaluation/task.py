"""What a task is: its loss, its decision and what its scores count. Everything else uses it through ``Task``.

A served model runs this file: it imports only torch and NumPy.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from tl_cli.contract import TaskName

Reduction = Literal["none", "mean", "sum"]


class Task(Protocol):
    """How logits become a loss, probabilities, a decision and scores.

    Logits are (N, num_classes). Labels have a row per image; targets are labels, or blends of them (MixUp, CutMix).
    """

    def loss(
        self,
        logits: Tensor,
        targets: Tensor,
        *,
        class_weights: Tensor | None = None,
        smoothing: float = 0.0,
        reduction: Reduction = "mean",
    ) -> Tensor:
        """Return the loss in nats: (N,) for the reduction ``none``, otherwise ().

        Args:
            class_weights: (num_classes,) factors of the images' losses.
            smoothing: label smoothing, a fraction.
        """

    def weight(self, targets: Tensor, class_weights: Tensor | None) -> Tensor | float:
        """Return what a summed loss of these targets is divided by to get their (weighted) mean."""

    def balanced_weights(self, labels: Tensor, num_classes: int) -> Tensor:
        """Return class weights (num_classes,) float32 that are inverse to the classes' frequencies."""

    def probabilities(self, logits: Tensor, temperature: float = 1.0) -> Tensor:
        """Return probabilities (N, num_classes) of the logits' dtype; a row is NaN where a logit is NaN or infinite."""

    def decide(self, logits: Tensor) -> Tensor:
        """Return the predicted labels of each image, shaped like its true ones."""

    def is_correct(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return whether the decision on each image is right, (N,) bool; of a blend the largest share counts."""

    def divergence(self, logits: Tensor, changed: Tensor) -> Tensor:
        """Return the Kullback-Leibler divergence from the predictions to changed ones, in nats, mean over images."""

    def confidence(self, probabilities: Tensor) -> Tensor:
        """Return the probability of the decision on each image, (N,)."""

    def names(self, probabilities: Tensor, classes: Sequence[str]) -> list[str]:
        """Return the decision on each image as text."""

    def label_names(self, labels: Tensor | np.ndarray, classes: Sequence[str]) -> list[str]:
        """Return the labels of each image as text."""

    def is_among_likeliest(self, logits: Tensor, labels: Tensor, count: int) -> Tensor | None:
        """Return whether the truth is among the likeliest classes, (N,) bool; None where it always is."""

    def confusion(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return how many images of each class (row) were given each class (column), (num_classes, num_classes)."""


class SingleLabel:
    """Each image has exactly one class: labels (N,) int64, softmax, cross-entropy, the likeliest class."""

    def loss(
        self,
        logits: Tensor,
        targets: Tensor,
        *,
        class_weights: Tensor | None = None,
        smoothing: float = 0.0,
        reduction: Reduction = "mean",
    ) -> Tensor:
        """Return the cross-entropy; targets are classes (N,) int64 or shares (N, num_classes)."""
        if class_weights is None or not smoothing:
            return F.cross_entropy(
                logits, targets, weight=class_weights, label_smoothing=smoothing, reduction=reduction
            )
        # torch also weights the smoothed part by its classes, so that rare ones get probability for every image.
        sharp = F.cross_entropy(logits, targets, weight=class_weights, reduction="none")
        spread = -logits.log_softmax(1).mean(1) * self._weights(targets, class_weights)
        losses = (1 - smoothing) * sharp + smoothing * spread
        if reduction == "none":
            return losses
        return losses.sum() if reduction == "sum" else losses.sum() / self.weight(targets, class_weights)

    def weight(self, targets: Tensor, class_weights: Tensor | None) -> Tensor | float:
        """Return the number of images, or the sum of their classes' weights."""
        if class_weights is None:
            return float(len(targets))
        return self._weights(targets, class_weights).sum()

    def _weights(self, targets: Tensor, class_weights: Tensor) -> Tensor:
        return class_weights[targets] if targets.dim() == 1 else targets @ class_weights

    def balanced_weights(self, labels: Tensor, num_classes: int) -> Tensor:
        """Return scikit-learn's ``balanced``: the mean weight of an image is one."""
        sizes = torch.bincount(labels, minlength=num_classes)
        return (sizes.sum() / (num_classes * sizes)).float()

    def probabilities(self, logits: Tensor, temperature: float = 1.0) -> Tensor:
        """Return ``softmax(logits / temperature)``."""
        scaled = logits / temperature
        return scaled.softmax(1).where(scaled.isfinite().all(1, keepdim=True), math.nan)

    def decide(self, logits: Tensor) -> Tensor:
        """Return the likeliest class, (N,) int64."""
        return logits.argmax(1)

    def is_correct(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return whether the likeliest class is the true one."""
        return logits.argmax(1) == (targets if targets.dim() == 1 else targets.argmax(1))

    def divergence(self, logits: Tensor, changed: Tensor) -> Tensor:
        """Return the divergence between the softmax distributions."""
        return F.kl_div(changed.log_softmax(1), logits.log_softmax(1), reduction="batchmean", log_target=True)

    def confidence(self, probabilities: Tensor) -> Tensor:
        """Return the largest probability."""
        return probabilities.max(1).values

    def names(self, probabilities: Tensor, classes: Sequence[str]) -> list[str]:
        """Return the name of the likeliest class."""
        return [classes[index] for index in probabilities.argmax(1).tolist()]

    def label_names(self, labels: Tensor | np.ndarray, classes: Sequence[str]) -> list[str]:
        """Return the name of the class."""
        return [classes[index] for index in labels.tolist()]

    def is_among_likeliest(self, logits: Tensor, labels: Tensor, count: int) -> Tensor | None:
        """Return whether the true class is one of the ``count`` likeliest; None where there are no more classes."""
        if logits.shape[1] <= count:
            return None
        return (logits.topk(count, 1).indices == labels[:, None]).any(1)

    def confusion(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the confusion matrix, int64."""
        classes = logits.shape[1]
        return torch.bincount(labels * classes + logits.argmax(1), minlength=classes**2).view(classes, classes)


SINGLE_LABEL = SingleLabel()
TASKS: Mapping[TaskName, Task] = {"single-label": SINGLE_LABEL}

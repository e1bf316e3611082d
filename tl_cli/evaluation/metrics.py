"""Numbers about answers, each with its uncertainty where it is an estimate."""

from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F  # noqa: N812
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix

from tl_cli.evaluation.logits import Answers


@dataclass(frozen=True, slots=True)
class Accuracy:
    """A share of images, with the interval that its number of images allows.

    Attributes:
        correct: images classified correctly.
        count: images in all.
        low: lower end of the 95% interval, a fraction.
        high: upper end.
    """

    correct: int
    count: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """The fraction of correct images."""
        return self.correct / self.count


@dataclass(frozen=True, slots=True)
class Report:
    """How good a classifier is on one part of the data.

    Attributes:
        accuracy: top-1, with its interval.
        loss: mean cross-entropy, in nats.
        confusion: (num_classes, num_classes) int64; rows are the truth, columns the answer.
    """

    accuracy: Accuracy
    loss: float
    confusion: np.ndarray

    @property
    def recalls(self) -> list[Accuracy | None]:
        """Accuracy among the images of each class; None for a class without images."""
        return [
            wilson(int(row[label]), int(row.sum())) if row.sum() else None for label, row in enumerate(self.confusion)
        ]


def wilson(correct: int, count: int) -> Accuracy:
    """Return an accuracy with its 95% Wilson score interval (Wilson 1927), by SciPy."""
    interval = binomtest(correct, count).proportion_ci(0.95, method="wilson")
    return Accuracy(correct, count, float(interval.low), float(interval.high))


def report(answers: Answers) -> Report:
    """Return accuracy, loss and confusion matrix of a set of answers."""
    predicted = answers.logits.argmax(1)
    num_classes = answers.logits.shape[1]
    return Report(
        accuracy=wilson(int((predicted == answers.labels).sum()), len(answers.labels)),
        loss=float(F.cross_entropy(answers.logits, answers.labels)),
        confusion=confusion_matrix(answers.labels.numpy(), predicted.numpy(), labels=range(num_classes)),
    )

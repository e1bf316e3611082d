import math

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.metrics import confusion_matrix, log_loss
from sklearn.utils.class_weight import compute_class_weight

from tl_cli.evaluation.task import SINGLE_LABEL

LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.0, 0.0], [0.0, 0.1, 3.0], [1.0, 0.0, 0.9]])
LABELS = torch.tensor([0, 2, 2, 2])


def test_the_loss_is_scikit_learns_log_loss() -> None:
    expected = log_loss(LABELS, softmax(LOGITS.numpy(), axis=1), labels=range(3))
    assert float(SINGLE_LABEL.loss(LOGITS, LABELS)) == pytest.approx(expected)
    assert float(SINGLE_LABEL.loss(LOGITS, LABELS, reduction="sum")) == pytest.approx(4 * expected)


def test_a_weighted_loss_divided_by_its_weight_is_the_weighted_mean() -> None:
    weights = torch.tensor([0.5, 1.0, 3.0])
    by_hand = sum(
        float(weights[label]) * -math.log(softmax(row)[label])
        for row, label in zip(LOGITS.numpy(), LABELS.tolist(), strict=True)
    ) / (0.5 + 3 * 3.0)
    shares = torch.eye(3)[LABELS]
    for targets in (LABELS, shares):
        loss = SINGLE_LABEL.loss(LOGITS, targets, class_weights=weights, reduction="sum")
        assert float(loss / SINGLE_LABEL.weight(targets, weights)) == pytest.approx(by_hand, rel=1e-5)


def test_the_likeliest_class_is_the_decision() -> None:
    probabilities = SINGLE_LABEL.probabilities(LOGITS)
    assert SINGLE_LABEL.is_correct(LOGITS, LABELS).tolist() == [True, False, True, False]
    assert SINGLE_LABEL.names(probabilities, ("a", "b", "c")) == ["a", "b", "c", "a"]
    assert SINGLE_LABEL.confidence(probabilities).numpy() == pytest.approx(softmax(LOGITS.numpy(), axis=1).max(1))


def test_labels_have_the_names_of_their_classes() -> None:
    assert SINGLE_LABEL.label_names(LABELS, ("a", "b", "c")) == ["a", "c", "c", "c"]
    assert SINGLE_LABEL.label_names(np.array([1, 0]), ("a", "b", "c")) == ["b", "a"]


def test_a_mixed_image_counts_for_its_largest_share() -> None:
    shares = torch.tensor([[0.6, 0.4, 0.0], [0.6, 0.4, 0.0]])
    assert SINGLE_LABEL.is_correct(LOGITS[:2], shares).tolist() == [True, False]


def test_a_temperature_divides_the_logits() -> None:
    found = SINGLE_LABEL.probabilities(LOGITS, 2.5)
    assert found.numpy() == pytest.approx(softmax(LOGITS.numpy() / 2.5, axis=1), rel=1e-6)


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_the_probabilities_of_a_logit_that_is_not_finite_are_nan(broken: float) -> None:
    logits = LOGITS.clone()
    logits[1, 2] = broken
    found = SINGLE_LABEL.probabilities(logits)
    assert found[1].isnan().all()
    assert found[[0, 2, 3]].isfinite().all()


def test_the_confusion_matrix_is_scikit_learns() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(50, 4, generator=generator), torch.randint(3, (50,), generator=generator)
    expected = confusion_matrix(labels, logits.numpy().argmax(1), labels=range(4))
    assert SINGLE_LABEL.confusion(logits, labels).numpy().tolist() == expected.tolist()


def test_the_likeliest_classes_are_not_scored_if_they_are_all_classes() -> None:
    among = SINGLE_LABEL.is_among_likeliest(LOGITS, LABELS, 2)
    assert among is not None
    assert among.tolist() == [True, False, True, True]
    assert SINGLE_LABEL.is_among_likeliest(LOGITS, LABELS, 3) is None


def test_balanced_weights_are_scikit_learns() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    found = SINGLE_LABEL.balanced_weights(torch.from_numpy(labels), 3)
    assert found.numpy() == pytest.approx(expected, rel=1e-6)

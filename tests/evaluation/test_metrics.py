import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss

from tl_cli.evaluation.logits import Answers
from tl_cli.evaluation.metrics import report, wilson


def test_the_report_agrees_with_an_independent_computation() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(200, 4) * 2, torch.randint(0, 4, (200,))
    measured = report(Answers(logits, labels))
    predicted = logits.argmax(1)
    assert measured.accuracy.correct == int((predicted == labels).sum())
    assert measured.loss == pytest.approx(log_loss(labels.numpy(), logits.softmax(1).numpy()), rel=1e-5)
    for true in range(4):
        for said in range(4):
            assert measured.confusion[true, said] == int(((labels == true) & (predicted == said)).sum())
    assert measured.recalls[2].value == pytest.approx(float((predicted[labels == 2] == 2).float().mean()))


def test_a_class_without_images_has_no_accuracy() -> None:
    measured = report(Answers(torch.eye(3)[:2] * 5, torch.tensor([0, 1])))
    assert measured.recalls[2] is None
    assert measured.confusion.shape == (3, 3)


@pytest.mark.parametrize(("correct", "count"), [(0, 10), (10, 10), (8630, 10_000), (177, 180)])
def test_the_interval_is_wilsons(correct: int, count: int) -> None:
    z, p = 1.959963984540054, correct / count
    centre = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * np.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    measured = wilson(correct, count)
    assert measured.low == pytest.approx(max(0, centre - half), abs=1e-9)
    assert measured.high == pytest.approx(min(1, centre + half), abs=1e-9)

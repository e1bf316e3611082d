import math

import numpy as np
import pytest
import torch
from scipy.stats import bootstrap
from sklearn.metrics import f1_score, log_loss, precision_recall_fscore_support, top_k_accuracy_score

from tl_cli.evaluation.classification import class_scores, macro_scores, most_confused, report, worst_mistakes
from tl_cli.evaluation.logits import LabelledLogits


def test_the_report_agrees_with_an_independent_computation() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(200, 4) * 2, torch.randint(0, 4, (200,))
    measured = report(LabelledLogits(logits, labels))
    predicted = logits.argmax(1)
    assert measured.accuracy.correct == int((predicted == labels).sum())
    losses = -logits.double().log_softmax(1)[range(200), labels]
    assert measured.loss.value == pytest.approx(log_loss(labels.numpy(), logits.softmax(1).numpy()), rel=1e-5)
    half = 1.971957 * float(losses.std()) / 200**0.5  # Student's t with 199 degrees of freedom, 97.5%
    assert measured.loss.low == pytest.approx(float(losses.mean()) - half, rel=1e-5)
    assert measured.loss.high == pytest.approx(float(losses.mean()) + half, rel=1e-5)
    for true in range(4):
        for guess in range(4):
            assert measured.confusion[true, guess] == int(((labels == true) & (predicted == guess)).sum())


def test_a_class_without_images_has_no_recall() -> None:
    measured = report(LabelledLogits(torch.eye(3)[:2] * 5, torch.tensor([0, 1])))
    assert measured.confusion.shape == (3, 3)
    assert class_scores(measured.confusion)[2].recall is None


def some_logits(count: int = 400, classes: int = 7, seed: int = 3) -> LabelledLogits:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (count,), generator=generator)
    logits = torch.randn(count, classes, generator=generator)
    logits[torch.arange(count), labels] += 1.5
    return LabelledLogits(logits, labels)


def test_the_five_likeliest_are_scikit_learns() -> None:
    labelled = some_logits()
    expected = top_k_accuracy_score(labelled.labels.numpy(), labelled.logits.numpy(), k=5)
    assert report(labelled).top5.value == pytest.approx(expected)
    assert report(some_logits(classes=5)).top5 is None


def test_scores_by_class_and_their_means_are_scikit_learns() -> None:
    labelled = some_logits()
    labels, predicted = labelled.labels.numpy(), labelled.logits.argmax(1).numpy()
    confusion = report(labelled).confusion
    precision, recall, f1, support = precision_recall_fscore_support(labels, predicted, zero_division=0)
    scores = class_scores(confusion)
    assert [each.images for each in scores] == support.tolist()
    assert [each.precision.value for each in scores] == pytest.approx(precision.tolist())
    assert [each.recall.value for each in scores] == pytest.approx(recall.tolist())
    assert [each.f1 for each in scores] == pytest.approx(f1.tolist())
    macro = macro_scores(confusion)
    assert macro.precision.value == pytest.approx(precision.mean())
    assert macro.recall.value == pytest.approx(recall.mean())
    assert macro.f1.value == pytest.approx(f1.mean())


@pytest.mark.slow
def test_the_interval_of_a_mean_over_classes_is_a_bootstrap_of_the_images() -> None:
    labelled = some_logits(200, 3)
    labels, predicted = labelled.labels.numpy(), labelled.logits.argmax(1).numpy()
    theirs = bootstrap(
        (labels, predicted), lambda true, predicted: f1_score(true, predicted, average="macro"), paired=True, vectorized=False,
        n_resamples=1000, method="basic", random_state=0,
    ).confidence_interval  # fmt: skip
    ours = macro_scores(report(labelled).confusion).f1
    assert ours.low == pytest.approx(theirs.low, abs=0.012)
    assert ours.high == pytest.approx(theirs.high, abs=0.012)


@pytest.mark.parametrize(("count", "classes"), [pytest.param(2000, 100, marks=pytest.mark.slow), (1000, 10), (60, 3)])
def test_the_intervals_contain_the_scores_of_many_more_images(count: int, classes: int) -> None:
    truth = macro_scores(report(some_logits(100_000, classes, 99)).confusion).f1.value
    found = [macro_scores(report(some_logits(count, classes, seed)).confusion).f1 for seed in range(30)]
    assert all(each.low <= each.value <= each.high for each in found)
    assert sum(each.low <= truth <= each.high for each in found) >= 25


def test_too_few_images_have_no_interval() -> None:
    one = report(some_logits(1, 3))
    assert math.isnan(one.loss.low)
    assert math.isnan(macro_scores(one.confusion).f1.low)
    assert math.isnan(macro_scores(np.diag([50, 50, 50])).recall.low)
    # Samples without the two predictions of the last class lose its precision of 1: from 45% to 11%, and never above 47%.
    rarely = macro_scores(np.array([[20, 0, 0], [20, 0, 0], [18, 0, 2]]))
    assert rarely.precision.value == pytest.approx((20 / 58 + 0 + 1) / 3)
    assert math.isnan(rarely.precision.low)
    assert not math.isnan(rarely.recall.low)
    # With three images per class, the means are far from those of more images.
    assert math.isnan(macro_scores(report(some_logits(300, 100)).confusion).f1.low)


def test_means_are_over_the_classes_that_have_images() -> None:
    # Class 2 has no images and is predicted once; class 1 is never predicted.
    confusion = np.array([[3, 0, 1], [2, 0, 0], [0, 0, 0]])
    macro = macro_scores(confusion)
    assert macro.recall.value == pytest.approx((3 / 4 + 0) / 2)
    assert macro.precision.value == pytest.approx((3 / 5 + 0) / 2)
    assert macro.f1.value == pytest.approx((2 * 3 / 9 + 0) / 2)
    scores = class_scores(confusion)
    assert scores[1].precision is None
    assert (scores[2].recall, scores[2].f1, scores[2].predicted) == (None, None, 1)


class CountingGenerator(np.random.Generator):
    """Counts the numbers drawn from multinomial distributions."""

    drawn = 0

    def multinomial(self, *args: object, **kwargs: object) -> np.ndarray:
        counts = super().multinomial(*args, **kwargs)
        self.drawn += counts.size
        return counts


def test_the_bootstrap_draws_only_the_cells_that_have_images() -> None:
    generator = CountingGenerator(np.random.PCG64(0))
    confusion = report(some_logits(10_000, 500)).confusion
    scores = macro_scores(confusion, generator)
    assert scores.f1.low <= scores.f1.value <= scores.f1.high
    # 1,000 draws; all cells would be 25 times as many.
    assert generator.drawn == 1000 * np.count_nonzero(confusion)
    assert np.count_nonzero(confusion) <= 10_000


def test_the_most_confused_pairs_are_the_largest_cells_beside_the_diagonal() -> None:
    confusion = np.array([[90, 7, 3], [0, 50, 0], [9, 1, 10]])
    pairs = most_confused(confusion, 3)
    assert [(pair.true, pair.predicted, pair.count) for pair in pairs] == [(2, 0, 9), (0, 1, 7), (0, 2, 3)]
    assert pairs[0].share == pytest.approx(9 / 20)
    assert len(most_confused(confusion, 99)) == 4
    assert most_confused(np.eye(3, dtype=np.int64), 5) == []


def test_the_worst_mistake_has_the_largest_loss_and_correct_predictions_are_left_out() -> None:
    logits = torch.tensor([[9.0, 0, 0], [0, 2, 0], [500, 0, 1], [600, 0, 2], [0, 0, 1]])
    labelled = LabelledLogits(logits, torch.tensor([0, 0, 1, 1, 2]))
    mistakes = worst_mistakes(labelled, 10)
    # The first two both have a probability of 1 in float32; their losses still differ.
    assert [each.index for each in mistakes] == [3, 2, 1]
    assert (mistakes[2].true, mistakes[2].predicted) == (0, 1)
    e2 = float(np.exp(2))
    assert mistakes[2].probability == pytest.approx(e2 / (2 + e2))
    assert mistakes[2].true_probability == pytest.approx(1 / (2 + e2))
    assert len(worst_mistakes(labelled, 1)) == 1

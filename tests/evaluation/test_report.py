import json

import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, log_loss

from tests.support.multi_label import MultiLabel
from tl_cli.contract import Calibration
from tl_cli.evaluation.logits import LabelledLogits
from tl_cli.evaluation.report import as_data, class_rows, headline, make_report
from tl_cli.text import finite


def some_logits(classes: int, count: int = 200) -> LabelledLogits:
    generator = torch.Generator().manual_seed(classes)
    labels = torch.randint(classes, (count,), generator=generator)
    logits = torch.randn(count, classes, generator=generator)
    logits[torch.arange(count), labels] += 1.5
    return LabelledLogits(logits, labels)


def test_the_recorded_metrics_are_scikit_learns_at_the_temperature_of_the_model() -> None:
    labelled = some_logits(7)
    metrics = headline(make_report(labelled, Calibration(temperature=2.0)))
    labels, predicted = labelled.labels.numpy(), labelled.logits.argmax(1).numpy()
    assert metrics["accuracy"] == pytest.approx(accuracy_score(labels, predicted))
    assert metrics["macro_f1"] == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert metrics["loss"] == pytest.approx(log_loss(labels, (labelled.logits / 2).softmax(1).numpy()), rel=1e-5)
    assert metrics["calibration_error"] != metrics["uncalibrated_error"]
    assert set(metrics) == {
        "accuracy", "loss", "macro_precision", "macro_recall", "macro_f1", "top5_accuracy", "calibration_error",
        "uncalibrated_error",
    }  # fmt: skip


def test_without_a_temperature_there_is_one_calibration_error() -> None:
    report = make_report(some_logits(3), Calibration())
    assert "uncalibrated_error" not in headline(report)
    assert "top5_accuracy" not in headline(report)  # three classes only
    assert "uncalibrated" not in as_data(report, ("a", "b", "c"), [str(index) for index in range(200)])["calibration"]


def test_the_json_has_each_estimate_with_its_interval() -> None:
    labelled = some_logits(3)
    ids = [f"{index}.png" for index in range(200)]
    data = json.loads(json.dumps(finite(as_data(make_report(labelled, Calibration()), ("a", "b", "c"), ids))))
    for name in ("accuracy", "loss", "macro_precision", "macro_recall", "macro_f1"):
        assert data[f"{name}_low"] < data[name] < data[f"{name}_high"]
    assert data["confusion"] == confusion_matrix(labelled.labels, labelled.logits.argmax(1)).tolist()
    worst = data["worst_mistakes"][0]
    index = ids.index(worst["id"])
    probabilities = labelled.logits[index].softmax(0).tolist()
    assert worst["true"] == "abc"[labelled.labels[index]]
    assert worst["probability"] == pytest.approx(probabilities["abc".index(worst["predicted"])])
    assert worst["true_probability"] == pytest.approx(probabilities["abc".index(worst["true"])])


def test_a_class_without_images_or_predictions_has_unknown_scores() -> None:
    labelled = LabelledLogits(torch.tensor([[2.0, 0.0, -1.0], [3.0, 0.0, -1.0]]), torch.tensor([0, 1]))
    first, second, third = class_rows(make_report(labelled, Calibration()), ("a", "b", "c"))
    assert (first["recall"], first["precision"]) == (1.0, 0.5)
    assert (second["recall"], second["precision"], second["precision_low"]) == (0.0, None, None)
    assert (third["images"], third["recall"], third["recall_high"], third["f1"]) == (0, None, None, None)


def test_the_matrix_of_very_many_classes_has_only_its_cells_with_images() -> None:
    logits = torch.zeros(3, 1001)
    logits[[0, 1, 2], [5, 5, 1000]] = 9.0
    report = make_report(LabelledLogits(logits, torch.tensor([5, 7, 1000])), Calibration())
    data = as_data(report, [str(index) for index in range(1001)], ["x", "y", "z"])
    assert data["confusion_cells"] == [[5, 5, 1], [7, 5, 1], [1000, 1000, 1]]
    assert "confusion" not in data


def test_a_task_decides_what_is_correct() -> None:
    labels = torch.tensor([[1, 0, 1], [0, 1, 0], [1, 1, 0], [0, 0, 1]])
    logits = torch.where(labels == 1, 2.0, -2.0)
    logits[3] = torch.tensor([2.0, -2.0, 2.0])  # a class too many
    report = make_report(LabelledLogits(logits, labels), Calibration(), MultiLabel())
    assert (report.scores.accuracy.correct, report.scores.accuracy.count) == (3, 4)
    right, wrong = 0.126928, 2.126928  # log(1 + exp(-2)), log(1 + exp(2))
    assert report.scores.loss.value == pytest.approx((11 * right + wrong) / 12, rel=1e-5)
    assert report.mistakes == []

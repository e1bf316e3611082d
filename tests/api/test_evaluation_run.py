"""``evaluate`` gives scikit-learn's numbers for the predictions of the run's own network."""

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from tests.api.conftest import Project, Silent
from tl_cli import EvaluateRequest, PredictRequest, evaluate, predict
from tl_cli.errors import DataError, RunNotFoundError
from tl_cli.evaluation.logits import load_logits
from tl_cli.models import bundle
from tl_cli.models.zoo import registry


def test_the_metrics_are_those_of_scikit_learn(project: Project) -> None:
    run, labels = project.runs[0], project.labels()
    expected = project.probabilities(run, project.list_test_files())
    predicted = expected.argmax(1)
    result = evaluate(EvaluateRequest("first", workers=0, log=False), Silent())
    data = result.to_dict()
    assert (data["split"], data["images"], data["classes"]) == ("test", 18, ["blue", "green", "red"])
    assert result.accuracy == data["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(labels, predicted))
    assert data["loss"] == pytest.approx(sklearn.metrics.log_loss(labels, expected), rel=1e-4)
    assert data["confusion"] == sklearn.metrics.confusion_matrix(labels, predicted).tolist()
    recalls = sklearn.metrics.recall_score(labels, predicted, average=None)
    assert [row["recall"] for row in result.class_rows()] == pytest.approx(recalls.tolist())
    # These are its own test images, so there is no other accuracy to compare with.
    assert result.own is None
    assert "own" not in data


def test_the_gain_of_averaging_mirror_images_is_tested_on_pairs(project: Project) -> None:
    run, labels, files = project.runs[0], project.labels(), project.list_test_files()
    alone = project.probabilities(run, files).argmax(1) == labels
    both = project.probabilities_of_both(run, files)
    data = evaluate(EvaluateRequest("first", workers=0, log=False, tta="flip"), Silent()).to_dict()
    right = both.argmax(1) == labels
    assert data["loss"] == pytest.approx(sklearn.metrics.log_loss(labels, both), rel=1e-4)
    assert data["accuracy"] == right.mean()
    assert data["tta"]["name"] == "flip"
    assert data["tta"]["accuracy_gain"] == pytest.approx(right.mean() - alone.mean())
    changed = int((alone != right).sum())
    p_value = scipy.stats.binomtest(int((right & ~alone).sum()), changed).pvalue if changed else 1
    assert data["tta"]["p_value"] == pytest.approx(p_value)


@pytest.mark.parametrize(
    ("trained", "warns"),
    [
        ({"augment": "flip-shift"}, False),
        ({"augment": "shift"}, True),
        ({"augment": "flip", "feature_views": "plain", "freeze_epochs": 1, "epoch": 1}, True),
        ({"augment": "flip", "feature_views": "plain", "freeze_epochs": 1, "epoch": 2}, False),
    ],
)
def test_mirror_images_that_training_did_not_see_cause_a_warning(
    project: Project, tmp_path: Path, trained: dict[str, object], warns: bool
) -> None:
    classifier, card = registry.restore(project.runs[0].model)
    changed = {"config": {**card.config, **trained}, "epoch": trained.get("epoch", 2)}
    bundle.save(tmp_path / "model", classifier.model, card.model_copy(update=changed))
    observer = Silent()
    evaluate(EvaluateRequest(str(tmp_path / "model"), workers=0, tta="flip"), observer)
    assert any("not trained on mirrored images" in message for message in observer.warnings) is warns
    predictions = predict(
        PredictRequest([str(project.list_test_files()[0])], str(tmp_path / "model"), tta="flip"), other := Silent()
    )
    assert len(list(predictions)) == 1
    assert any("not trained on mirrored images" in message for message in other.warnings) is warns


def test_results_are_written_and_drawn_and_shown_by_the_callers_functions(project: Project, tmp_path: Path) -> None:
    shown: list[float] = []

    def draw(evaluation, folder: Path) -> list[Path]:
        (folder / "drawn.txt").write_text(str(evaluation.accuracy))
        return [folder / "drawn.txt"]

    request = EvaluateRequest("first", split="val", workers=0, output=tmp_path / "out", log=False)
    observer = Silent()
    result = evaluate(request, observer, show=lambda evaluation: shown.append(evaluation.accuracy), draw=draw)
    assert shown == [result.accuracy]
    assert [path.name for path in result.files] == ["report.json", "logits.npz", "drawn.txt"]
    assert json.loads(result.files[0].read_text()) == json.loads(json.dumps(result.to_dict()))
    kept = load_logits(result.files[1])
    assert (kept.labelled.logits.argmax(1) == kept.labelled.labels).float().mean() == pytest.approx(result.accuracy)
    assert any("selected this model's epoch" in message for message in observer.warnings)


def test_other_images_are_matched_by_the_names_of_their_classes(project: Project, tmp_path: Path) -> None:
    for name in ("red", "blue"):
        (tmp_path / "others" / name).mkdir(parents=True)
        for path in (project.pictures / "test" / name).iterdir():
            (tmp_path / "others" / name / path.name).symlink_to(path)
    observer = Silent()
    request = EvaluateRequest("first", data=str(tmp_path / "others"), workers=0, log=False)
    result = evaluate(request, observer)
    files = [path for path in project.list_test_files() if path.parent.name != "green"]
    predicted = project.probabilities(project.runs[0], files).argmax(1)
    labels = [{"blue": 0, "red": 2}[path.parent.name] for path in files]
    assert result.accuracy == pytest.approx(sklearn.metrics.accuracy_score(labels, predicted))
    assert result.to_dict()["missing"] == ["green"]
    assert result.own is not None
    assert result.own.value == pytest.approx(project.runs[0].outcome.test.accuracy.value)
    assert any("has no images of green" in message for message in observer.warnings)


def test_a_notebook_shows_the_accuracy_and_the_classes(project: Project) -> None:
    result = evaluate(EvaluateRequest(str(project.runs[0].model), workers=0), Silent())
    shown = result._repr_html_()
    assert f"accuracy {result.accuracy:.2%}" in shown
    assert shown.count("<tr>") == 1 + 3
    assert np.isfinite(result.accuracy)


def test_requests_that_cannot_be_evaluated_are_refused(project: Project) -> None:
    with pytest.raises(RunNotFoundError):
        evaluate(EvaluateRequest("nothing-of-this-name"))
    with pytest.raises(DataError, match="would be misleading"):
        evaluate(EvaluateRequest("first", split="all"))

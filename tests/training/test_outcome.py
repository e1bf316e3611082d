from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss

from tests.support.training import SMALL, plan_for
from tl_cli.errors import WeightsError
from tl_cli.evaluation.predicting import Predictor
from tl_cli.training.fit import fit
from tl_cli.training.outcome import conclude
from tl_cli.training.plan import Plan, new_state
from tl_cli.training.state import BEST_FOLDER, Counters, Saver


@pytest.fixture(scope="module")
def trained(colours: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, Counters, Path]:
    folder = tmp_path_factory.mktemp("trained")
    plan = plan_for(colours, model=SMALL, epochs=2)
    state = new_state(plan)
    counters = fit(plan, state, Saver(folder, state, plan.card()))
    return plan, counters, folder / BEST_FOLDER


def test_the_test_scores_are_those_of_the_saved_model(trained, colours: Path) -> None:
    plan, counters, best = trained
    outcome = conclude(plan, counters, best, lambda event: None)
    images = plan.data.parts["test"]
    files = [(colours / name).read_bytes() for name in images.ids.tolist()]
    rows, errors = Predictor.load(best).predict(files)
    assert not any(errors)
    assert outcome.test is not None
    assert outcome.test.accuracy.value == accuracy_score(images.labels, rows.argmax(1))
    assert outcome.test.loss.value == pytest.approx(log_loss(images.labels, rows.double(), labels=range(3)), rel=1e-3)


def test_the_gap_is_clean_training_accuracy_less_test_accuracy(trained) -> None:
    outcome = conclude(*trained, lambda event: None)
    assert outcome.clean_train is not None
    assert outcome.test is not None
    assert outcome.clean_train.accuracy.count == len(trained[0].data.parts["train"])
    assert outcome.gap == outcome.clean_train.accuracy.value - outcome.test.accuracy.value


def test_the_model_of_another_epoch_is_refused(trained) -> None:
    plan, counters, best = trained
    other = replace(counters, best_epoch=7)
    with pytest.raises(WeightsError, match="the best one was 7"):
        conclude(plan, other, best, lambda event: None)


def test_images_that_cannot_be_evaluated_do_not_fail_the_run(trained, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, counters, best = trained

    def fail(*_: object) -> torch.Tensor:
        raise RuntimeError("the disk is gone")

    monkeypatch.setattr(type(plan.task), "is_correct", fail)
    outcome = conclude(plan, counters, best, lambda event: None)
    assert (outcome.test, outcome.gap) == (None, None)
    assert outcome.failed == {"train": "the disk is gone", "test": "the disk is gone"}

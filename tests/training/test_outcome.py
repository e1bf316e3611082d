from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss

from tests.support.training import SMALL, plan_for
from tl_cli.contract import SplitName
from tl_cli.errors import WeightsError
from tl_cli.evaluation.predicting import Predictor
from tl_cli.models.zoo import registry
from tl_cli.training.events import EpochEnded, Event, notify_all
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


@pytest.mark.parametrize("feature_cache", [True, False])
def test_a_model_that_averages_mirror_images_is_validated_and_tested_so(
    colours: Path, tmp_path: Path, feature_cache: bool
) -> None:
    plan = plan_for(
        colours, model=SMALL, epochs=2, freeze_epochs=1, augment="flip", tta="flip", feature_cache=feature_cache
    )
    state = new_state(plan)
    saver = Saver(tmp_path, state, plan.card())
    validated: list[float] = []
    counters = fit(plan, state, notify_all(saver, lambda event: validated.extend(_val_losses(event))))
    outcome = conclude(plan, counters, tmp_path / BEST_FOLDER, lambda event: None)
    network = registry.restore(tmp_path / BEST_FOLDER)[0].model  # the network alone, without the augmentation

    def logits(part: SplitName) -> tuple[torch.Tensor, torch.Tensor]:
        (batch,) = plan.loader(plan.data.parts[part]).clean()
        with torch.inference_mode():
            return network(batch.inputs), network(torch.flip(batch.inputs, dims=[3]))

    alone, mirrored = logits("test")
    assert outcome.test_logits is not None
    torch.testing.assert_close(outcome.test_logits.logits, (alone + mirrored) / 2, rtol=1e-3, atol=1e-4)
    labels = plan.data.parts["test"].labels
    gain = accuracy_score(labels, (alone + mirrored).argmax(1)) - accuracy_score(labels, alone.argmax(1))
    assert outcome.tta_gain is not None
    assert outcome.tta_gain.difference.value == pytest.approx(gain)
    mean = torch.stack(logits("val")).mean(0).softmax(1).double()
    assert validated[counters.best_epoch - 1] == pytest.approx(
        log_loss(plan.data.parts["val"].labels, mean, labels=range(3)), rel=1e-2
    )


def _val_losses(event: Event) -> list[float]:
    return [event.val_loss] if isinstance(event, EpochEnded) else []


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

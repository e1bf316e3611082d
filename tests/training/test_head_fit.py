from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from tests.support.training import MODEL, StopError, plan_for, run, state_digest, stopped_and_resumed
from tl_cli.errors import UsageError
from tl_cli.evaluation.task import SINGLE_LABEL
from tl_cli.io.array_cache import Store
from tl_cli.training.cached_features import CachedFeatures, DiskView
from tl_cli.training.config import Given
from tl_cli.training.events import EpochEnded, Event, LossSampled, PhaseStarted, StepEnded, Worked
from tl_cli.training.fit import fit
from tl_cli.training.head_fit import HeadFit, fit_head
from tl_cli.training.plan import new_state, open_phase, prepare
from tl_cli.training.state import Every, Saver

WIDTHS = [6, 2]


def features(count: int, seed: int, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Eight features whose scales differ by a thousand; the last two, which form a group, show the class."""
    rng = np.random.default_rng(seed)
    labels = torch.from_numpy(rng.integers(0, classes, count))
    centres = np.random.default_rng(0).normal(size=(classes, 8)) * np.array([0, 0, 0, 0, 0, 0, 1.5, 1.5])
    values = centres[labels.numpy()] + rng.normal(size=(count, 8))
    return torch.from_numpy(values * np.geomspace(0.03, 30, 8) + 5).float(), labels


def cached(
    views: tuple[torch.Tensor | DiskView, ...], labels: torch.Tensor, *, balanced: bool = False
) -> CachedFeatures:
    return CachedFeatures(views, labels, 32, 256, torch.device("cpu"), balanced=balanced)


def fitted(
    train: CachedFeatures, val: CachedFeatures, weights: torch.Tensor | None = None, smoothing: float = 0.0
) -> tuple[nn.Linear, HeadFit]:
    head = nn.Linear(8, 3)
    return head, fit_head(head, train, val, WIDTHS, SINGLE_LABEL, weights, smoothing)


def scikit_learn(
    views: tuple[torch.Tensor, ...], labels: torch.Tensor, penalty: float, class_weight: dict[int, float] | None = None
) -> np.ndarray:
    """Probabilities for the first view by scikit-learn, of features standardized by hand."""
    rows = torch.cat(views).double().numpy()
    targets = np.tile(labels.numpy(), len(views))
    # Each group has the variance of the mean width, 4: sqrt(4 / 6) for the six, sqrt(4 / 2) for the two.
    factor = np.array([np.sqrt(4 / 6)] * 6 + [np.sqrt(4 / 2)] * 2)
    deviation = rows.std(0)
    for group in (slice(0, 6), slice(6, 8)):
        deviation[group] = np.maximum(deviation[group], 0.3 * np.sqrt(np.mean(deviation[group] ** 2)))
    scaled = (rows - rows.mean(0)) / deviation * factor
    weight = len(rows) if class_weight is None else sum(class_weight[label] for label in targets)
    # scikit-learn's loss is C times the sum of the losses plus half the square of the weights.
    model = LogisticRegression(C=1 / (penalty * weight), class_weight=class_weight, tol=1e-8, max_iter=10_000)
    model.fit(scaled, targets)
    return model.predict_proba(scaled[: len(labels)])


@pytest.mark.parametrize("weighted", [False, True])
def test_the_head_has_the_probabilities_of_scikit_learn(weighted: bool) -> None:
    (plain, labels), (val, val_labels) = features(400, 1), features(200, 2)
    mirrored = plain + 0.1 * torch.randn(plain.shape, generator=torch.Generator().manual_seed(0))
    weights = torch.tensor([1.0, 3.0, 0.5]) if weighted else None
    head, result = fitted(cached((plain, mirrored), labels), cached((val,), val_labels), weights)
    class_weight = dict(enumerate([1.0, 3.0, 0.5])) if weighted else None
    expected = scikit_learn((plain, mirrored), labels, result.penalty, class_weight)
    with torch.no_grad():
        np.testing.assert_allclose(head(plain).softmax(1).numpy(), expected, atol=0.02)


def test_the_penalty_is_the_one_with_the_lowest_held_out_loss() -> None:
    (plain, labels), (val, val_labels) = features(3000, 3), features(400, 4)
    # Labels that are wrong half of the time: only a strong penalty does not learn them by heart.
    noisy = torch.where(torch.rand(3000, generator=torch.Generator().manual_seed(0)) < 0.5, labels, (labels + 1) % 3)
    _, clean = fitted(cached((plain,), labels), cached((val,), val_labels))
    assert not clean.by_folds
    head, result = fitted(cached((plain,), noisy), cached((val,), val_labels))
    assert result.penalty > clean.penalty
    with torch.no_grad():
        held_out = nn.functional.cross_entropy(head(val), val_labels)
    assert result.held_out_loss == pytest.approx(float(held_out), rel=0.02)


def test_few_images_choose_the_penalty_by_folds_that_keep_the_views_of_an_image_together() -> None:
    # Features without any meaning, each image twice: held-out twins of training images would be predicted perfectly.
    noise = torch.randn(120, 8, generator=torch.Generator().manual_seed(0)) * 3
    labels = torch.arange(120) % 3
    _, result = fitted(cached((noise, noise.clone()), labels), cached((noise[:6],), labels[:6]))
    assert result.by_folds
    # Nothing can be learned: the strongest penalty, and the loss of equal probabilities.
    assert result.penalty >= 0.3
    assert result.held_out_loss == pytest.approx(np.log(3), abs=0.05)


def test_a_feature_that_hardly_varied_in_training_cannot_dominate() -> None:
    (plain, labels), (val, val_labels) = features(400, 5), features(200, 6)
    plain, val = plain / plain.std(0), val / plain.std(0)
    plain[:, 0] = 1e-3 * plain[:, 6]
    head, _ = fitted(cached((plain,), labels), cached((val,), val_labels))
    other = val.clone()
    other[:, 0] = 1.0  # a thousand times its deviation in training
    with torch.no_grad():
        before, after = (head(each).argmax(1) == val_labels for each in (val, other))
    assert after.float().mean() > before.float().mean() - 0.1


def test_a_constant_feature_has_no_weight() -> None:
    (plain, labels), (val, val_labels) = features(400, 7), features(200, 8)
    plain[:, 2] = 4.0
    head, _ = fitted(cached((plain,), labels), cached((val,), val_labels))
    assert head.weight[:, 2].abs().max() < 1e-4 * head.weight.abs().max()


def test_features_on_the_disk_give_the_same_head(tmp_path: Path) -> None:
    (plain, labels), (val, val_labels) = features(300, 9), features(100, 10)
    half = plain.half()
    store = Store(tmp_path, 1 << 30, 0.5, lambda path: None)
    rows = store.find_or_make("key", tuple(half.shape), np.dtype(np.float16), iter([half.numpy()]))
    on_disk = cached((DiskView(rows, lambda: rows),), labels)
    one, _ = fitted(on_disk, cached((val,), val_labels))
    other, _ = fitted(cached((half,), labels), cached((val,), val_labels))
    torch.testing.assert_close(one.weight, other.weight)


def test_the_loss_of_fine_tuning_is_minimized_with_its_smoothing() -> None:
    (plain, labels), (val, val_labels) = features(2500, 11), features(300, 12)
    train, held_out = cached((plain,), labels), cached((val,), val_labels)
    smoothed, sharp = (fitted(train, held_out, smoothing=smoothing) for smoothing in (0.1, 0.0))
    losses = [nn.functional.cross_entropy(head(plain), labels, label_smoothing=0.1) for head, _ in (smoothed, sharp)]
    assert losses[0] < losses[1] - 0.001
    # What is reported is comparable with the loss of validation images: without smoothing.
    assert smoothed[1].loss == pytest.approx(float(nn.functional.cross_entropy(smoothed[0](plain), labels)), rel=1e-3)


SETTINGS = {"head_fit": "logistic", "freeze_epochs": 1, "log_every": 1, "lr": None}


def test_the_regression_is_one_step_of_a_run(colours: Path) -> None:
    plan = plan_for(colours, epochs=2, **SETTINGS)
    events, state = run(plan)
    first, second = (event for event in events if isinstance(event, PhaseStarted))
    assert (first.name, first.steps, first.cached, second.step) == ("head", 1, True, 1)
    assert [event.step for event in events if isinstance(event, StepEnded)][:2] == [1, 2]
    (loss, *_), (epoch, *_) = (
        [event for event in events if isinstance(event, kind)] for kind in (LossSampled, EpochEnded)
    )
    assert (loss.step, loss.lr_head, epoch.step, epoch.lr_head) == (1, 0.0, 1, 0.0)
    assert epoch.train_loss == pytest.approx(loss.loss, rel=1e-5)
    assert any(isinstance(event, Worked) and event.activity == "fitting the head" for event in events)
    assert state.counters.epoch == 2


def test_all_views_of_an_image_are_fitted_in_the_one_epoch(colours: Path) -> None:
    plan = plan_for(colours, epochs=1, augment="flip", **SETTINGS)
    assert plan.cached[1].views == ("plain", "mirrored")


def test_the_average_begins_with_the_fitted_head(colours: Path) -> None:
    plan = plan_for(colours, epochs=1, ema=0.9, **SETTINGS)
    events, state = run(plan)
    (ended,) = (event for event in events if isinstance(event, EpochEnded))
    assert ended.ema_val_loss == pytest.approx(ended.val_loss, rel=1e-6)


def test_classes_of_a_balanced_sampler_count_the_same(colours: Path) -> None:
    heads = []
    for options in ({"sampler": "balanced"}, {"class_weights": "balanced"}):
        plan = plan_for(colours, epochs=1, **SETTINGS, **options)
        run(plan)
        heads.append(plan.classifier.head_modules[0].weight.detach().clone())
    torch.testing.assert_close(heads[0], heads[1])


def test_a_weight_of_three_is_an_image_three_times_with_smoothing_too() -> None:
    (plain, labels), (val, val_labels) = features(2400, 13), features(300, 14)
    head, result = fitted(cached((plain,), labels), cached((val,), val_labels), torch.tensor([1.0, 3.0, 1.0]), 0.1)
    again = torch.cat([torch.arange(2400), *[torch.nonzero(labels == 1).flatten()] * 2])
    # Standardized as before: scikit-learn has no smoothing, so a second network of torch's own does it.
    scaled = (plain - plain.mean(0)) / plain.std(0)
    weight, bias = torch.zeros(8, 3, requires_grad=True), torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=500, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        logits = scaled[again] @ weight + bias
        loss = nn.functional.cross_entropy(logits, labels[again], label_smoothing=0.1)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert result.penalty < 0.01
    with torch.no_grad():
        expected = (scaled @ weight + bias).softmax(1)
        assert (head(plain).softmax(1) - expected).abs().mean() < 0.02


def test_rare_classes_do_not_spoil_the_frequent_ones() -> None:
    """torch's own weighted and smoothed loss predicts the rare class for nearly every image."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.cat([torch.zeros(1500), torch.ones(50)]).long()
    plain = torch.randn(1550, 8, generator=generator)
    plain[:, 7] += 6.0 * labels
    head = nn.Linear(8, 2)
    weights = SINGLE_LABEL.balanced_weights(labels, 2)
    fit_head(head, cached((plain,), labels), cached((plain[::10],), labels[::10]), WIDTHS, SINGLE_LABEL, weights, 0.1)
    with torch.no_grad():
        correct = head(plain).argmax(1) == labels
    assert correct[:1500].float().mean() > 0.95
    assert correct[1500:].float().mean() > 0.95


@pytest.mark.parametrize(("options", "message"), [
    ({"freeze_epochs": 3}, "--head-fit logistic is one frozen epoch"),
    ({"feature_cache": False}, "--head-fit logistic needs a linear head on cached features"),
    ({"freeze_epochs": 0}, "--head-fit has no effect without frozen epochs"),
    ({"lr": 0.1}, "--lr has no effect on a head by logistic regression"),
    ({"model": "squeezenet1_1", "input_size": 64}, "needs a linear head"),
])  # fmt: skip
def test_what_a_regression_cannot_do_is_refused(colours: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan_for(colours, **{"epochs": 4, **SETTINGS, **options})


def test_an_opened_phase_fits_only_a_head(colours: Path) -> None:
    plan = plan_for(colours, epochs=2, **SETTINGS)
    head, tune = (open_phase(plan, phase, lambda event: None) for phase in plan.phases)
    assert (head.fit_head is not None, tune.fit_head) == (True, None)


def test_a_resumed_run_ends_with_the_same_weights(colours: Path, tmp_path: Path) -> None:
    settings = SETTINGS | {"epochs": 3}
    _, whole = run(plan_for(colours, **settings))
    later, resumed = stopped_and_resumed(colours, tmp_path, stop_after=1, **settings)
    assert not any(isinstance(event, Worked) and event.activity == "fitting the head" for event in later)
    assert state_digest(resumed) == state_digest(whole)


def test_a_run_stopped_after_the_regression_does_not_repeat_it(colours: Path, tmp_path: Path) -> None:
    settings = SETTINGS | {"epochs": 2}
    _, whole = run(plan_for(colours, **settings))
    plan = plan_for(colours, **settings)
    state = new_state(plan)
    saver = Saver(tmp_path, state, plan.card(), Every(steps=1))

    def stop(event: Event) -> None:
        saver(event)
        if isinstance(event, StepEnded):
            raise StopError  # after the checkpoint of the step, before its epoch has ended

    with pytest.raises(StopError):
        fit(plan, state, stop)
    again = new_state(resumed := plan_for(colours, **settings))
    assert again.restore(tmp_path) == []
    assert again.step == 1
    later: list[Event] = []
    fit(resumed, again, later.append)
    assert not any(isinstance(event, Worked) and event.activity == "fitting the head" for event in later)
    assert state_digest(again) == state_digest(whole)


def test_the_command_that_continues_a_run_needs_no_frozen_epoch(colours: Path) -> None:
    recorded = {"model": MODEL, "weights": "none", "data": str(colours), "input_size": 32, "head_fit": "logistic"}
    plan = prepare(Given.of({"freeze_epochs": 0, "epochs": 1, "lr": 0.01, "workers": 0}, recorded))
    assert [phase.name for phase in plan.phases] == ["fine-tune"]

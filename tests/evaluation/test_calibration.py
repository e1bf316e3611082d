import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from scipy.stats import binom

from tl_cli.evaluation.calibration import fit_temperature, reliability
from tl_cli.evaluation.logits import LabelledLogits


def calibrated_logits(count: int, seed: int = 0) -> LabelledLogits:
    """Return logits with labels drawn from their probabilities, so that the logits are calibrated."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(count, 4, generator=generator)
    return LabelledLogits(logits, torch.multinomial(logits.softmax(1), 1, generator=generator).flatten())


def test_the_calibration_error_of_four_images_by_hand() -> None:
    # Two classes; confidence 0.9 twice, once right; and, in one bin, 0.58 (right) and 0.55 (wrong).
    confidence = torch.tensor([0.9, 0.9, 0.58, 0.55], dtype=torch.float64)
    logits = torch.stack([confidence.log(), (1 - confidence).log()], 1).float()
    calibration = reliability(LabelledLogits(logits, torch.tensor([0, 1, 0, 1])))
    lower, upper = calibration.bins
    assert (lower.count, lower.correct, upper.count, upper.correct) == (2, 1, 2, 1)
    assert lower.confidence == pytest.approx(0.565)
    assert lower.low == pytest.approx(8 / 15)
    assert lower.high == pytest.approx(9 / 15)
    assert calibration.ece == pytest.approx(0.5 * abs(0.5 - 0.9) + 0.5 * abs(0.5 - 0.565))


def test_the_calibration_error_agrees_with_a_plain_loop() -> None:
    labelled = calibrated_logits(500)
    probabilities = labelled.logits.double().softmax(1)
    confidence, predicted = probabilities.max(1)
    error = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence > low) & (confidence <= low + 1 / 15)
        if inside.any():
            right = (predicted == labelled.labels)[inside].double().mean()
            error += float(inside.double().mean() * (right - confidence[inside].mean()).abs())
    assert reliability(labelled).ece == pytest.approx(error)


def test_only_an_uncalibrated_model_exceeds_the_error_expected_from_sampling_noise() -> None:
    labelled = calibrated_logits(4000)
    good = reliability(labelled)
    assert good.ece < 2 * good.chance_ece
    bad = reliability(LabelledLogits(3 * labelled.logits, labelled.labels))
    assert bad.ece > 5 * bad.chance_ece
    assert reliability(calibrated_logits(100)).chance_ece > 3 * good.chance_ece


def grid_search(labelled: LabelledLogits) -> tuple[float, float]:
    """Return the best of many temperatures, and its loss."""
    candidates = np.geomspace(0.1, 10, 4001)
    losses = [float(F.cross_entropy(labelled.logits.double() / each, labelled.labels)) for each in candidates]
    return float(candidates[np.argmin(losses)]), min(losses)


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_the_temperature_undoes_a_scale(scale: float) -> None:
    labelled = calibrated_logits(20_000)
    fitted = fit_temperature(LabelledLogits(scale * labelled.logits, labelled.labels))
    assert fitted.temperature == pytest.approx(scale, rel=0.06)
    assert fitted.note == ""


def test_no_other_temperature_has_a_lower_loss() -> None:
    labelled = calibrated_logits(300)
    labelled = LabelledLogits(1.7 * labelled.logits, labelled.labels)
    fitted = fit_temperature(labelled)
    best, lowest = grid_search(labelled)
    assert fitted.temperature == pytest.approx(best, rel=2e-3)
    raw = float(F.cross_entropy(labelled.logits.double(), labelled.labels))
    assert (fitted.images, fitted.loss) == (300, pytest.approx(raw))
    # On images that the temperature was not fitted on, the loss falls less than on the fitted ones.
    assert lowest < fitted.held_out_loss < raw


@pytest.mark.slow
def test_a_temperature_is_used_only_if_it_helps_on_other_images() -> None:
    others = calibrated_logits(20_000, seed=999)

    def change(count: int, scale: float, seed: int) -> tuple[bool, float]:
        """Return whether a temperature is used, and the change of the loss on other images, in nats."""
        labelled = calibrated_logits(count, seed)
        fitted = fit_temperature(LabelledLogits(scale * labelled.logits, labelled.labels))
        with_it = F.cross_entropy(others.logits * scale / fitted.temperature, others.labels)
        return fitted.temperature != 1, float(with_it - F.cross_entropy(others.logits * scale, others.labels))

    for count in (30, 100):
        calibrated = [change(count, 1.0, seed) for seed in range(60)]
        # One in a thousand such series of a 5% test would be above this.
        assert sum(is_used for is_used, _ in calibrated) <= binom.ppf(0.999, 60, 0.05)
        too_sure = [change(count, 3.0, seed) for seed in range(30)]
        assert sum(loss for _, loss in too_sure) < 0
        # Most of the used temperatures help.
        assert sum(is_used and loss > 0 for is_used, loss in too_sure) <= sum(loss < 0 for _, loss in too_sure) / 5
    # Without the significance test, a temperature for every model would be worse than none.
    always = [grid_search(calibrated_logits(30, seed))[0] for seed in range(20)]
    assert np.mean([F.cross_entropy(others.logits / each, others.labels) for each in always]) > F.cross_entropy(
        others.logits, others.labels
    )


def test_a_temperature_is_fitted_without_images_of_a_class() -> None:
    labelled = calibrated_logits(2000)
    present = labelled.labels != 3
    fitted = fit_temperature(LabelledLogits(4 * labelled.logits[present], labelled.labels[present]))
    assert fitted.images == int(present.sum())
    assert fitted.temperature == pytest.approx(
        grid_search(LabelledLogits(4 * labelled.logits[present], labelled.labels[present]))[0], rel=2e-3
    )


@pytest.mark.parametrize("count", [1, 2, 3, 29])
def test_few_images_fit_no_temperature(count: int) -> None:
    labelled = calibrated_logits(count)
    fitted = fit_temperature(LabelledLogits(9 * labelled.logits, labelled.labels))
    assert (fitted.temperature, fitted.images) == (1.0, count)
    assert fitted.note == f"{count} validation images are too few; 30 are needed"


def test_images_without_a_mistake_fit_no_temperature() -> None:
    logits = torch.eye(3).repeat(15, 1)
    fitted = fit_temperature(LabelledLogits(logits, logits.argmax(1)))
    assert fitted.temperature == 1.0
    assert "all 45 validation images" in fitted.note


def test_random_logits_become_uniform_probabilities() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(500, 4, generator=generator), torch.randint(0, 4, (500,), generator=generator)
    fitted = fit_temperature(LabelledLogits(45 * logits, labels))
    assert fitted.loss > 30
    assert float(F.cross_entropy(45 * logits / fitted.temperature, labels)) == pytest.approx(math.log(4), abs=0.1)


def test_equal_logits_fit_no_temperature() -> None:
    fitted = fit_temperature(LabelledLogits(torch.zeros(60, 3), torch.arange(60) % 3))
    assert fitted.temperature == 1.0
    assert "by more than noise" in fitted.note

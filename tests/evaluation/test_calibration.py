from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from tl_cli.contract import Split
from tl_cli.errors import WeightsError
from tl_cli.evaluation import calibration
from tl_cli.evaluation.calibration import Calibration, fit_temperature, mean_loss, reliability
from tl_cli.evaluation.logits import Answers


def calibrated_answers(count: int, seed: int = 0) -> Answers:
    """Labels that are drawn from the probabilities themselves."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(count, 4, generator=generator)
    return Answers(logits, torch.multinomial(logits.softmax(1), 1, generator=generator).flatten())


def test_the_calibration_error_of_four_images_by_hand() -> None:
    # Two classes; 0.9 twice, once right, and in one bin 0.58, right, and 0.55, wrong.
    confidence = torch.tensor([0.9, 0.9, 0.58, 0.55], dtype=torch.float64)
    logits = torch.stack([confidence.log(), (1 - confidence).log()], 1).float()
    found = reliability(Answers(logits, torch.tensor([0, 1, 0, 1])))
    lower, upper = found.bins
    assert (lower.count, lower.correct, upper.count, upper.correct) == (2, 1, 2, 1)
    assert lower.confidence == pytest.approx(0.565)
    assert lower.low == pytest.approx(8 / 15)
    assert lower.high == pytest.approx(9 / 15)
    assert found.ece == pytest.approx(0.5 * abs(0.5 - 0.9) + 0.5 * abs(0.5 - 0.565))


def test_the_calibration_error_agrees_with_a_plain_loop() -> None:
    answers = calibrated_answers(500)
    probabilities = answers.logits.double().softmax(1)
    confidence, predicted = probabilities.max(1)
    error = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence > low) & (confidence <= low + 1 / 15)
        if inside.any():
            right = (predicted == answers.labels)[inside].double().mean()
            error += float(inside.double().mean() * (right - confidence[inside].mean()).abs())
    assert reliability(answers).ece == pytest.approx(error)


def test_what_is_calibrated_errs_by_chance_alone_and_what_is_not_errs_by_more() -> None:
    answers = calibrated_answers(4000)
    good = reliability(answers)
    assert good.ece < 2 * good.chance_ece
    bad = reliability(Answers(3 * answers.logits, answers.labels))
    assert bad.ece > 5 * bad.chance_ece
    assert reliability(calibrated_answers(100)).chance_ece > 3 * good.chance_ece


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_a_scale(scale: float) -> None:
    answers = calibrated_answers(20_000)
    temperature, note = fit_temperature(Answers(scale * answers.logits, answers.labels))
    assert temperature == pytest.approx(scale, rel=0.04)
    assert note == ""


def test_no_other_temperature_has_a_lower_loss() -> None:
    answers = Answers(1.7 * calibrated_answers(300).logits, calibrated_answers(300).labels)
    temperature, _ = fit_temperature(answers)
    losses = [float(F.cross_entropy(answers.logits.double() / t, answers.labels)) for t in np.linspace(0.2, 9, 2000)]
    assert mean_loss(answers, temperature) <= min(losses) + 1e-9
    assert mean_loss(answers) == pytest.approx(float(F.cross_entropy(answers.logits, answers.labels)), rel=1e-5)


def test_images_without_a_mistake_say_nothing_of_how_sure_to_be() -> None:
    logits = torch.eye(3).repeat(5, 1)
    temperature, note = fit_temperature(Answers(logits, logits.argmax(1)))
    assert temperature == 1.0
    assert "all 15 validation images" in note


def test_a_temperature_at_the_edge_of_what_is_looked_at_is_none() -> None:
    generator = torch.Generator().manual_seed(0)
    random = Answers(5 * torch.randn(500, 4, generator=generator), torch.randint(0, 4, (500,), generator=generator))
    temperature, note = fit_temperature(Answers(9 * random.logits, random.labels))
    assert temperature == 1.0
    assert "outside 0.1 to 10" in note


def test_a_kept_temperature_is_for_its_weights_alone(tmp_path: Path) -> None:
    path = tmp_path / calibration.FILE
    assert calibration.read(path, "abc") is None
    kept = Calibration(
        temperature=1.3, weights_sha256="abc", source="x", split=Split(count=3, digest="d"), loss=1, calibrated_loss=0.9
    )
    path.write_text(kept.model_dump_json())
    assert calibration.read(path, "abc") == kept
    assert calibration.read(path, "other") is None
    path.write_text(kept.model_dump_json().replace("1.3", "-1"))
    with pytest.raises(WeightsError, match="temperature"):
        calibration.read(path, "abc")

import pytest
from pydantic import ValidationError

from tl_cli.contract import Calibration, ModelCard, Preprocessing, problems_in

CARD = {
    "architecture": "resnet18",
    "head": ["fc"],
    "classes": ["cat", "dog"],
    "preprocessing": {"resize": 256, "crop": 224},
    "weights": {"name": "none"},
    "data": {"source": "/photos", "layout": "classes"},
    "recipe": "default",
    "epoch": 3,
}


def test_a_card_is_restored_from_json_and_ignores_fields_of_newer_versions() -> None:
    card = ModelCard.model_validate({**CARD, "field_of_the_future": 1})
    assert ModelCard.model_validate_json(card.model_dump_json()) == card
    assert card.calibration.temperature == 1


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"classes": ["cat", "cat"]}, "occurs more than once"),
        ({"classes": []}, "classes"),
        ({"config": {"seed": -1}}, "seed must be a number"),
        ({"val_accuracy": 1.5}, "val_accuracy is 1.5"),
        ({"format": 3}, "format is 3"),
    ],
)
def test_errors_in_a_card_are_named(changes: dict[str, object], problem: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ModelCard.model_validate(CARD | changes)
    assert problem in problems_in(caught.value)


def test_a_missing_field_is_named() -> None:
    with pytest.raises(ValidationError) as caught:
        ModelCard.model_validate({key: value for key, value in CARD.items() if key != "architecture"})
    assert problems_in(caught.value) == "architecture is missing"


def test_the_margin_around_the_crop_scales_with_the_input() -> None:
    own = Preprocessing(resize=256, crop=224)
    assert (own.at(112, whole=False).resize, own.at(112, whole=False).crop) == (128, 112)
    assert own.at(112, whole=True).resize == 112
    squashed = own.at(112, whole=False, crop_mode="squash")
    assert (squashed.resize, squashed.crop_mode) == (112, "squash")


def test_a_temperature_is_positive() -> None:
    with pytest.raises(ValidationError):
        Calibration(temperature=0.0)

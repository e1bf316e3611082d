from pathlib import Path

import pytest

from tl_cli.contract import DataSpec, ModelCard, Preprocessing, WeightsTag
from tl_cli.data.dataset import LabelledData
from tl_cli.evaluation.measure import _class_indices


def class_indices(of_model: tuple[str, ...], of_data: tuple[str, ...]) -> list[int]:
    spec = DataSpec(source=str(Path("photos")), layout="classes")
    card = ModelCard(
        architecture="resnet18", head=("fc",), classes=of_model, preprocessing=Preprocessing(resize=32, crop=32),
        weights=WeightsTag(name="none"), data=spec, recipe="default", epoch=1,
    )  # fmt: skip
    return _class_indices(LabelledData(of_data, {}, spec), card).tolist()


@pytest.mark.parametrize(
    ("of_model", "of_data", "expected"),
    [
        (("cat", "dog"), ("dog",), [1]),
        (("caf\u00e9", "dog"), ("cafe\u0301", "dog"), [0, 1]),
        (("red cat", "dog"), ("dog\u00a0", "red\u00a0cat"), [1, 0]),
        (("0", "1"), ("0.0", "1.0"), [0, 1]),
        # An older model may have both spellings.
        (("0", "0.0", "1"), ("0.0", "1"), [1, 2]),
    ],
)
def test_classes_are_matched_by_name_in_any_spelling(of_model, of_data, expected: list[int]) -> None:
    assert class_indices(of_model, of_data) == expected


@pytest.mark.parametrize(("of_model", "of_data"), [(("Cat", "dog"), ("cat",)), (("0", "0.0", "x"), ("00",))])
def test_ambiguous_class_names_are_not_matched(of_model, of_data) -> None:
    assert class_indices(of_model, of_data) == [-1]

import pytest

from tl_cli.data.sources.split_names import is_wrapper, looks_divided, meaning, part_named, parts_among, settled


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("train", "train"),
        ("Training set", "train"),
        ("val2017", "val"),
        ("testset", "test"),
        ("Entraînement", "train"),
        ("测试集", "test"),
        ("holdout", "unclear"),
        ("test_tube", None),
        ("bus", None),
    ],
)
def test_the_name_of_a_part_is_recognized_in_several_languages(name: str, part: str | None) -> None:
    assert meaning(name) == part
    assert part_named(name) == (None if part == "unclear" else part)


def test_classes_whose_names_contain_words_for_parts_are_not_parts() -> None:
    assert parts_among(["train", "bus"]) == {}
    assert parts_among(["training_shoes", "test_tube"]) == {}
    assert parts_among(["seg_train", "seg_test"]) == {"seg_train": "train", "seg_test": "test"}


def test_an_unclear_part_is_the_one_that_is_missing() -> None:
    assert settled({"train": "train", "val": "val", "eval": "unclear"})["eval"] == "test"
    assert settled({"train": "train", "eval": "unclear"})["eval"] == "unclear"


def test_numbered_names_are_like_splits_and_wrapper_words_are_ignored() -> None:
    assert looks_divided(["fold1", "fold2"]) == ["fold1", "fold2"]
    assert looks_divided(["cat", "dog"]) == []
    assert is_wrapper("images", "train")
    assert is_wrapper("seg_train", "train")
    assert not is_wrapper("cats", "train")

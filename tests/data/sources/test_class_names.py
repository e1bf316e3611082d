import unicodedata
from pathlib import Path

import pytest

from tl_cli.data.sources.class_names import keys, lookalikes, merged, unify
from tl_cli.data.sources.found import Faults

COMPOSED = unicodedata.normalize("NFC", "café")
DECOMPOSED = unicodedata.normalize("NFD", "café")


def test_unicode_forms_and_invisible_characters_do_not_make_two_classes() -> None:
    names = {COMPOSED: 2, DECOMPOSED: 1, "tea": 3, "tea\u200b": 1, "A": 1, "A-": 1}
    classes, (note,) = merged(names)
    assert classes[DECOMPOSED] == classes[COMPOSED] == COMPOSED
    assert classes["tea\u200b"] == "tea"
    assert (classes["A"], classes["A-"]) == ("A", "A-")
    assert "1 image)" in note
    assert "3 images)" in note


@pytest.mark.parametrize(
    ("names", "equal"), [(("0", "0.0", "00"), True), (("1", "-1"), False), (("1", "1.0", "one"), False)]
)
def test_numbers_are_compared_by_value_where_all_names_are_numbers(names: tuple[str, ...], equal: bool) -> None:
    assert (len(set(keys(names).values())) == 1) == equal


def test_words_that_differ_in_case_are_a_fault_and_letters_a_note() -> None:
    fault, note = lookalikes({"Cat": 2, "cat": 1, "a": 1, "A": 1, "dog_house": 1, "dog house": 4})
    assert "'Cat' (2 images) and 'cat' (1 image)" in fault
    assert "'dog house' (4 images) and 'dog_house' (1 image)" in fault
    assert "'A' (1 image) and 'a' (1 image)" in note
    assert lookalikes({"cat": 1, "dog": 1}) == ("", "")


def test_merged_names_are_compared_and_faults_name_the_source() -> None:
    faults = Faults(lenient=True)
    classes, notes = unify({"1": 2, "1.0": 1, "2": 3}, Path("labels.csv"), faults)
    assert (classes, faults.named) == ({"1": "1", "1.0": "1", "2": "2"}, [])
    assert notes == ["read as one class: '1' (2 images) and '1.0' (1 image)"]
    unify({"Cat": 1, "cat": 1}, Path("labels.csv"), faults)
    assert faults.named[0].startswith("in labels.csv there are classes that differ only in case")

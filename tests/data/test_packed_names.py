import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tl_cli.data.packed_names import Names

# Surrogates represent the bytes of file names that are not UTF-8.
TEXT = st.text(st.characters(exclude_categories=()), max_size=6)


@pytest.mark.slow
@given(st.lists(TEXT, max_size=30))
def test_names_are_unchanged_and_sorted_as_text(texts: list[str]) -> None:
    names = Names.of(iter(texts))
    assert names.tolist() == list(names) == texts
    assert len(names) == len(texts)
    assert [names[index] for index in range(len(texts))] == texts
    assert names.order().tolist() == sorted(range(len(texts)), key=texts.__getitem__)


@given(st.lists(TEXT, min_size=1, max_size=30), st.data())
def test_selections_equal_those_of_an_array(texts: list[str], data: st.DataObject) -> None:
    places = np.array(data.draw(st.lists(st.integers(0, len(texts) - 1), max_size=40)), dtype=np.int64)
    chosen = Names.of(texts).take(places)
    assert chosen.tolist() == [texts[index] for index in places]
    is_even = np.arange(len(places)) % 2 == 0
    assert chosen.take(is_even).tolist() == [texts[index] for index in places[::2]]
    assert chosen == Names.of(chosen)
    assert chosen != Names.of([*chosen, "x"])


@given(st.lists(st.lists(TEXT, max_size=5), min_size=1, max_size=5))
def test_joined_names_follow_one_another(several: list[list[str]]) -> None:
    parts = [Names.of(texts).take(np.arange(len(texts))[::-1]) for texts in several]
    assert Names.joined(parts).tolist() == [text for texts in several for text in reversed(texts)]


def test_a_file_name_that_is_not_text_keeps_its_bytes() -> None:
    name = os.fsdecode(b"caf\xe9.png")
    assert os.fsencode(Names.of([name])[0]) == b"caf\xe9.png"


def test_many_names_need_little_more_memory_than_their_bytes() -> None:
    names = Names.of(f"class/{n:06d}.jpg" for n in range(10_000))
    assert len(names.text) + names.starts.nbytes + names.ends.nbytes < 10_000 * (16 + 16 + 1)
    assert names.take(np.arange(5)).text is names.text
    assert names[9_999] == "class/009999.jpg"

from pathlib import Path

import pytest
from pydantic import TypeAdapter

from tests.support.pictures import COLOURS, write_pictures
from tl_cli.data.images import FileImages
from tl_cli.data.sources.folder import scan
from tl_cli.data.stored_results import result_path, stored_result
from tl_cli.data.threads import ONE_THREAD

NUMBERS: TypeAdapter[list[int]] = TypeAdapter(list[int])


@pytest.fixture
def images(tmp_path: Path) -> FileImages:
    write_pictures(tmp_path / "data", COLOURS, 2)
    files = scan(tmp_path / "data").parts["train"]
    assert isinstance(files, FileImages)
    return files


class Counter:
    """A computation whose results differ from call to call."""

    def __init__(self, *, may_store: bool = True) -> None:
        self.calls, self.may_store = 0, may_store

    def __call__(self) -> tuple[list[int], bool]:
        self.calls += 1
        return [self.calls], self.may_store


def results(images: FileImages, counter: Counter, what: str = "numbers", *, worth_storing: int = 1) -> list[int]:
    return stored_result(images, what, NUMBERS, counter, ONE_THREAD, worth_storing=worth_storing)


def test_a_result_is_computed_again_only_when_a_file_changes(images: FileImages) -> None:
    counter = Counter()
    assert [results(images, counter) for _ in range(2)] == [[1], [1]]
    (images.root / images.ids[3]).write_bytes(b"changed")
    assert [results(images, counter) for _ in range(2)] == [[2], [2]]


def test_results_of_two_kinds_are_stored_separately(images: FileImages) -> None:
    counter = Counter()
    assert results(images, counter, "one") == [1]
    assert results(images, counter, "two") == [2]
    assert results(images, counter, "one") == [1]


def test_a_result_of_few_images_or_with_temporary_errors_is_not_stored(images: FileImages) -> None:
    counter, passing = Counter(), Counter(may_store=False)
    assert [results(images, counter, worth_storing=7) for _ in range(2)] == [[1], [2]]
    assert [results(images, passing) for _ in range(2)] == [[1], [2]]


def test_a_file_of_another_type_is_ignored_and_replaced(images: FileImages) -> None:
    counter = Counter()
    results(images, counter)
    path = result_path(images, "numbers", ONE_THREAD)
    assert path is not None
    assert path.read_text() == "[1]"
    path.write_text('["a"]')
    assert results(images, counter) == [2]
    assert path.read_text() == "[2]"


def test_images_of_which_one_is_missing_have_no_path(images: FileImages) -> None:
    (images.root / images.ids[0]).unlink()
    assert result_path(images, "numbers", ONE_THREAD) is None
    assert results(images, Counter()) == [1]

import os
from pathlib import Path

import pytest

from tests.conftest import COLOURS, write_pictures
from tl_cli.data.folder import scan
from tl_cli.errors import DataError

TWO = {"b": (9, 9, 200), "a": (200, 9, 9)}


@pytest.mark.parametrize(
    ("parts", "layout"),
    [
        (("train", "test"), "train/test"),
        (("train", "val"), "train/val"),
        (("Train", "valid", "testing"), "train/val/test"),
    ],
)
def test_the_layouts_are_recognised(parts: tuple[str, ...], layout: str, tmp_path: Path) -> None:
    for count, part in enumerate(parts, 2):
        write_pictures(tmp_path / part, TWO, count)
    found = scan(tmp_path)
    assert found.layout == layout
    assert found.classes == ("a", "b")
    assert [len(images) for images in found.parts.values()] == [2 * n for n in range(2, 2 + len(parts))]


def test_labels_follow_names_not_positions(tmp_path: Path) -> None:
    write_pictures(tmp_path / "train", COLOURS, 2)
    write_pictures(tmp_path / "test", {"red": COLOURS["red"]}, 2)
    found = scan(tmp_path)
    assert found.parts["test"].labels.tolist() == [2, 2]
    assert "test/ has no pictures of blue, green" in found.notes[0]


def test_classes_only_is_taken_whole(tmp_path: Path) -> None:
    write_pictures(tmp_path, TWO, 3)
    found = scan(tmp_path)
    assert found.layout == "classes"
    assert list(found.parts["train"].ids) == [f"{c}/{i:03d}.png" for c in "ab" for i in range(3)]


def test_litter_is_passed_over(tmp_path: Path) -> None:
    write_pictures(tmp_path, TWO, 3)
    write_pictures(tmp_path, {".git": (0, 0, 0), ".ipynb_checkpoints": (0, 0, 0), "__MACOSX": (0, 0, 0)}, 1)
    (tmp_path / "a" / "notes.txt").write_text("x")
    (tmp_path / "a" / "._001.png").write_text("x")
    os.symlink(tmp_path / "a", tmp_path / "a" / "loop")
    found = scan(tmp_path)
    assert found.classes == ("a", "b")
    assert len(found.parts["train"]) == 6


def test_endings_of_every_case_and_kind_are_seen(tmp_path: Path) -> None:
    write_pictures(tmp_path, TWO, 1)
    for ending in (".JPG", ".jfif", ".webp", ".tiff"):
        (tmp_path / "a" / f"x{ending}").write_bytes(b"")
    assert len(scan(tmp_path).parts["train"]) == 6


def build_one_class(root: Path) -> None:
    write_pictures(root, {"only": (1, 2, 3)}, 2)


def build_loose(root: Path) -> None:
    write_pictures(root.parent, {root.name: (1, 2, 3)}, 2)


def build_unknown_class(root: Path) -> None:
    write_pictures(root / "train", TWO, 2)
    write_pictures(root / "test", {**TWO, "zebra": (1, 2, 3)}, 2)


def build_empty_class(root: Path) -> None:
    write_pictures(root / "train", TWO, 2)
    write_pictures(root / "test", TWO, 2)
    (root / "train" / "zebra").mkdir()


def build_test_only(root: Path) -> None:
    write_pictures(root / "test", TWO, 2)


def build_one_too_high(root: Path) -> None:
    write_pictures(root / "inner" / "train", TWO, 2)
    write_pictures(root / "inner" / "test", TWO, 2)


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (build_one_class, r"one class only \(only\)"),
        (build_loose, "2 pictures without a class folder"),
        (build_unknown_class, "has classes that train/ has not: zebra"),
        (build_empty_class, "class folders without pictures: zebra"),
        (build_test_only, "has test/ but no train/"),
        (build_one_too_high, r"Did you mean .*inner\?"),
        (lambda root: root.mkdir(exist_ok=True), "holds nothing"),
        (lambda root: root.rmdir(), "no folder at"),
    ],
)
def test_a_wrong_folder_is_told_what_was_found_and_expected(build, said: str, tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    build(root)
    with pytest.raises(DataError, match=said) as raised:
        scan(root)
    assert "expected one of" in str(raised.value) or "zebra" in str(raised.value) or "no folder" in str(raised.value)


def test_unlabelled_test_pictures_are_said(tmp_path: Path) -> None:
    write_pictures(tmp_path / "train", TWO, 2)
    write_pictures(tmp_path, {"test": (1, 2, 3)}, 2)
    with pytest.raises(DataError, match=r"test/ has no class folders; to split the training images, give .*train"):
        scan(tmp_path)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    write_pictures(tmp_path, {"bus": (1, 2, 3), "train": (9, 9, 9)}, 2)
    assert scan(tmp_path).classes == ("bus", "train")


def test_files_that_are_passed_over_are_said(tmp_path: Path) -> None:
    write_pictures(tmp_path, TWO, 2)
    (tmp_path / "a" / "x.HEIC").write_bytes(b"")
    (tmp_path / "a" / ".git").mkdir()
    (tmp_path / "a" / ".git" / "config").write_bytes(b"")
    assert scan(tmp_path).notes == ("1 files are no pictures that can be read: .heic",)


def test_a_class_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    write_pictures(tmp_path, TWO, 2)
    write_pictures(tmp_path, {os.fsdecode(b"caf\xe9"): (1, 2, 3)}, 2)
    with pytest.raises(DataError, match="not valid UTF-8"):
        scan(tmp_path)


def test_pictures_behind_links_and_in_folders_of_folders_are_listed_once_in_order(tmp_path: Path) -> None:
    write_pictures(tmp_path, TWO, 2)
    write_pictures(tmp_path / "a", {"b": (1, 2, 3), "000": (1, 2, 3)}, 1)
    os.symlink(tmp_path / "a" / "b", tmp_path / "a" / "z")
    ids = scan(tmp_path).parts["train"].ids.tolist()
    assert ids[:3] == ["a/000.png", "a/000/000.png", "a/001.png"]
    assert len(ids) == 6
    assert ids[4:] == ["b/000.png", "b/001.png"]


def test_a_link_to_itself_is_no_folder(tmp_path: Path) -> None:
    write_pictures(tmp_path, COLOURS, 3)
    (tmp_path / "red" / "loop").symlink_to("loop")
    assert len(scan(tmp_path).parts["train"]) == 9


def test_a_folder_that_cannot_be_looked_into_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pictures(tmp_path, COLOURS, 2)
    closed = tmp_path / "red" / "closed"
    closed.mkdir()
    look = os.scandir

    # Not by its mode: whoever may do anything may look into any folder.
    def scandir(path):
        if Path(path) == closed:
            raise PermissionError(13, "Permission denied")
        return look(path)

    monkeypatch.setattr(os, "scandir", scandir)
    (note,) = scan(tmp_path).notes
    assert "closed" in note
    assert "Permission denied" in note

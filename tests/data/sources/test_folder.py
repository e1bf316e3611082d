import os
import shlex
from pathlib import Path

import numpy as np
import pytest

from tests.support.pictures import COLOURS, write_pictures
from tl_cli.data.sources.folder import scan
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
def test_the_layouts_are_recognized(parts: tuple[str, ...], layout: str, tmp_path: Path) -> None:
    for count, part in enumerate(parts, 2):
        write_pictures(tmp_path / part, TWO, count)
    scanned = scan(tmp_path)
    assert scanned.layout == layout
    assert scanned.classes == ("a", "b")
    assert [len(images) for images in scanned.parts.values()] == [2 * n for n in range(2, 2 + len(parts))]


def test_labels_follow_names_not_positions(tmp_path: Path) -> None:
    write_pictures(tmp_path / "train", COLOURS, 2)
    write_pictures(tmp_path / "test", {"red": COLOURS["red"]}, 2)
    scanned = scan(tmp_path)
    assert scanned.parts["test"].labels.tolist() == [2, 2]
    assert "test/ has no images of blue, green" in scanned.notes[0]


def test_a_folder_of_classes_is_one_part(tmp_path: Path) -> None:
    write_pictures(tmp_path, TWO, 3)
    scanned = scan(tmp_path)
    assert scanned.layout == "classes"
    assert list(scanned.parts["train"].ids) == [f"{c}/{i:03d}.png" for c in "ab" for i in range(3)]


def test_files_of_other_programs_are_ignored(tmp_path: Path) -> None:
    write_pictures(tmp_path, TWO, 3)
    write_pictures(tmp_path, {".git": (0, 0, 0), ".ipynb_checkpoints": (0, 0, 0), "__MACOSX": (0, 0, 0)}, 1)
    (tmp_path / "a" / "notes.txt").write_text("x")
    (tmp_path / "a" / "._001.png").write_text("x")
    os.symlink(tmp_path / "a", tmp_path / "a" / "loop")
    scanned = scan(tmp_path)
    assert scanned.classes == ("a", "b")
    assert len(scanned.parts["train"]) == 6


def test_a_class_folder_without_images_is_named_with_its_contents(tmp_path: Path) -> None:
    write_pictures(tmp_path, TWO, 3)
    (tmp_path / "c").mkdir()
    for name in ("1.heic", "2.HEIC", "notes.txt"):
        (tmp_path / "c" / name).write_text("x")
    (tmp_path / "d").mkdir()
    with pytest.raises(DataError, match=r"without images: c \(it holds 2 \.heic, 1 \.txt\), d; fill or remove them"):
        scan(tmp_path)


def test_hidden_class_folders_with_images_are_named(tmp_path: Path) -> None:
    write_pictures(tmp_path, {**TWO, ".cats": (9, 9, 9), ".git": (0, 0, 0)}, 3)
    (note,) = scan(tmp_path).notes
    assert note == "hidden folders are no classes and left out: .cats/; rename them if they are"


def test_image_endings_of_any_case_are_recognized(tmp_path: Path) -> None:
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
    ("build", "message"),
    [
        (build_one_class, r"one class only \(only\)"),
        (build_loose, "2 images without a class folder"),
        (build_unknown_class, "has classes that train/ has not: zebra"),
        (build_empty_class, "class folders without images: zebra"),
        (build_test_only, "has test/ but no train/"),
        (build_one_too_high, r"Did you mean .*inner\?"),
        (lambda root: root.mkdir(exist_ok=True), "holds nothing"),
        (lambda root: root.rmdir(), "no folder at"),
    ],
)
def test_the_error_for_a_wrong_folder_names_its_contents_and_the_expected_layout(
    build, message: str, tmp_path: Path
) -> None:
    root = tmp_path / "data"
    root.mkdir()
    build(root)
    with pytest.raises(DataError, match=message) as raised:
        scan(root)
    assert "expected" in str(raised.value) or "zebra" in str(raised.value) or "no folder" in str(raised.value)


def test_unlabelled_test_images_are_an_error(tmp_path: Path) -> None:
    write_pictures(tmp_path / "train", TWO, 2)
    write_pictures(tmp_path, {"test": (1, 2, 3)}, 2)
    with pytest.raises(DataError, match=r"test/ has no class folders; to split the training images, give .*train"):
        scan(tmp_path)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    write_pictures(tmp_path, {"bus": (1, 2, 3), "train": (9, 9, 9)}, 2)
    assert scan(tmp_path).classes == ("bus", "train")


def test_ignored_files_are_noted(tmp_path: Path) -> None:
    write_pictures(tmp_path, TWO, 2)
    (tmp_path / "a" / "x.HEIC").write_bytes(b"")
    (tmp_path / "a" / ".git").mkdir()
    (tmp_path / "a" / ".git" / "config").write_bytes(b"")
    assert scan(tmp_path).notes == ("ignored 1 non-image file: .heic",)


def test_a_class_name_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    write_pictures(tmp_path, TWO, 2)
    write_pictures(tmp_path, {os.fsdecode(b"caf\xe9"): (1, 2, 3)}, 2)
    with pytest.raises(DataError, match="not valid UTF-8"):
        scan(tmp_path)


def test_images_in_nested_and_linked_folders_are_listed_once_in_order(tmp_path: Path) -> None:
    write_pictures(tmp_path, TWO, 2)
    write_pictures(tmp_path / "a", {"b": (1, 2, 3), "000": (1, 2, 3)}, 1)
    os.symlink(tmp_path / "a" / "b", tmp_path / "a" / "z")
    ids = scan(tmp_path).parts["train"].ids.tolist()
    assert ids[:3] == ["a/000.png", "a/000/000.png", "a/001.png"]
    assert len(ids) == 6
    assert ids[4:] == ["b/000.png", "b/001.png"]


def test_an_image_behind_two_links_has_the_id_of_the_first_by_name(tmp_path: Path) -> None:
    build(tmp_path / "elsewhere", "inner", count=1)
    build(tmp_path / "data", "a", "b", count=1)
    for name in ("z", "m", "k", "x"):  # the order in which the file system lists them must not matter
        (tmp_path / "data" / "a" / name).symlink_to(tmp_path / "elsewhere" / "inner")
    assert scan(tmp_path / "data").parts["train"].ids.tolist() == ["a/0.png", "a/k/0.png", "b/0.png"]


def test_a_link_to_itself_is_ignored(tmp_path: Path) -> None:
    write_pictures(tmp_path, COLOURS, 3)
    (tmp_path / "red" / "loop").symlink_to("loop")
    assert len(scan(tmp_path).parts["train"]) == 9


def test_an_unreadable_folder_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pictures(tmp_path, COLOURS, 2)
    closed = tmp_path / "red" / "closed"
    closed.mkdir()
    look = os.scandir

    # Not by its mode, which does not stop the superuser.
    def scandir(path):
        if Path(path) == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return look(path)

    monkeypatch.setattr(os, "scandir", scandir)
    (note,) = scan(tmp_path).notes
    assert "closed" in note
    assert "Permission denied" in note


def build(root: Path, *folders: str, count: int = 2) -> None:
    """Put images into folders; they are not opened by a scan."""
    for name in folders:
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            (root / name / f"{number}.png").write_bytes(b"")


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("training_set", "test_set"),
        ("Training Data", "Test Data"),
        ("TrainSet", "TestSet"),
        ("trainset", "testset"),
        ("train2017", "test2017"),
        ("train/images", "test/images"),
        ("TRAIN", "TEST"),
        ("my_train", "test"),
        ("Trainingsdaten", "Testdaten"),
        ("conjunto de entrenamiento", "conjunto de prueba"),
        ("entra\u00eenement", "test"),
        ("训练集", "测试集"),
        ("学習データ", "テストデータ"),
    ],
)
def test_folders_named_like_parts_are_parts_with_a_note(train: str, test: str, tmp_path: Path) -> None:
    build(tmp_path, f"{train}/a", f"{train}/b", count=3)
    build(tmp_path, f"{test}/a", f"{test}/b", "else/a")
    scanned = scan(tmp_path)
    assert {part: len(images) for part, images in scanned.parts.items()} == {"train": 6, "test": 4}
    assert scanned.classes == ("a", "b")
    notes = " ".join(scanned.notes)
    assert train == "TRAIN" or f"read as parts: train from {train}/, test from {test}/" in notes
    assert "else/ beside" in notes


def test_validation_has_many_names(tmp_path: Path) -> None:
    for number, (train, val) in enumerate(
        (("Train_data", "Validation_data"), ("trn", "vld"), ("train", "dev"), ("train2017", "val2017"))
    ):
        build(tmp_path / str(number), f"{train}/a", f"{train}/b", f"{val}/a", f"{val}/b")
        assert scan(tmp_path / str(number)).layout == "train/val"


@pytest.mark.parametrize(
    ("train", "other", "unclear", "read", "read_as"),
    [
        ("training", "validation", "evaluation", "evaluation", "test"),
        ("train", "test", "eval", "eval", "val"),
        ("my_train", "my_dev", "my_holdout", "my_holdout", "test"),
        ("train", "val", "evaluation/evaluation", "evaluation/evaluation", "test"),
        ("Train", "Test", "Evaluation set/images", "Evaluation set/images", "val"),
    ],
)
def test_an_unclear_part_is_the_one_that_is_missing(train, other, unclear, read, read_as: str, tmp_path: Path) -> None:
    for part, count in ((train, 3), (other, 2), (unclear, 1)):
        build(tmp_path, f"{part}/a", f"{part}/b", count=count)
    scanned = scan(tmp_path)
    clear = {"val": "test", "test": "val"}[read_as]
    assert {part: len(images) for part, images in scanned.parts.items()} == {"train": 6, clear: 4, read_as: 2}
    (note,) = scanned.notes
    assert note.startswith("read as parts: ")
    assert f"{read_as} from {read}/" in note


def test_images_beside_the_class_folders_of_a_part_are_noted(tmp_path: Path) -> None:
    build(tmp_path, "train/images/a", "train/images/b", "test/a", "test/b")
    build(tmp_path, "train/images", count=3)
    build(tmp_path, "test", "train", count=1)
    scanned = scan(tmp_path)
    assert {part: len(images) for part, images in scanned.parts.items()} == {"train": 4, "test": 4}
    top = tmp_path.name
    assert scanned.notes[-1] == (
        "images beside the class folders have no class and are left out: "
        f"1 in {top}/test/, 1 in {top}/train/, 3 in {top}/train/images/"
    )


def test_a_fourth_part_is_left_out_with_a_note(tmp_path: Path) -> None:
    build(tmp_path, *(f"{part}/{name}" for part in ("train", "val", "test", "eval") for name in "ab"))
    scanned = scan(tmp_path)
    assert (scanned.layout, scanned.notes) == (
        "train/val/test",
        ("eval/ beside train/ is no part of these data and left out",),
    )


@pytest.mark.parametrize(
    "folders",
    [
        ("train", "test"),
        ("train", "eval"),
        ("Train Images", "Validation Images"),
        ("fold1", "fold2", "fold3"),
        ("fold1/a", "fold1/b", "fold2/a", "fold2/b"),
        ("fold_1", "fold_2", "test"),
        ("train1", "train2"),
        ("photos_part_1", "photos_part_2"),
        ("trainA", "trainB", "testA", "testB"),
        ("cat_train", "cat_test", "dog_train", "dog_test"),
        ("train/images", "test/images"),
        ("cat/train", "cat/test", "dog/train", "dog/test"),
        ("cat/train", "dog/train"),
        ("train/fold1", "train/fold2", "test/fold1", "test/fold2"),
    ],
)
def test_parts_are_never_read_as_classes(folders: tuple[str, ...], tmp_path: Path) -> None:
    build(tmp_path, *folders)
    with pytest.raises(DataError, match="look(s divided into| like) parts"):
        scan(tmp_path)
    (fault,) = scan(tmp_path, lenient=True).faults
    assert "expected DIR/train/CLASS" in fault


@pytest.mark.parametrize(
    "classes",
    [
        ("bus", "car", "train"),
        ("test_tube", "training_shoes"),
        ("bus", "test_tube", "train", "training shoes"),
        ("invalid", "valid"),
        ("bullet train", "steam train"),
        ("1", "2", "3"),
        ("split pea", "test"),
        ("part a", "part b"),
        ("red panda", "data center"),
    ],
)
def test_classes_whose_names_contain_parts_are_classes(classes: tuple[str, ...], tmp_path: Path) -> None:
    build(tmp_path, *classes)
    scanned = scan(tmp_path)
    assert (scanned.classes, scanned.notes) == (tuple(sorted(classes)), ())


@pytest.mark.parametrize(
    ("folders", "suggestion"),
    [
        (("dataset/a", "dataset/b"), "dataset"),
        (("images/train/a", "images/train/b", "images/test/a", "images/test/b"), "images"),
        (("x y/data/train/a", "x y/data/train/b", "x y/data/val/a", "x y/data/val/b", "docs"), "x y/data"),
        (("data/train/a", "data/train/b"), "data/train"),
        (("train/a", "train/b"), "train"),
        (("train/a", "train/b", "test"), "train"),
        (("test/a", "test/b"), "test"),
    ],
)
def test_the_error_for_a_parent_folder_suggests_the_right_one(folders, suggestion: str, tmp_path: Path) -> None:
    build(tmp_path, *folders)
    with pytest.raises(DataError) as raised:
        scan(tmp_path)
    words = shlex.split(str(raised.value).replace("?", " ").replace(";", " "))
    assert words[words.index("--data") + 1] == str(tmp_path / suggestion)
    assert scan(tmp_path / suggestion).classes == ("a", "b")


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (("train/a", "training/a", "test/a"), "two folders of train images, train/ and training/"),
        (("train/a", "eval/a"), "eval/ beside train/; rename it to val/ .* or to test/"),
        (("train/a", "val/a", "eval/a", "holdout/a"), "two folders of test images, eval/ and holdout/"),
        (
            ("animal/cat", "animal/dog", "thing/car"),
            r"\(animal/, thing/\).*\(car/, cat/, dog/\).*which are the classes",
        ),
        (("train/steam", "train/diesel", "bus"), "if train/ is a class, move the images in its folders up"),
    ],
)
def test_unclear_layouts_are_refused(folders: tuple[str, ...], message: str, tmp_path: Path) -> None:
    build(tmp_path, *folders)
    with pytest.raises(DataError, match=message):
        scan(tmp_path)


def test_images_in_subfolders_of_a_class_are_counted_in_a_note(tmp_path: Path) -> None:
    build(tmp_path, "cat", "cat/young", "cat/old/very", "dog")
    scanned = scan(tmp_path)
    assert np.bincount(scanned.parts["train"].labels).tolist() == [6, 2]
    assert scanned.notes == ("images in folders inside class folders count for the class: cat/ 4 of 6 (old/, young/)",)
    build(tmp_path / "tiny", *(f"{part}/{name}/images" for part in ("train", "val") for name in ("n1", "n2")))
    scanned = scan(tmp_path / "tiny")
    assert (scanned.classes, scanned.layout) == (("n1", "n2"), "train/val")
    assert "train/n1/ 2 of 2 (images/)" in scanned.notes[0]


@pytest.mark.parametrize(
    ("folders", "classes"),
    [
        (("cat", "cat ", "dog"), ("cat", "dog")),
        (("0", "0.0", "1"), ("0", "1")),
        (("caf\u00e9", "cafe\u0301", "dog"), ("caf\u00e9", "dog")),
    ],
)
def test_class_folders_with_one_name_are_one_class(folders, classes, tmp_path: Path) -> None:
    build(tmp_path, *folders)
    scanned = scan(tmp_path)
    assert scanned.classes == classes
    assert sorted(np.bincount(scanned.parts["train"].labels)) == [2, 4]
    assert "read as one class" in scanned.notes[0]
    assert all((tmp_path / name).exists() for name in scanned.parts["train"].ids)


def test_parts_match_by_the_same_name_in_another_form(tmp_path: Path) -> None:
    build(tmp_path, "train/caf\u00e9", "train/dog", "test/cafe\u0301", "test/dog")
    scanned = scan(tmp_path)
    assert scanned.classes == ("caf\u00e9", "dog")
    assert np.bincount(scanned.parts["test"].labels).tolist() == [2, 2]


@pytest.mark.parametrize("folders", [("Cat", "cat", "dog"), ("train/Cat", "train/dog", "test/cat", "test/dog")])
def test_class_folders_that_differ_in_case_are_refused(folders: tuple[str, ...], tmp_path: Path) -> None:
    build(tmp_path, *folders)
    with pytest.raises(DataError, match=r"'Cat' \(2 images\) and 'cat' \(2 images\); give each class one name"):
        scan(tmp_path)


def test_folders_of_letters_may_differ_in_case(tmp_path: Path) -> None:
    build(tmp_path, "A", "a", "b")
    scanned = scan(tmp_path)
    assert scanned.classes == ("A", "a", "b")
    assert "'A' (2 images) and 'a' (2 images); if they are the same" in scanned.notes[0]


def test_a_part_with_unknown_classes_only_is_a_fault_of_a_lenient_scan(tmp_path: Path) -> None:
    build(tmp_path, "train/a", "train/b", "test/x", "test/y")
    scanned = scan(tmp_path, lenient=True)
    assert (scanned.classes, list(scanned.parts)) == (("a", "b"), ["train"])
    (fault,) = scanned.faults
    assert fault.endswith("test has classes that train/ has not: x, y")


def test_an_empty_class_folder_is_not_compared_with_the_others(tmp_path: Path) -> None:
    build(tmp_path, "Cat", "dog")
    (tmp_path / "cat").mkdir()
    assert scan(tmp_path, partial=True).classes == ("Cat", "dog")

import itertools
import os
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.pictures import COLOURS, write_pictures
from tl_cli.contract import Columns, DataSpec
from tl_cli.data import dataset
from tl_cli.data.sources.csv import scan
from tl_cli.errors import DataError

ROWS = [f"{name}/{n:03d}.png" for name in ("blue", "red") for n in range(4)]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    write_pictures(tmp_path, COLOURS, 4)
    return tmp_path


def write(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "labels.csv"
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_delimiters_bom_and_line_ends_of_every_kind_are_read(
    delimiter: str, encoding: str, end: str, pictures: Path
) -> None:
    lines = [("note", " Label", "PATH "), *(("x", row.split("/")[0], row) for row in ROWS)]
    path = write(pictures, end.join(delimiter.join(line) for line in lines), encoding)
    scanned = scan(path)
    assert scanned.layout == "classes"
    assert scanned.classes == ("blue", "red")
    assert scanned.parts["train"].ids.tolist() == ROWS
    assert scanned.parts["train"].labels.tolist() == [0] * 4 + [1] * 4


@pytest.mark.parametrize(
    ("splits", "layout"),
    [
        (("train", "train"), "classes"),
        (("Train", "test"), "train/test"),
        (("training", "valid"), "train/val"),
        (("Train set", "val2017"), "train/val"),
        (("训练集", "テスト"), "train/test"),
    ],
)
def test_the_layout_follows_from_the_splits_in_the_csv(splits: tuple[str, str], layout: str, pictures: Path) -> None:
    rows = [f"{row},{row.split('/')[0]},{splits[index % 2]}" for index, row in enumerate(ROWS)]
    assert scan(write(pictures, "\n".join(["path,label,split", *rows]))).layout == layout


@pytest.mark.parametrize("column", ["set", "Subset", "part", "partition", "fold", "split"])
def test_a_column_of_split_names_with_another_name_is_the_split(column: str, pictures: Path) -> None:
    values = ("train", "train", "val", "evaluation")
    rows = [f"{row},{row.split('/')[0]},{values[index % 4]}" for index, row in enumerate(ROWS)]
    scanned = scan(write(pictures, "\n".join([f"path,label,{column}", *rows])))
    assert {part: images.ids.tolist() for part, images in scanned.parts.items()} == {
        "train": ["blue/000.png", "blue/001.png", "red/000.png", "red/001.png"],
        "val": ["blue/002.png", "red/002.png"],
        "test": ["blue/003.png", "red/003.png"],
    }
    expected = f"read as parts by the column {column.lower()}: test from evaluation, train from train, val from val"
    assert scanned.notes == (f"labels.csv: {expected}",)


@pytest.mark.parametrize("values", [("1", "2"), ("train", "engine"), ("train", "")])
def test_an_ambiguous_split_column_is_noted_and_not_read(values: tuple[str, str], pictures: Path) -> None:
    rows = [f"{row},{row.split('/')[0]},{values[index % 2]}" for index, row in enumerate(ROWS)]
    scanned = scan(write(pictures, "\n".join(["path,label,fold", *rows])))
    assert (scanned.layout, scanned.notes) == ("classes", ("labels.csv: not read as split: fold",))


def read_back(path: Path, **options: Columns) -> dict[str, str]:
    """Return the class of each image that a CSV lists."""
    scanned = scan(path, **options)
    return {
        name: scanned.classes[label]
        for images in scanned.parts.values()
        for name, label in zip(images.ids, images.labels, strict=True)
    }


MEANT = {row: row.split("/")[0] for row in ROWS}


@pytest.mark.parametrize(
    "picture", ["file_name", "FileName", "image", "Image Path", "img", "id", "id_code", "image_id"]
)
@pytest.mark.parametrize("label", ["class", "Target", "diagnosis"])
def test_columns_are_found_by_usual_names_with_a_note(picture: str, label: str, pictures: Path) -> None:
    path = write(pictures, "\n".join([f"x,{label},{picture}", *(f"1,{row[:-8]},{row}" for row in ROWS)]))
    assert read_back(path) == MEANT
    assert scan(path).notes == (f"labels.csv: the image is {picture}, the label {label}",)


@pytest.mark.parametrize(
    "text",
    [
        "sep=;\nimage;label\n" + "".join(f"{row};{row[:-8]}\n" for row in ROWS),
        "image\tid\tlabel\n" + "".join(f"{row}\t{n}\t{row[:-8]}\n" for n, row in enumerate(ROWS)),
        "image,label\n" + "".join(row.replace("/", "\\") + f",{row[:-8]}\n" for row in ROWS),
        "image,label\n" + "".join(f"{row[:-4]},{row[:-8]}\n" for row in ROWS),
        "image,label\n" + "".join("data\\..\\" + row[:-4].replace("/", "\\") + f",{row[:-8]}\n" for row in ROWS),
        "image,red,blue\n" + "".join(f"{row[:-4]},{float('red' in row)},{float('blue' in row)}\n" for row in ROWS),
        "age,image,red,blue\n" + "".join(f"7,{row},{'red' in row:d},{'blue' in row:d}\n" for row in ROWS),
        "".join(f"{row},{row[:-8]}\n" for row in ROWS),
        "".join(f"{row[:-8]};{row}\r\n" for row in ROWS),
        "".join(f"train\t{row}\t{row[:-8]}\n" for row in ROWS),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_common_forms_of_csv_are_read(text: str, encoding: str, pictures: Path) -> None:
    path = write(pictures, text, encoding)
    assert read_back(path) == MEANT
    assert scan(path).notes


def test_guesses_are_noted(pictures: Path) -> None:
    headless = scan(write(pictures, "".join(f"{row},{row[:-8]}\n" for row in ROWS))).notes[0]
    assert headless.startswith("labels.csv has no header: column 1 is the image, 2 the label")
    (pictures / "images").mkdir()
    for row in ROWS:
        (pictures / row).rename(pictures / "images" / row.replace("/", "_"))
    rows = "".join(f"{row[:-4].replace('/', '_')},{row[:-8]}\n" for row in ROWS)
    scanned = scan(write(pictures, f"id_code,diagnosis\n{rows}"))
    assert scanned.parts["train"].ids.tolist() == [f"images/{row.replace('/', '_')}" for row in ROWS]
    assert scanned.notes[1] == "labels.csv: 8 images are found by the ends of their names in images/"


@pytest.mark.parametrize(
    ("csv_folder", "folder", "is_found"),
    [
        ("labels", "images", True),
        ("ISIC2018_Task3_Training_GroundTruth", "ISIC2018_Task3_Training_Input", True),
        ("labels", "private", False),
        ("ISIC2018_Task3_Training_GroundTruth", "ISIC2018_Task3_Test_Input", False),
    ],
)
def test_images_are_searched_for_beside_the_folder_of_the_csv(
    csv_folder: str, folder: str, is_found: bool, tmp_path: Path
) -> None:
    write_pictures(tmp_path / folder, {"red": (255, 0, 0), "blue": (0, 0, 255)}, 4)
    (tmp_path / csv_folder).mkdir()
    path = write(tmp_path / csv_folder, "image,label\n" + "".join(f"{row[:-4]},{row[:-8]}\n" for row in ROWS))
    if not is_found:
        with pytest.raises(DataError, match="no image below"):
            scan(path)
        return
    (part,) = scan(path).parts.values()
    assert sorted(part.ids.tolist()) == [f"../{folder}/{row}" for row in ROWS]
    data = dataset.open_data(DataSpec(source=str(path), layout="classes", val_fraction=0.3), workers=1)
    assert sum(len(each) for each in data.parts.values()) == 8


def test_images_of_one_name_are_distinguished_by_the_part_of_the_csv(pictures: Path) -> None:
    for part in ("train", "test"):
        write_pictures(pictures / f"{part}_images", {".": (1, 2, 3)}, 4)
    text = "id,label\n000,a\n001,b\n"
    (pictures / "blue").rename(pictures / ".blue")
    for folder in ("red", "green"):
        (pictures / folder).rename(pictures / f".{folder}")
    (pictures / "train.csv").write_text(text)
    assert scan(pictures / "train.csv").parts["train"].ids.tolist() == ["train_images/000.png", "train_images/001.png"]
    path = write(pictures, "id,label,split\n000,a,train\n001,b,train\n000,a,test\n")
    assert scan(path).parts["test"].ids.tolist() == ["test_images/000.png"]


@pytest.mark.parametrize("value", ["dev", "valid"])
def test_dev_and_valid_are_validation(value: str, pictures: Path) -> None:
    rows = [f"{row},{row[:-8]},{('train', value)[n % 2]}" for n, row in enumerate(ROWS)]
    assert scan(write(pictures, "\n".join(["img,class,split", *rows]))).layout == "train/val"


def test_columns_can_be_named(pictures: Path) -> None:
    text = "shot,label,Kind,use\n" + "".join(f"{row},9,{row[:-8]},test\n" for row in ROWS[::2])
    path = write(pictures, text + "".join(f"{row},9,{row[:-8]},train\n" for row in ROWS[1::2]))
    named = Columns(path="shot", label="kind", split="use")
    assert read_back(path, columns=named) == MEANT
    assert read_back(path, columns=Columns(path="1", label="3", split="4")) == MEANT
    assert read_back(path, hints=named) == MEANT
    assert scan(path, columns=named).layout == "train/test"
    with pytest.raises(DataError, match=r"no column 'type' for --label-column; its columns are shot, label, Kind, use"):
        scan(path, columns=Columns(path="shot", label="type"))
    with pytest.raises(DataError, match=r"no column '5' for --path-column"):
        scan(path, columns=Columns(path="5"))
    other = write(pictures, "".join(f"{row},{row[:-8]},x\n" for row in ROWS))
    assert read_back(other, columns=Columns(label="2"), hints=named) == MEANT


def test_named_columns_are_stored_with_the_model(pictures: Path) -> None:
    path = write(pictures, "path,label,Kind\n" + "".join(f"{row},{n},{row[:-8]}\n" for n, row in enumerate(ROWS)))
    named = DataSpec(source=str(path), layout="classes", columns=Columns(label="Kind"))
    data = dataset.open_data(named, workers=1)
    card = DataSpec.model_validate_json(data.spec.model_dump_json())
    assert dataset.open_for_evaluation(card, str(path), data_dir=None).is_own
    (pictures / "moved").mkdir()
    for name in ("red", "blue", "labels.csv"):
        (pictures / name).rename(pictures / "moved" / name)
    judged = dataset.open_for_evaluation(card, str(pictures / "moved" / "labels.csv"), data_dir=None)
    assert (judged.is_own, judged.data.classes) == (True, ("blue", "red"))
    # Another CSV may have other columns.
    other = pictures / "moved" / "other.csv"
    other.write_text("path,label\n" + "".join(f"{row},{row[:-8]}\n" for row in ROWS[2:6]))
    assert len(dataset.open_for_evaluation(card, str(other), data_dir=None).data.parts["train"]) == 4
    older = {name: value for name, value in card.model_dump().items() if name != "columns"}
    assert DataSpec.model_validate(older).columns == Columns()


def test_column_options_are_refused_for_sources_without_columns(pictures: Path) -> None:
    for source in (str(pictures), "digits"):
        with pytest.raises(DataError, match="--label-column: .* is no CSV and has no columns"):
            dataset.open_data(DataSpec(source=source, layout="classes", columns=Columns(label="x")), workers=1)


def test_the_error_for_a_folder_suggests_the_csv_inside(pictures: Path) -> None:
    (pictures / "images").mkdir()
    for row in ROWS:
        (pictures / row).rename(pictures / "images" / row.replace("/", "_"))
    for folder in COLOURS:
        for left in (pictures / folder).iterdir():
            left.unlink()
    (pictures / "train.csv").write_text("id,label\nblue_000,b\n")
    (pictures / "sample_submission.csv").write_text("id,label\nblue_000,0\n")
    with pytest.raises(DataError, match=r"to use what is in train.csv, give --data .*/train.csv$"):
        dataset.open_data(DataSpec(source=str(pictures), layout="classes"), workers=1)


@pytest.mark.parametrize(
    "labels",
    [
        ("tench, Tinca tinca", "hen, Gallus"),
        ("hen, red", "tench, red"),
        ("Boston, MA", "Springfield, IL", "Springfield, MA"),  # "Springfield" and "MA" occur twice
    ],
)
def test_labels_with_commas_are_classes_with_a_note(labels: tuple[str, ...], pictures: Path) -> None:
    rows = "".join(f'{row},"{label}"\n' for row, label in zip(ROWS, itertools.cycle(labels), strict=False))
    named = ", ".join(repr(label) for label in sorted(labels))
    assert scan(write(pictures, f"path,label\n{rows}")).notes == (
        f"each of these is one class, not several labels: {named}",
    )


def test_labels_that_look_like_parts_are_noted(pictures: Path) -> None:
    rows = [f"{row},{'train' if 'blue' in row else 'test'}" for row in ROWS]
    (note,) = scan(write(pictures, "\n".join(["path,label", *rows]))).notes
    assert "the labels train, test look like parts" in note.replace("test, train", "train, test")


def test_a_csv_is_opened_as_any_source_and_finds_its_images_again(pictures: Path) -> None:
    path = write(pictures, "\n".join(["path,label", *(f"{row},{row.split('/')[0]}" for row in ROWS)]))
    data = dataset.open_data(DataSpec(source=str(path), layout="classes"), workers=1)
    assert data.spec.source == str(path)
    assert {name: split.count for name, split in data.spec.splits.items()} == {"train": 4, "val": 2, "test": 2}
    assert dataset.open_data(data.spec, workers=1).spec == data.spec


def test_the_order_of_the_rows_does_not_matter(pictures: Path) -> None:
    rows = [f"{row},{row.split('/')[0]}" for row in ROWS]
    specs = []
    for order in (rows, rows[::-1]):
        path = write(pictures, "\n".join(["path,label", *order]))
        specs.append(dataset.open_data(DataSpec(source=str(path), layout="classes"), workers=1).spec)
    assert specs[0] == specs[1]


def test_absolute_paths_and_paths_above_the_csv_are_allowed(pictures: Path) -> None:
    inner = pictures / "lists"
    inner.mkdir()
    path = write(inner, f"path,label\n{pictures}/red/000.png,r\n../blue/000.png,b\n")
    scanned = scan(path)
    assert scanned.parts["train"].ids.tolist() == ["../blue/000.png", "../red/000.png"]
    assert scanned.parts["train"].load(1).shape == (3, 32, 32)


def test_quoted_values_may_hold_delimiters_and_line_ends(pictures: Path) -> None:
    os.rename(pictures / "red" / "000.png", pictures / "red" / "a,b.png")
    path = write(pictures, '"path","label"\n"red/a,b.png","red, or so"\nblue/000.png,"blue\nish"\n')
    assert scan(path).classes == ("blue\nish", "red, or so")


def test_labels_missing_in_a_part_are_noted(pictures: Path) -> None:
    path = write(pictures, "path,label,split\nred/000.png,r,train\nblue/000.png,b,train\nred/001.png,r,test\n")
    assert scan(path).notes == ("labels.csv lists no images of b in test",)


GOOD = "path,label\nred/000.png,r\nblue/000.png,b\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"line 1: expected a header that names the columns path and label.*got ''"),
        ("shot,kind\na.png,b\n", "got 'shot,kind'; other columns can be named: --path-column shot --label-column kind"),
        (
            "path,dx,age\nred/000.png,r,1\n",
            r"which of its columns is the label is unclear \(path, dx, age\).*-column dx",
        ),
        ("image,class,target\nred/000.png,r,0\n", "class, target may each be the label; .*--label-column class"),
        ("file,image,label\nred/000.png,a,0\n", "image, file may each be the path; say which with --path-column image"),
        ("image,a,b\nred/000.png,1,0\nred/001.png,1,1\n", r"line 3: 2 classes are 1 \(a, b\), but an image has one"),
        ("image,a,b\nred/000.png,1,0\nred/001.png,0,0\n", "line 3: no class is 1, but an image has one label"),
        (
            "id,label\n000,r\n",
            "line 2: 000 may be blue/000.png or green/000.png or red/000.png; write it with its folder and ending",
        ),
        ("id,label\nnone,r\n", "line 2: none has no ending of an image .* and no image below .* has that name"),
        ("red/000.png,r,1\nblue/000.png,b,2\n", "which of its columns is the label is unclear .*--label-column 2"),
        (
            'path,label\nred/000.png,r\nred/001.png,b\nblue/000.png,"r,b"\n',
            "line 4: the image has several labels \\('r,b': r, b\\), as 1 of 3 have",
        ),
        ("path,label\nred/000.png,r|b\nred/001.png,b|g\nblue/000.png,g|r\n", "line 2: .* as 3 of 3 have"),
        ("path,label\n", "lists no images"),
        ("path,label\n,,\n\n", "lists no images"),
        ("path,label,Path\n", "line 1: more than one column is called path"),
        (GOOD + "red/001.png,\n", "line 4: the label is empty"),
        (GOOD + ",r\n", "line 4: the path is empty"),
        (GOOD + "red/001.png\n", "line 4: 1 columns, but 2 in the header"),
        (GOOD + "red/a,b.png,r\n", "line 4: 3 columns, but 2 in the header; quote a value"),
        (GOOD + '"red/001.png,r\n', "line 4: .*are its quotes closed"),
        (GOOD + "labels.csv,r\n", "line 4: labels.csv has no ending of an image"),
        (GOOD + "d.png,r\n", "line 4: d.png is a folder"),
        (GOOD + "red/../red/000.png,r\n", "line 4: red/000.png is listed on line 2 too"),
        (
            GOOD + "\n\nred/none.png,r\nred\\001.png,r\n",
            r"1 images that are not there: red/none.png \(line 6\).*no image below it has such a name",
        ),
        ("path,label\nred/000.png,r\nred/001.png,r\n", r"one class only \(r\)"),
        ("path,label,split\nred/000.png,r,mine\n", "line 2: split is 'mine'; expected train, val or test"),
        ("path,label,split\nred/000.png,r,\n", "line 2: split is ''"),
        ("path,label,set\nred/000.png,r,train\nred/001.png,r,eval\n", "line 3: set is 'eval'; expected train, val"),
        (
            "path,label,set,fold\nred/000.png,r,train,test\n",
            "line 1: set, fold all name parts; say which with --split-column set",
        ),
        ("path,label,split\nred/000.png,r,test\n", "no images with split train"),
        ("path,label,split\nred/000.png,r,train\nblue/000.png,b,train\ngreen/000.png,g,val\n", "line 4: the label 'g'"),
        (GOOD + "red/\0.png,r\n", "line 4: holds a NUL byte"),
    ],
)
def test_each_fault_is_named_with_its_line(text: str, message: str, pictures: Path) -> None:
    (pictures / "d.png").mkdir()
    path = write(pictures, text)
    with pytest.raises(DataError, match=f"labels.csv.*{message}"):
        scan(path)


@pytest.mark.parametrize("name", ["x" * 5_000 + ".png", "x" * 5_000, "x/" * 3_000 + "y.png"])
def test_the_error_for_a_long_path_is_short(name: str, pictures: Path) -> None:
    with pytest.raises(DataError, match=r"labels.csv, line 4: x[x/]+\.\.\. ") as raised:
        scan(write(pictures, f"{GOOD}{name},r\n"))
    assert len(str(raised.value)) < 500


def test_an_image_listed_under_two_names_is_refused(pictures: Path) -> None:
    (pictures / "same").symlink_to(pictures / "red")
    with pytest.raises(DataError, match=r"line 4: same/000.png is listed on line 2 too as red/000.png; keep one"):
        scan(write(pictures, GOOD + "same/000.png,r\n"))


def test_other_encodings_are_named_with_their_line(pictures: Path) -> None:
    with pytest.raises(DataError, match="line 4: is not UTF-8"):
        scan(write(pictures, GOOD + "red/001.png,rösti\n", "latin-1"))
    with pytest.raises(DataError, match="UTF-16: save it as UTF-8"):
        scan(write(pictures, GOOD, "utf-16-le"))
    path = write(pictures, GOOD, "utf-16")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="begins as UTF-16 and is not"):
        scan(path)


def test_a_missing_csv_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none.csv cannot be read: No such file"):
        dataset.open_data(DataSpec(source=str(tmp_path / "none.csv"), layout="classes"), workers=1)


@pytest.mark.slow
@given(body=st.binary(max_size=200) | st.text(alphabet='pathlbes,;\t"\n\r 1./\\', max_size=200).map(str.encode))
@settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_any_bytes_are_read_or_raise_a_data_error(body: bytes, tmp_path: Path) -> None:
    path = tmp_path / "any.csv"
    path.write_bytes(b"path,label\n" + body)
    with pytest.raises(DataError, match="any.csv"):
        scan(path)


def is_one_spelling(labels: list[str]) -> bool:
    """Whether no two labels are equal when only their letters and digits are compared."""
    plain = {"".join(c for c in unicodedata.normalize("NFKD", each).casefold() if c.isalnum()) for each in labels}
    return len(plain) == len(set(labels)) > 1 and "" not in plain


LABEL = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=8).map(str.strip).filter(bool)


@given(labels=st.lists(LABEL, min_size=4, max_size=4).filter(is_one_spelling), data=st.data())
@settings(
    max_examples=50,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_labels_from_a_csv_writer_are_read_back(labels: list[str], data: st.DataObject, tmp_path: Path) -> None:
    import csv

    for n in range(4):
        (tmp_path / f"{n}.png").write_bytes(b"")
    path = tmp_path / "labels.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=data.draw(st.sampled_from(",;\t")))
        writer.writerows([("path", "label"), *((f"{n}.png", label) for n, label in enumerate(labels))])
    scanned = scan(path)
    images = scanned.parts["train"]
    read = {str(images.ids[i]): scanned.classes[images.labels[i]] for i in range(4)}
    assert read == {f"{n}.png": label for n, label in enumerate(labels)}
    assert np.all(np.diff(images.labels) >= 0)


def read_as(pictures: Path, *labels: str) -> tuple[tuple[str, ...], tuple[str, ...], list[int]]:
    """Return classes, notes and images by class of a CSV with these labels, one row each."""
    rows = [f'{row},"{label}"' for row, label in zip(ROWS, labels, strict=False)]
    scanned = scan(write(pictures, "\n".join(["path,label", *rows])))
    return scanned.classes, scanned.notes, np.bincount(scanned.parts["train"].labels).tolist()


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (("0", "0.0", "1", "1.0", "1.00"), ("0", "1")),
        (("7", "07", "-1", "-1.0", "+7"), ("-1", "7")),
        (("cat", "cat\u00a0", "\u2003dog", "dog", "dog\u200b"), ("cat", "dog")),
        (("red cat", "red\u00a0cat", "dog", "dog", "red  cat"), ("dog", "red cat")),
        (("dog", "caf\u00e9", "cafe\u0301", "dog", "cafe\u0301"), ("caf\u00e9", "dog")),
    ],
)
def test_equivalent_spellings_of_a_label_are_merged_with_a_note(labels, classes, pictures: Path) -> None:
    read, notes, counts = read_as(pictures, *labels)
    assert (read, sorted(counts)) == (classes, [2, 3])
    assert notes[0].startswith("read as one class: ")
    assert all(ascii(label) in notes[0] for label in labels if labels.count(label) == 1)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (("Cat", "cat", "dog", "cat"), r"'Cat' \(1 image\) and 'cat' \(2 images\)"),
        (("0", "0.0", "cat"), r"'0' \(1 image\) and '0.0' \(1 image\)"),
        (("polar bear", "polar_bear", "dog"), "'polar bear' .* and 'polar_bear'"),
        (("STRASSE", "stra\u00dfe", "dog"), "'STRASSE' .* and 'stra.xdfe'"),
        (("\uff43at", "cat", "dog"), "'cat' .* and '.uff43at'"),
    ],
)
def test_labels_that_look_alike_are_refused_with_their_counts(labels, message: str, pictures: Path) -> None:
    with pytest.raises(DataError, match=f"{message}.*give each class one name"):
        read_as(pictures, *labels)


@pytest.mark.parametrize(
    "labels", [("A-", "A", "B"), ("1.5", "15", "1"), ("a b", "ab", "c"), ("9" * 40, "9" * 39 + "8", "1"), ("-1", "1")]
)
def test_different_labels_stay_different(labels: tuple[str, ...], pictures: Path) -> None:
    assert read_as(pictures, *labels)[:2] == (tuple(sorted(labels)), ())


def test_capital_and_small_letters_may_be_different_classes(pictures: Path) -> None:
    classes, notes, _ = read_as(pictures, "A", "a", "B", "b")
    assert classes == ("A", "B", "a", "b")
    assert "'A' (1 image) and 'a' (1 image), 'B' (1 image) and 'b' (1 image); if they are the same" in notes[0]


def test_a_label_of_invisible_characters_is_empty(pictures: Path) -> None:
    with pytest.raises(DataError, match="line 4: the label is empty"):
        read_as(pictures, "a", "b", "\u200b")


def test_other_labelled_csvs_are_noted_with_the_command_that_evaluates_them(tmp_path: Path) -> None:
    write_pictures(tmp_path, {name: COLOURS[name] for name in ("blue", "red")}, 12, size=8)
    for name, numbers in (("train", range(10)), ("test", range(10, 12))):
        rows = [f"{label}/{number:03d}.png,{label}" for label in ("blue", "red") for number in numbers]
        (tmp_path / f"{name}.csv").write_text("\n".join(["path,label", *rows]))
    (tmp_path / "val.csv").write_text("path,width\nblue/010.png,8\n")
    found = dataset.open_source(str(tmp_path / "train.csv"), None)
    (note,) = [each for each in found.notes if "not read" in each]
    *_, command = note.split("training: ")
    assert command == f"tl eval latest --data {tmp_path / 'test.csv'}"
    assert list(dataset.open_source(command.split()[-1], None).classes) == ["blue", "red"]
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as packed:
        for file in (*tmp_path.glob("*.csv"), *tmp_path.rglob("*.png")):
            packed.write(file, file.relative_to(tmp_path))
    (note,) = [
        each for each in dataset.open_source(str(tmp_path / "all.zip"), str(tmp_path / "c")).notes if "not read" in each
    ]
    assert note.startswith("test.csv in the archive")

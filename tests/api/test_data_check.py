"""``check_data`` on images with known faults."""

import json
import shutil
from pathlib import Path

import jsonschema
import pytest

import tl_cli
from tests.support.pictures import COLOURS, write_pictures
from tl_cli import CheckRequest, Observer, check_data
from tl_cli.api.data_check import class_counts, class_ratio
from tl_cli.contract import USUAL_COLUMNS
from tl_cli.errors import DataError

SCHEMA = json.loads((Path(tl_cli.__file__).parent / "api" / "schemas" / "data-check.json").read_text())


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Folders train/ and test/ with different images of three classes, 5 and 2 per class."""
    write_pictures(tmp_path / "all", COLOURS, 7)
    for name in COLOURS:
        for part, numbers in (("train", range(5)), ("test", range(5, 7))):
            (tmp_path / part / name).mkdir(parents=True)
            for number in numbers:
                shutil.move(tmp_path / "all" / name / f"{number:03d}.png", tmp_path / part / name)
    shutil.rmtree(tmp_path / "all")
    return tmp_path


def check(folder: Path, **options: object) -> tl_cli.DataReport:
    return check_data(CheckRequest(str(folder), USUAL_COLUMNS, workers=0, **options), Observer())


def test_clean_data_are_counted_and_have_no_findings(pictures: Path) -> None:
    report = check(pictures, labels=False)
    assert report.is_clean
    data = report.to_dict()
    jsonschema.validate(data, SCHEMA)
    assert data["classes"] == {name: {"train": 5, "test": 2} for name in sorted(COLOURS)}
    assert (data["images"], data["formats"]) == ({"train": 15, "test": 6}, {"PNG": 21})
    assert data["sizes"] == {"shortest_side": [32, 32, 32], "one_size": True}
    assert (data["bad"], data["duplicates"], data["doubted_labels"]) == ([], [], None)


def test_files_that_do_not_decode_and_equal_images_are_found(pictures: Path) -> None:
    shutil.copy(pictures / "train" / "red" / "000.png", pictures / "test" / "red" / "copy.png")
    shutil.copy(pictures / "train" / "blue" / "001.png", pictures / "train" / "green" / "other.png")
    (pictures / "train" / "red" / "bad.png").write_bytes(b"not a picture")
    report = check(pictures, labels=False)
    assert not report.is_clean
    data = report.to_dict()
    jsonschema.validate(data, SCHEMA)
    assert [(each["part"], each["file"]) for each in data["bad"]] == [("train", "train/red/bad.png")]
    files = [sorted(image["file"] for image in group["images"]) for group in data["duplicates"] if group["exact"]]
    assert sorted(files) == [
        ["test/red/copy.png", "train/red/000.png"],
        ["train/blue/001.png", "train/green/other.png"],
    ]
    assert data["shared"] == [{"part": "test", "earlier": "train", "exact": True, "images": 1}]
    assert class_counts(report.findings)[2] == {"train": 6, "test": 3}
    # 6 images of green and of red, 5 of blue; the bad file counts, as training refuses it.
    assert class_ratio(report.findings) == pytest.approx(6 / 5, rel=0.3)


def test_labels_are_not_compared_without_a_readable_image_or_a_second_one(tmp_path: Path) -> None:
    write_pictures(tmp_path, {"blue": COLOURS["blue"], "red": COLOURS["red"]}, 1)
    report = check(tmp_path)
    assert report.doubts is not None
    assert report.doubts.compared == 0
    assert report.to_dict()["doubted_labels"]["why_not"] == report.doubts.why_not
    assert "labels were not compared" in report.doubts.why_not


def test_a_wrong_label_is_reported(pictures: Path) -> None:
    # A red image among the blue ones.
    shutil.copy(pictures / "test" / "red" / "005.png", pictures / "train" / "blue" / "wrong.png")
    data = check(pictures).to_dict()["doubted_labels"]
    jsonschema.validate(data, SCHEMA["properties"]["doubted_labels"] | {"$defs": SCHEMA.get("$defs", {})})
    doubted = {image["file"]: image["likely"] for image in data["images"]}
    assert data["why_not"] or doubted.get("train/blue/wrong.png") == "red"


def test_a_source_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        check(tmp_path / "nothing")

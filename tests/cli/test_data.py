import json
from pathlib import Path

import pytest

from tests.support.pictures import COLOURS, write_pictures
from tl_cli.data.sources.catalogue import SETS


@pytest.mark.parametrize("width", ["40", "80", "200"])
def test_every_set_is_listed_in_any_terminal(tl, width: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", width)
    result = tl("data")
    assert result.code == 0
    assert max(map(len, result.out.splitlines())) <= int(width)
    assert all(f"{name} " in result.out for name in SETS)


def test_json_has_the_image_counts_and_mirroring_of_every_set(tl) -> None:
    rows = {row["name"]: row for row in json.loads(tl("data", "--json").out)}
    assert rows["cifar10"]["images"] == {"train": 50_000, "test": 10_000}
    assert rows["mnist"]["mirrors"] is False
    assert set(rows) == set(SETS)


@pytest.mark.slow
def test_the_columns_of_a_csv_are_named_once_for_training_and_evaluation(tl, workplace: Path) -> None:
    write_pictures(workplace / "images", COLOURS, 8)
    rows = [f"{name}/{n:03d},{n},{name}" for name in COLOURS for n in range(8)]
    (workplace / "train.csv").write_text("\n".join(["shot,label,Kind", *rows]))
    columns = ("--path-column", "shot", "--label-column", "kind")
    assert tl("data", "check", "train.csv", "--no-labels").code == 2
    checked = tl("data", "check", "train.csv", "--no-labels", "--json", *columns)
    assert checked.code == 0, checked.err
    assert set(json.loads(checked.out)["classes"]) == set(COLOURS)
    trained = tl("train", "timm/test_resnet", "--weights", "none", "--input-size", "32", "--epochs", "1",
                 "--freeze-epochs", "0", "--data", "train.csv", *columns)  # fmt: skip
    assert trained.code == 0, trained.err
    assert "24 images are found by the ends of their names" in " ".join(trained.out.split())
    judged = tl("eval", "latest", "--json")
    assert judged.code == 0, judged.err
    assert json.loads(judged.out)["classes"] == sorted(COLOURS)
    assert tl("eval", "latest", "--label-column", "label").code == 2

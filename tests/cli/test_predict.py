import csv
import io
import json
from pathlib import Path

import pytest
import torch

from tests.support.pictures import COLOURS
from tl_cli.cli.predict import _form


def test_each_form_has_the_probabilities_of_the_network(tl, saved: Path, colours: Path) -> None:
    picture = colours / "test" / "red" / "000.png"
    (line,) = tl("predict", saved, picture).out.splitlines()
    predictions = json.loads(line)["predictions"]
    probabilities = torch.tensor([each["probability"] for each in predictions], dtype=torch.float64)
    assert probabilities.sum() == pytest.approx(1, abs=1e-5)
    assert sorted(each["class"] for each in predictions) == sorted(COLOURS)
    (row,) = csv.DictReader(io.StringIO(tl("predict", saved, picture, "--format", "csv", "--top", "1").out))
    assert row["class"] == predictions[0]["class"]
    assert float(row["probability"]) == pytest.approx(predictions[0]["probability"], abs=1e-5)
    table = tl("predict", saved, picture, "--format", "table", "--top", "1").out
    assert predictions[0]["class"] in table
    assert f"{predictions[0]['probability']:.1%}" in table


@pytest.mark.parametrize(
    ("form", "as_json", "show", "expected"),
    [
        (None, True, False, "jsonl"),
        ("jsonl", True, False, "jsonl"),
        ("csv", False, False, "csv"),
        (None, False, True, "table"),
        ("table", False, True, "table"),
    ],
)
def test_the_form_follows_from_the_options(form, as_json: bool, show: bool, expected: str) -> None:
    assert _form(form, as_json=as_json, show=show) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--json", "--format", "csv"), "leave out --format csv"),
        (("--show", "--json"), "in a table only"),
        (("--show", "--format", "jsonl"), "in a table only"),
        (("--quiet", "--format", "table"), "--format jsonl"),
    ],
)
def test_options_that_contradict_each_other_are_refused(tl, options: tuple[str, ...], message: str) -> None:
    refused = tl("predict", "photo.jpg", *options)
    assert refused.code == 2
    assert message in " ".join(refused.err.split())

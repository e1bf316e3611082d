import csv
import io
import json
from pathlib import Path

import pytest
import torch

from tests.conftest import COLOURS
from tl_cli.cli.predict import _form
from tl_cli.contract import DataSpec, ModelCard, Preprocessing, WeightsTag
from tl_cli.models import bundle
from tl_cli.models.zoo import registry


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A saved model with random weights."""
    classifier = registry.create("timm/test_resnet", len(COLOURS), weights="none", input_size=32)
    torch.manual_seed(0)
    for parameter in classifier.model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    card = ModelCard(
        architecture="timm/test_resnet", head=classifier.head, classes=tuple(sorted(COLOURS)),
        preprocessing=Preprocessing(resize=32, crop=32), weights=WeightsTag(name="none"),
        data=DataSpec(source="/nowhere", layout="classes"), recipe="default", epoch=1,
    )  # fmt: skip
    bundle.save(tmp_path / "saved", classifier.model, card)
    return tmp_path / "saved"


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
    ("options", "said"),
    [
        (("--json", "--format", "csv"), "leave out --format csv"),
        (("--show", "--json"), "in a table only"),
        (("--show", "--format", "jsonl"), "in a table only"),
        (("--quiet", "--format", "table"), "--format jsonl"),
    ],
)
def test_options_that_contradict_each_other_are_refused(tl, options: tuple[str, ...], said: str) -> None:
    refused = tl("predict", "photo.jpg", *options)
    assert refused.code == 2
    assert said in " ".join(refused.err.split())

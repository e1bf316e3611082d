import json
from pathlib import Path

import jsonschema
import pytest
import torch

import tl_cli
from tl_cli.api.comparison_run import CompareRequest, compare
from tl_cli.contract import DataSpec, ModelCard, Split, WeightsTag
from tl_cli.models import bundle
from tl_cli.models.zoo import registry

SCHEMA = Path(tl_cli.__file__).parent / "api" / "schemas" / "compare.json"


@pytest.fixture
def folders(tmp_path: Path) -> tuple[str, str]:
    """Two saved models of three classes with different random weights."""
    for seed, name in enumerate(("a", "<b>")):
        torch.manual_seed(seed)
        made = registry.create("timm/test_resnet", 3, weights="none", input_size=32)
        data = DataSpec(source="other", layout="classes", splits={"train": Split(count=3, digest="x")})
        card = ModelCard(
            architecture=made.name, head=made.head, classes=("blue", "green", "red"), data=data, recipe="default",
            preprocessing=made.preprocessing.at(32, whole=True), weights=WeightsTag(name="none"), config={}, epoch=1,
        )  # fmt: skip
        bundle.save(tmp_path / name, made.model, card)
    return str(tmp_path / "a"), str(tmp_path / "<b>")


def test_json_follows_its_schema_and_is_the_result_of_the_python_function(tl, folders, colours: Path) -> None:
    result = tl("compare", *folders, "--data", colours, "--no-speed", "--json")
    assert result.code == 0, result.err
    printed = json.loads(result.out, parse_constant=pytest.fail)
    jsonschema.validate(printed, json.loads(SCHEMA.read_text()))
    assert printed["images"] == 18
    assert {row["model"] for row in printed["models"]} == {"a", "<b>"}
    assert tl("compare", *folders, "--data", colours, "--no-speed", "--format", "json").out == result.out
    comparison = compare(CompareRequest(folders, data=str(colours), measure_speed=False))
    assert json.loads(json.dumps(comparison.to_dict())) == printed
    assert (comparison.failed, comparison.run_id) == ((), None)
    assert "&lt;b&gt;" in comparison._repr_html_()
    assert "<b>" not in comparison._repr_html_()


def test_quiet_with_no_output_left_is_refused(tl, folders) -> None:
    assert tl("compare", *folders, "--quiet").code == 2

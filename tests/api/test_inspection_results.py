import json
from pathlib import Path

import pytest
import torch
from jsonschema import Draft202012Validator, ValidationError

import tl_cli
from tl_cli.api.inspection_results import CamResult, Heatmap

SCHEMA = json.loads(Path(str(tl_cli.__file__)).with_name("api").joinpath("schemas/inspect.json").read_text())


def test_heatmaps_have_the_centre_of_their_heat() -> None:
    heat = torch.zeros(4, 4)
    heat[0, 3] = 1  # top right
    picture = torch.zeros(3, 4, 4, dtype=torch.uint8)
    rows = (Heatmap("a.png", "cat", 0.75, None, picture, heat), Heatmap("b.png", "dog", 0.5, "cat", picture, heat * 0))
    data = CamResult(title="net", model="net", images=2, heatmaps=rows, layer="layer4", grid=(2, 2)).to_dict()
    assert data["images"] == [
        {"image": "a.png", "predicted": "cat", "probability": 0.75, "centre": [0.875, 0.125]},
        {"image": "b.png", "predicted": "dog", "probability": 0.5, "true": "cat", "centre": None},
    ]
    Draft202012Validator(SCHEMA).validate(data)


@pytest.mark.parametrize(
    "data",
    [
        {"model": "net"},
        {"model": "net", "images": [{"image": "a.png"}]},
        {"model": "net", "residuals": [], "more": 1},
        {"model": "net", "against": "x", "source": "y", "images": -1, "layers": []},
    ],
)
def test_the_schema_refuses_other_data(data: dict[str, object]) -> None:
    Draft202012Validator.check_schema(SCHEMA)
    with pytest.raises(ValidationError):
        Draft202012Validator(SCHEMA).validate(data)

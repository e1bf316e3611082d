"""``inspect`` as a function, on architectures; tests/cli/test_inspect.py inspects a recorded run."""

import json
from pathlib import Path

import pytest
import torch
from jsonschema import Draft202012Validator

import tl_cli
from tl_cli.api.inspection_results import (
    CamResult,
    CamView,
    DriftView,
    FreezePlanResult,
    FreezePlanView,
    InspectionRequest,
    ResidualsResult,
    ResidualsView,
    TreeResult,
    TreeView,
    WorstView,
)
from tl_cli.api.inspection_view import inspect, log_files
from tl_cli.api.observer import Observer
from tl_cli.errors import UnknownModelError, UsageError

SCHEMA = json.loads(Path(str(tl_cli.__file__)).with_name("api").joinpath("schemas/inspect.json").read_text())


class Recording(Observer):
    def __init__(self) -> None:
        self.seen: list[tuple[str, int, int | None]] = []

    def progress(self, what: str, done: int, total: int | None) -> None:
        self.seen.append((what, done, total))


def test_a_tree_is_returned_as_data_and_as_html(workplace: Path) -> None:
    result = inspect(InspectionRequest("resnet18", TreeView(num_classes=37), input_size=96))
    assert isinstance(result, TreeResult)
    # torchvision's ResNet-18 has 11,176,512 parameters without its head of 512 x 37 weights and 37 biases.
    assert result.root.parameters == 11_176_512 + 513 * 37
    assert (result.num_classes, result.preprocessing.crop, result.head, result.target) == (37, 96, ("fc",), None)
    data = json.loads(json.dumps(result.to_dict()))
    Draft202012Validator(SCHEMA).validate(data)
    assert (data["model"], data["classes"], data["input_size"]) == ("resnet18", 37, 96)
    html = result._repr_html_()
    assert html.count("<details") == html.count("</details>") == 1 + 4 + 8 + 3
    assert "<b>fc</b> Linear, 37, 18,981 parameters, 18,944 MACs" in html


def test_a_freeze_plan_takes_settings_and_a_config_file(workplace: Path) -> None:
    config = workplace / "settings.toml"
    config.write_text("epochs = 8\nfreeze_epochs = 3\n")
    view = FreezePlanView({"freeze_epochs": 2}, config)
    result = inspect(InspectionRequest("resnet18", view, data="digits"))
    assert isinstance(result, FreezePlanResult)
    assert [(phase.name, phase.first, phase.last) for phase in result.strategy.phases] == [
        ("head", 1, 2), ("fine-tune", 3, 8),
    ]  # fmt: skip
    assert sum(part.parameters for part in result.parts) == 11_176_512 + 513 * 10
    assert result.by_name.is_right
    Draft202012Validator(SCHEMA).validate(json.loads(json.dumps(result.to_dict())))


def test_residuals_of_an_architecture_report_progress(workplace: Path) -> None:
    observer = Recording()
    view = ResidualsView(image="1", block="layer3.0")
    request = InspectionRequest("resnet18", view, weights="none", images=2, input_size=64, device="cpu", workers=0)
    result = inspect(request, observer)
    assert isinstance(result, ResidualsResult)
    assert result.report is not None
    assert [each.name for each in result.report.residuals] == [f"layer{n}.{m}" for n in (1, 2, 3, 4) for m in (0, 1)]
    # Random weights: nothing is removed, and the reason is given.
    assert not any(result.report.effects)
    assert "untrained" in result.sentences[-1]
    assert result.block is not None
    x, branch, total = result.block.maps
    assert result.block.picture.shape == (3, 64, 64)
    assert x.shape == (256, 4, 4)
    assert torch.allclose(x + branch, total, atol=1e-5)
    assert observer.seen[-1] == ("measuring residuals", 1, 1)
    Draft202012Validator(SCHEMA).validate(json.loads(json.dumps(result.to_dict())))


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (InspectionRequest("resnet18", DriftView()), "--drift goes with a run"),
        (InspectionRequest("resnet18", WorstView(3)), "only a run can be wrong"),
        (InspectionRequest("resnet18", needs_run=True), "only a recorded run can keep results"),
        (InspectionRequest("resnet18", CamView((Path("nothing.jpg"),)), weights="none"), "there is no such file"),
    ],
)
def test_a_view_that_does_not_suit_the_model_is_refused(
    workplace: Path, request_: InspectionRequest, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        inspect(request_)


def test_an_unknown_model_is_refused_with_the_nearest_name(workplace: Path) -> None:
    with pytest.raises(UnknownModelError, match="Did you mean resnet18"):
        inspect(InspectionRequest("resnet-18"))


def test_results_of_an_architecture_cannot_be_logged(workplace: Path) -> None:
    with pytest.raises(UsageError, match="only a recorded run"):
        log_files(CamResult(title="net", model="net", images=3), lambda folder: [])

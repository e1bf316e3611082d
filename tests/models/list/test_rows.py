import json
from pathlib import Path

from tl_cli.models.list.count_cache import CountCache
from tl_cli.models.list.rows import ModelFilter, Row, SortKey, list_models

SMALL = ModelFilter(pattern="s[hq]*net*", libraries=("torchvision",))


def listed(
    request: ModelFilter, sort: SortKey = "name", *, reverse: bool = False, limit: int | None = None
) -> list[Row]:
    with CountCache() as cache:
        return list_models(request, sort, reverse=reverse, limit=limit, cache=cache, counted=lambda done, total: None)[
            0
        ]


def test_accuracies_are_those_of_torchvision_and_timm_has_none() -> None:
    rows = {row.name: row for row in listed(ModelFilter(pattern="resnet18"), limit=None)}
    assert rows["resnet18"].top1 == 0.69758
    assert rows["timm/resnet18"].top1 is None
    assert rows["resnet18"].parameters == rows["timm/resnet18"].parameters == 11_689_512


def test_only_listed_architectures_are_counted(tmp_path: Path) -> None:
    rows = listed(SMALL, limit=2)
    assert [row.name for row in rows] == ["shufflenet_v2_x0_5", "shufflenet_v2_x1_0"]
    counted = json.loads((tmp_path / "measured" / "counts.json").read_text())
    assert [key.partition("@")[0] for key in counted] == ["shufflenet_v2_x0_5", "shufflenet_v2_x1_0"]


def test_sorting_and_filters() -> None:
    names = [row.name for row in listed(SMALL, "params", reverse=True)]
    assert names[0] == "shufflenet_v2_x2_0"
    assert next(row.name for row in listed(SMALL, "family")).startswith("squeezenet")
    assert {row.name for row in listed(ModelFilter("shufflenet", ("torchvision",), max_parameters=2e6))} == {
        "shufflenet_v2_x0_5"
    }
    assert {row.name for row in listed(ModelFilter("shufflenet", ("torchvision",), max_multiply_adds=0.2e9))} == {
        "shufflenet_v2_x0_5", "shufflenet_v2_x1_0",
    }  # fmt: skip
    assert all((row.top1 or 0) >= 0.7 for row in listed(ModelFilter("shufflenet", ("torchvision",), min_top1=0.7)))
    assert [row.name for row in listed(ModelFilter(None, ("torchvision", "bundled"), on_disk=True))] == [
        f"efficientnet_lite{number}" for number in range(3)
    ]


def test_unknown_values_come_last_in_either_direction() -> None:
    request = ModelFilter("resnet18", ("torchvision", "timm"))
    for reverse in (False, True):
        assert listed(request, "top1", reverse=reverse)[0].name == "resnet18"

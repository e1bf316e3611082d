import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torchvision

from tl_cli.models.list import counting
from tl_cli.models.list.completion import complete, registered
from tl_cli.models.list.count_cache import CountCache
from tl_cli.models.list.published import architectures
from tl_cli.models.list.rows import ModelFilter, Row, SortKey, list_models
from tl_cli.models.zoo import registry

SMALL = ModelFilter(pattern="s[hq]*net*", libraries=("torchvision",))


def listed(
    wanted: ModelFilter, sort: SortKey = "name", *, reverse: bool = False, limit: int | None = None
) -> list[Row]:
    with CountCache() as cache:
        return list_models(wanted, sort, reverse=reverse, limit=limit, cache=cache, counted=lambda done, total: None)[0]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TL_CACHE_DIR", str(tmp_path))


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_names_for_completion_are_the_librarys_own(library: str) -> None:
    theirs = (
        torchvision.models.list_models(module=torchvision.models) if library == "torchvision" else timm.list_models()
    )
    assert sorted(registered(library)) == sorted(theirs)


def test_completion_offers_timm_once_its_prefix_is_begun() -> None:
    assert complete("resnet1") == ["resnet101", "resnet152", "resnet18"]
    assert complete("ti") == ["timm/"]
    assert "timm/resnet18" in complete("timm/resnet18")
    assert len(complete("")) == 82


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v3_small", "vit_b_32", "swin_t", "densenet121", "regnet_y_400mf"]
)
def test_counts_are_the_published_ones(name: str) -> None:
    meta = torchvision.models.get_model_weights(name)["DEFAULT"].meta
    found = counting.count(name, registry.about(name).input_size)
    assert found is not None
    assert found.parameters == meta["num_params"]
    assert found.multiply_adds / 1e9 == pytest.approx(meta["_ops"], rel=0.02)


def test_accuracies_are_torchvisions_and_never_invented() -> None:
    rows = {row.name: row for row in listed(ModelFilter(pattern="resnet18"), limit=None)}
    assert rows["resnet18"].top1 == 0.69758
    assert rows["timm/resnet18"].top1 is None
    assert rows["resnet18"].parameters == rows["timm/resnet18"].parameters == 11_689_512


def test_counts_are_kept_and_not_counted_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = listed(SMALL)
    assert json.loads((tmp_path / "measured" / "counts.json").read_text())
    monkeypatch.setattr(counting, "count", None)
    assert listed(SMALL) == first


@pytest.mark.parametrize("content", ["", "[]", '{"resnet18@224 torchvision 0": "x"}', "\x00"])
def test_a_damaged_cache_is_counted_anew(content: str, tmp_path: Path) -> None:
    (tmp_path / "counts.json").write_text(content)
    with CountCache(tmp_path / "counts.json") as cache:
        assert cache.count("squeezenet1_1", "torchvision", 224) is not None


def test_only_what_is_shown_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[str] = []
    real = counting.count
    monkeypatch.setattr(counting, "count", lambda name, size: counted.append(name) or real(name, size))
    rows = listed(SMALL, limit=2)
    assert [row.name for row in rows] == counted == ["shufflenet_v2_x0_5", "shufflenet_v2_x1_0"]


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
        "efficientnet_lite0"
    ]


def test_what_is_not_known_stands_last_in_either_direction() -> None:
    wanted = ModelFilter("resnet18", ("torchvision", "timm"))
    for reverse in (False, True):
        assert listed(wanted, "top1", reverse=reverse)[0].name == "resnet18"


def test_a_listing_from_the_cache_is_the_libraries_own_and_imports_no_torch(tmp_path: Path) -> None:
    expected = [
        [name, registry.about(name).input_size, registry.about(name).top1] for name in registry.names("bundled")
    ]
    code = (
        "import json, sys; from tl_cli.models.list.published import architectures\n"
        "found = [[each.name, each.input_size, each.top1] for each in architectures('bundled')]\n"
        "print(json.dumps([found, sorted({'torch', 'timm', 'torchvision'} & set(sys.modules))]))"
    )
    outputs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(2)
    ]
    (first, _), (second, imported) = (json.loads(each.stdout) for each in outputs)
    assert first == second == expected
    assert imported == []


def test_a_downloaded_file_is_seen_by_the_next_listing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))

    def on_disk() -> set[str]:
        return {each.name for each in architectures("torchvision") if each.on_disk}

    assert on_disk() == set()
    url = torchvision.models.ResNet18_Weights.DEFAULT.url
    path = tmp_path / "torch" / "hub" / "checkpoints" / url.rpartition("/")[2]
    path.parent.mkdir(parents=True)
    path.touch()
    assert on_disk() == {"resnet18"}
    path.unlink()
    assert on_disk() == set()

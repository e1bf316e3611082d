import json
from pathlib import Path

import pytest
import torchvision

from tests.support.server import Server


@pytest.fixture(autouse=True)
def own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TL_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


@pytest.mark.parametrize("width", ["40", "80", "200"])
def test_the_list_fits_the_terminal_and_describes_each_family(tl, width: str, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", width)
    result = tl("models", "squeezenet", "--source", "torchvision")
    assert result.code == 0
    assert max(map(len, result.out.splitlines())) <= int(width)
    assert "SqueezeNet, 2016" in result.out
    assert "58.2%" in result.out


def test_without_a_pattern_it_lists_torchvision_and_suggests_timm(tl) -> None:
    out = tl("models", "--limit", "1").out
    assert "AlexNet, 2012" in out
    assert "1 of 83 shown" in out
    assert "tl models --source timm" in out


def test_json_holds_every_value_and_null_for_the_unknown(tl) -> None:
    rows = json.loads(tl("models", "list", "resnet18", "--json").out)
    assert {row["library"] for row in rows} == {"torchvision", "timm"}
    assert next(row for row in rows if row["name"] == "timm/resnet18")["imagenet_top1"] is None


def test_an_unknown_name_suggests_the_nearest_names(tl) -> None:
    result = tl("models", "resnt18")
    assert result.code == 2
    assert "resnet18" in result.err


@pytest.mark.parametrize("value", ["x", "-1M", "1Q", ""])
def test_a_bound_that_is_no_number_is_refused(tl, value: str) -> None:
    result = tl("models", "--max-params", value)
    assert result.code == 2
    assert "--max-params" in result.err


def test_pull_downloads_weights(tl, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib
    import io

    import torch

    buffer = io.BytesIO()
    torch.save({"weight": torch.zeros(2)}, buffer)
    path = f"/net-{hashlib.sha256(buffer.getvalue()).hexdigest()[:8]}.pth"
    server.files[path] = buffer.getvalue()
    monkeypatch.setattr(torchvision.models.SqueezeNet1_1_Weights.DEFAULT.value, "url", server.url + path)
    assert tl("models", "pull", "squeezenet1_1", "efficientnet_lite0").code == 0
    assert (tmp_path / "torch" / "hub" / "checkpoints" / path[1:]).exists()
    rows = json.loads(tl("models", "squeezenet1_1", "--source", "torchvision", "--json").out)
    assert rows[0]["weights_on_disk"] is True


def test_pull_refuses_a_mistyped_name_before_any_download(tl, server: Server) -> None:
    result = tl("models", "pull", "squeezenet1_1", "resnt18")
    assert result.code == 2
    assert server.requests == []


def test_pull_continues_after_a_failure_and_reports_it(tl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        torchvision.models.SqueezeNet1_1_Weights.DEFAULT.value, "url", "http://127.0.0.1:9/n-01234567.pth"
    )
    result = tl("models", "pull", "squeezenet1_1", "efficientnet_lite0")
    assert result.code == 1
    assert "efficientnet_lite0 is on this machine" in result.out
    assert "127.0.0.1:9" in result.err

"""Missing weights and data are named before anything is decoded or trained, and a dry run downloads nothing."""

from dataclasses import replace
from pathlib import Path

import pytest
import torchvision

from tests.support.server import Server
from tl_cli.data.sources.catalogue import SETS, File
from tl_cli.tracking.store import open_store

# No server listens on this port.
NOWHERE = "http://127.0.0.1:9"
FIRST, SECOND = torchvision.models.ShuffleNet_V2_X0_5_Weights, torchvision.models.SqueezeNet1_1_Weights
OPTIONS = ("--input-size", "32", "--epochs", "1", "--freeze-epochs", "0", "--no-probe")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty TORCH_HOME; returns the folder of torch's weights."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub" / "checkpoints"


def publish(monkeypatch: pytest.MonkeyPatch, weights: type, url: str) -> str:
    monkeypatch.setattr(weights.DEFAULT.value, "url", f"{url}/{weights.__name__}-0123abcd.pth")
    return f"{url}/{weights.__name__}-0123abcd.pth"


def publish_data(monkeypatch: pytest.MonkeyPatch, url: str) -> str:
    row = replace(SETS["cifar10"], files=(File(f"{url}/cifar.tar.gz", "0" * 32),))
    monkeypatch.setitem(SETS, "cifar10", row)  # type: ignore[arg-type]
    return f"{url}/cifar.tar.gz"


def test_a_dry_run_fetches_no_weights_and_names_their_source(
    tl, home: Path, server: Server, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = publish(monkeypatch, FIRST, server.url)
    result = tl("train", "shufflenet_v2_x0_5", "--data", colours, *OPTIONS, "--dry-run")
    assert result.code == 0
    output = "".join(result.out.split())
    assert url in output
    assert str(home) in output
    assert "total" in result.out
    assert "random weights" not in result.err  # a run will use the published ones
    assert server.requests == []
    assert not home.exists()


def test_a_dry_run_without_the_images_shows_the_settings_alone(
    tl, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = publish_data(monkeypatch, server.url)
    options = ("--data-dir", tmp_path / "data", "--weights", "none", *OPTIONS)
    result = tl("train", "shufflenet_v2_x0_5", *options, "--data", "cifar10", "--dry-run")
    assert result.code == 0
    output = "".join(result.out.split())
    assert url in output
    assert str(tmp_path / "data" / "archives" / "cifar10") in output
    assert "noestimatewithouttheimages" in output
    assert server.requests == []
    assert not (tmp_path / "data").exists()


def test_weights_and_data_that_cannot_be_reached_are_named_together(
    tl, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    urls = publish(monkeypatch, FIRST, NOWHERE), publish_data(monkeypatch, NOWHERE)
    result = tl("train", "shufflenet_v2_x0_5", "--data", "cifar10", "--data-dir", tmp_path / "data", *OPTIONS)
    assert result.code == 1
    output = "".join(result.err.split())
    for part in (*urls, home, "--weightsFILE", tmp_path / "data" / "archives" / "cifar10", "--data-dir"):
        assert str(part) in output


@pytest.mark.parametrize("weights", ["default", "missing.pth"])
def test_missing_weights_are_reported_before_an_image_is_decoded(
    tl, home: Path, colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: str
) -> None:
    publish(monkeypatch, FIRST, NOWHERE)
    data = tmp_path / "pictures"
    for name in ("a", "b"):
        (data / name).mkdir(parents=True)
        for index in range(12):
            (data / name / f"{index}.png").write_bytes(b"not a picture")
    result = tl("train", "shufflenet_v2_x0_5", "--data", data, "--weights", weights, *OPTIONS)
    assert ("cannot fetch" if weights == "default" else "no weights at missing.pth") in result.err
    assert "picture" not in result.err.replace(str(data), "")


def test_a_comparison_trains_nothing_if_one_model_is_missing(
    tl, home: Path, server: Server, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = publish(monkeypatch, FIRST, NOWHERE)
    publish(monkeypatch, SECOND, server.url)
    result = tl("compare", "--models", "squeezenet1_1", "shufflenet_v2_x0_5", "--data", colours, *OPTIONS)
    assert result.code == 1
    assert url in "".join(result.err.split())
    assert "training 1 of" not in result.out
    assert list(open_store(None).runs()) == []


def test_a_failed_pull_suggests_another_command(tl, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    urls = publish(monkeypatch, FIRST, NOWHERE), publish(monkeypatch, SECOND, NOWHERE)
    result = tl("models", "pull", "shufflenet_v2_x0_5", "squeezenet1_1")
    assert result.code == 1
    output = "".join(result.err.split())
    assert all(url in output for url in urls)
    assert str(home) in output
    assert "models pull" not in result.err

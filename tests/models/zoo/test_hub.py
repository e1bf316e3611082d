from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import constants

from tests.support.server import Server
from tests.support.zoo import publish
from tl_cli.errors import DownloadError
from tl_cli.models.zoo import registry


def test_weights_are_downloaded_into_the_hubs_cache(hub: Server) -> None:
    published = timm.create_model("resnet18", num_classes=1000)
    sha = publish(hub, "timm/resnet18.a2_in1k", "model.safetensors", published)
    seen: list[tuple[str, int, int | None]] = []
    assert registry.about("timm/resnet18.a2_in1k").on_disk is False
    classifier = registry.create("timm/resnet18.a2_in1k", 10, progress=lambda *now: seen.append(now))
    assert (classifier.name, classifier.head, classifier.head_is_new) == ("timm/resnet18", ("fc",), True)
    assert (classifier.weights.name, classifier.weights.sha256) == ("timm:resnet18.a2_in1k", sha)
    assert torch.equal(classifier.model.conv1.weight, published.conv1.weight)
    size = len(hub.files["/timm/resnet18.a2_in1k/resolve/main/model.safetensors"])
    assert seen[-1] == ("resnet18.a2_in1k", size, size, "bytes")
    assert registry.about("timm/resnet18.a2_in1k").on_disk is True
    hub.requests.clear()
    assert registry.create("timm/resnet18", 1000, weights="a2_in1k").head_is_new is False
    assert hub.requests == []


def test_a_damaged_file_in_the_cache_is_not_used(hub: Server) -> None:
    publish(hub, "timm/resnet18.a1_in1k", "model.safetensors", timm.create_model("resnet18"))
    registry.fetch_weights("timm/resnet18")
    (blob,) = (Path(constants.HF_HUB_CACHE) / "models--timm--resnet18.a1_in1k" / "blobs").glob("?" * 64)
    content = bytearray(blob.read_bytes())
    content[-5] ^= 1
    blob.write_bytes(content)
    with pytest.raises(DownloadError, match="not the published file"):
        registry.create("timm/resnet18", 10)


def test_without_network_the_error_gives_alternatives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DownloadError, match=r"from http://127\.0\.0\.1:9/timm/resnet18\..*--weights FILE"):
        registry.create("timm/resnet18", 10)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE is set"):
        registry.create("timm/resnet18", 10)

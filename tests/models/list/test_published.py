import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision

from tl_cli.models.list.published import architectures, hub_folder
from tl_cli.models.zoo import registry


@pytest.mark.parametrize("variable", ["TORCH_HOME", "XDG_CACHE_HOME", "HOME"])
def test_the_folder_of_weights_is_that_of_torch(variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    assert hub_folder() == Path(torch.hub.get_dir())


@pytest.mark.slow
def test_a_cached_listing_equals_the_libraries_facts_and_imports_no_torch(tmp_path: Path) -> None:
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

import json
from pathlib import Path

import safetensors.torch
import torch

from tl_cli.models.zoo import registry


def test_a_folder_is_exported_whole_and_replaced_only_with_force(tl, saved: Path, tmp_path: Path) -> None:
    options = ("export", saved, "--format", "folder", "--output", tmp_path / "copy")
    assert tl(*options).code == 0
    expected, written = (
        safetensors.torch.load_file(folder / "model.safetensors") for folder in (saved, tmp_path / "copy")
    )
    assert {name: tensor.tolist() for name, tensor in written.items()} == {
        name: tensor.tolist() for name, tensor in expected.items()
    }
    refused = tl(*options)
    assert refused.code == 2
    assert "exists already" in refused.err
    assert tl(*options, "--force").code == 0


def test_a_program_has_the_logits_of_the_model(tl, saved: Path, tmp_path: Path) -> None:
    result = tl("export", saved, "--format", "pt2", "--output", tmp_path / "model.pt2", "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["format"] == "pt2"
    classifier, _ = registry.restore(saved)
    how = classifier.preprocessing
    images = 255 * torch.rand(2, 3, how.crop, how.crop, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(values)[:, None, None] for values in (how.mean, how.std))
    with torch.inference_mode():
        expected = classifier.model.eval()((images / 255 - mean) / std)
        found = torch.export.load(tmp_path / "model.pt2").module()(images)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)

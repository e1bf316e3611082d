from pathlib import Path

import safetensors.torch


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

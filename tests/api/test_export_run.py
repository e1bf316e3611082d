"""``export`` writes a model that other programs read, and refuses to overwrite files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.api.conftest import Project, Silent
from tl_cli import ExportRequest, export
from tl_cli.errors import RunNotFoundError, UsageError


def test_the_folder_format_is_the_saved_model_itself(project: Project, tmp_path: Path) -> None:
    result = export(ExportRequest("first", "folder", tmp_path / "copy"), Silent())
    for name in ("model.json", "model.safetensors"):
        assert (tmp_path / "copy" / name).read_bytes() == (project.runs[0].model / name).read_bytes()
    assert result.to_dict() == {
        "model": f"first ({project.runs[0].run_id[:8]})", "format": "folder", "path": str(tmp_path / "copy"),
        "bytes": None, "input_size": 32, "classes": ["blue", "green", "red"], "temperature": result.temperature,
        "check": None,
    }  # fmt: skip
    assert str(tmp_path / "copy") in result._repr_html_()
    with pytest.raises(UsageError, match="exists already; give --force"):
        export(ExportRequest("first", "folder", tmp_path / "copy"))
    export(ExportRequest("first", "folder", tmp_path / "copy", force=True))


@pytest.mark.slow
def test_an_exported_program_gives_the_probabilities_of_the_model(project: Project, tmp_path: Path) -> None:
    result = export(ExportRequest("first", "pt2", tmp_path / "model.pt2"), Silent())
    assert result.bytes == (tmp_path / "model.pt2").stat().st_size
    assert result.check is not None
    assert (result.check.images, result.check.are_real) == (16, True)
    files = project.list_test_files()[:4]
    pixels = np.stack([np.asarray(Image.open(path)) for path in files]).transpose(0, 3, 1, 2)
    logits = torch.export.load(tmp_path / "model.pt2").module()(torch.from_numpy(pixels.astype(np.float32)))
    probabilities = (logits / result.temperature).softmax(1).detach().numpy()
    np.testing.assert_allclose(probabilities, project.probabilities(project.runs[0], files), atol=1e-4)


def test_an_output_or_a_model_that_cannot_be_used_is_refused(project: Project, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a folder; give the name of a file"):
        export(ExportRequest("first", "onnx", tmp_path))
    with pytest.raises(RunNotFoundError):
        export(ExportRequest("nothing-of-this-name"))

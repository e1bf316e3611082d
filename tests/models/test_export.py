import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from scipy.special import j0

from tests.support.full_disk import largest_file
from tl_cli.contract import DataSpec, ModelCard
from tl_cli.data.preprocess import normalise
from tl_cli.errors import StorageError, TlError, UsageError
from tl_cli.models import bundle, export
from tl_cli.models.classifier import Classifier
from tl_cli.models.zoo import registry


def made(name: str, folder: Path, size: int = 64) -> tuple[Classifier, ModelCard]:
    classifier = registry.create(name, 3, weights="none", input_size=size)
    for parameter in classifier.model.parameters():
        # A head initialised with zeros would give equal logits for all images.
        torch.nn.init.normal_(parameter, std=0.1)
    card = ModelCard(
        architecture=name,
        build_options=classifier.build_options,
        head=classifier.head,
        classes=("ant", "b\u00eae", "c,d"),
        preprocessing=classifier.preprocessing.at(size, whole=True),
        weights=classifier.weights,
        data=DataSpec(source="/nowhere", layout="classes"),
        recipe="default",
        epoch=1,
    )
    bundle.save(folder, classifier.model, card)
    return registry.restore(folder)


PICTURES = torch.randint(0, 256, (3, 3, 64, 64), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "timm/vit_tiny_patch16_224"])
@pytest.mark.parametrize("form", ["onnx", "pt2"])
def test_an_exported_file_has_the_logits_of_the_model_for_any_batch_size(name: str, form: str, tmp_path: Path) -> None:
    classifier, card = made(name, tmp_path / "model")
    with torch.inference_mode():
        expected = classifier.model(normalise(PICTURES, classifier.preprocessing)).numpy()
    path = tmp_path / f"file.{form}"
    (export.write_onnx if form == "onnx" else export.write_pt2)(classifier, card, path)
    run = export.run_onnx if form == "onnx" else export.run_pt2
    for count in (1, 2, 3):
        found = run(path, PICTURES[:count].numpy().astype(np.float32))
        assert np.abs(found - expected[:count]).max() < 1e-4 * max(1, np.abs(expected).max())
    assert sorted(each.name for each in tmp_path.iterdir()) == [path.name, "model"]


@pytest.mark.slow
def test_an_exported_file_contains_classes_and_preprocessing(tmp_path: Path) -> None:
    classifier, card = made("resnet18", tmp_path / "model")
    export.write_onnx(classifier, card, tmp_path / "file.onnx")
    found = {each.key: each.value for each in onnx.load(tmp_path / "file.onnx").metadata_props}
    assert json.loads(found["classes"]) == ["ant", "b\u00eae", "c,d"]
    assert json.loads(found["preprocessing"])["crop"] == 64
    extra = {"classes": "", "preprocessing": ""}
    export.write_pt2(classifier, card, tmp_path / "file.pt2")
    torch.export.load(tmp_path / "file.pt2", extra_files=extra)
    assert json.loads(extra["classes"]) == list(card.classes)


@pytest.mark.slow
def test_the_first_axis_is_called_batch(tmp_path: Path) -> None:
    export.write_onnx(*made("resnet18", tmp_path / "model"), tmp_path / "file.onnx")
    graph = onnx.load(tmp_path / "file.onnx").graph
    shapes = [each.type.tensor_type.shape.dim for each in (*graph.input, *graph.output)]
    assert [dims[0].dim_param for dims in shapes] == ["batch", "batch"]
    assert {dim.dim_param for each in graph.value_info for dim in each.type.tensor_type.shape.dim} <= {"", "batch"}


class Bessel(torch.nn.Module):
    """Uses a function that ONNX does not have."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.special.bessel_j0(images).mean((2, 3))


class Branching(torch.nn.Module):
    """Has a data-dependent branch, which torch.export cannot export."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3)) if images.sum() > 0 else images.sum((2, 3))


@pytest.mark.slow
def test_the_error_of_a_failed_export_gives_the_cause_and_an_alternative(tmp_path: Path) -> None:
    classifier, card = made("resnet18", tmp_path / "model")
    bessel, branching = (replace(classifier, model=model()) for model in (Bessel, Branching))
    with pytest.raises(TlError, match=r"as ONNX: .*No ONNX function found for .*bessel_j0.*Try --format pt2"):
        export.write_onnx(bessel, card, tmp_path / "file.onnx")
    assert not (tmp_path / "file.onnx").exists()
    export.write_pt2(bessel, card, tmp_path / "file.pt2")
    found = export.run_pt2(tmp_path / "file.pt2", PICTURES.numpy().astype(np.float32))
    values = normalise(PICTURES, classifier.preprocessing).numpy()
    np.testing.assert_allclose(found, j0(values).mean((2, 3)), atol=1e-5)
    for write in (export.write_onnx, export.write_pt2):
        with pytest.raises(TlError, match=r"data-dependent.*--format folder") as failed:
            write(branching, card, tmp_path / "other")
        assert "pt2" not in str(failed.value)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["onnx", "pt2"])
def test_a_full_disk_is_reported(form: str, tmp_path: Path) -> None:
    classifier, card = made("timm/test_resnet", tmp_path / "model")
    path = tmp_path / f"file.{form}"
    path.write_bytes(b"old")
    with largest_file(20_000), pytest.raises(StorageError, match=r"cannot write .*file\."):
        (export.write_onnx if form == "onnx" else export.write_pt2)(classifier, card, path)
    assert path.read_bytes() == b"old"
    assert sorted(each.name for each in tmp_path.iterdir()) == [path.name, "model"]


def test_a_file_that_fails_its_check_is_not_kept(tmp_path: Path) -> None:
    classifier, card = made("resnet18", tmp_path / "model")

    def refuse(written: Path) -> None:
        assert written.stat().st_size > 1000
        raise TlError("no")

    (tmp_path / "file.pt2").write_bytes(b"old")
    with pytest.raises(TlError, match="no"):
        export.write_pt2(classifier, card, tmp_path / "file.pt2", refuse)
    assert (tmp_path / "file.pt2").read_bytes() == b"old"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file.pt2", "model"]


def test_the_error_for_a_missing_package_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(UsageError, match=r"pip install 'tl-train\[export\]'"):
        export.write_onnx(*made("resnet18", tmp_path / "model"), tmp_path / "file.onnx")


def test_a_file_that_is_not_onnx_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.onnx"
    path.write_bytes(b"nothing")
    with pytest.raises(TlError, match="onnxruntime cannot run"):
        export.run_onnx(path, np.zeros((1, 3, 8, 8), np.float32))

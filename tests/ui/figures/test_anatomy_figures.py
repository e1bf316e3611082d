from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tl_cli.api.inspection_results import BlockMaps, CamResult, DriftResult, FeaturesResult, Heatmap, ResidualsResult
from tl_cli.evaluation.intervals import wilson
from tl_cli.inspection.drift import LayerDrift
from tl_cli.inspection.features import Neighbourhood
from tl_cli.inspection.residual_effects import Effect, ResidualReport, Strength
from tl_cli.inspection.residuals import Residual
from tl_cli.ui.figures.anatomy_figures import save_inspection

HOSTILE = "[/]\x1b[31m\u202eevil$x_1$"


def report(*, labelled: bool) -> ResidualReport:
    residuals = (
        Residual("one", "", ("conv",), "identity", 0, True, (2, 8, 4, 4)),
        Residual(HOSTILE, "", ("conv",), "projection", 1, True, (2, 8, 4, 4)),
    )
    strengths = (Strength(10.0, 5.0, 0.5, None, 0.2), Strength(9.0, 5.0, 0.4, -0.1, 0.2))
    known = (0.4, 1.5, 0.001) if labelled else (None, None, None)
    effects = ((Effect(0.0, 0.5, 0.3, *known), Effect(0.5, 0.9, 0.1, *known)),) * 2
    return ResidualReport(residuals, strengths, effects, 0.9 if labelled else None, 0.3 if labelled else None, 64)


def is_drawn(path: Path) -> bool:
    """Return whether a figure has a usual size and is not blank."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("L"))
    return min(pixels.shape) > 150 and pixels.std() > 5


@pytest.mark.parametrize("labelled", [True, False])
def test_residuals_and_the_maps_of_a_block_are_drawn(tmp_path: Path, labelled: bool) -> None:
    residuals = report(labelled=labelled)
    maps = tuple(torch.rand(5, 6, 6) for _ in range(3))
    block = BlockMaps(residuals.residuals[0], torch.zeros(3, 32, 32, dtype=torch.uint8), maps)
    result = ResidualsResult(
        title=f"net {HOSTILE}", model="net", report=residuals, before=residuals, against=HOSTILE, block=block
    )
    paths = save_inspection(result, tmp_path)
    assert [path.name for path in paths] == ["residuals.png", "residual_parts.png"]
    assert all(map(is_drawn, paths))
    plain = replace(result, report=replace(residuals, effects=((), ())), before=None, block=None)
    (path,) = save_inspection(plain, tmp_path)
    assert is_drawn(path)
    with Image.open(path) as without, Image.open(paths[0]) as again:
        assert without.size == again.size
    assert save_inspection(ResidualsResult(title="net", model="net"), tmp_path) == []


def test_drift_is_drawn_also_without_statistics_and_similarity(tmp_path: Path) -> None:
    layers = (
        LayerDrift("stem", 100, 0.0, 0.1, 1.0, False),
        LayerDrift(HOSTILE, 200, 0.25, None, -0.1, False),
        LayerDrift("head", 5, None, None, None, True),
    )
    result = DriftResult(title="net", model="net", against="x", source="data", images=4, layers=layers)
    assert all(map(is_drawn, save_inspection(result, tmp_path)))
    bare = tuple(replace(each, statistics=None, similarity=None) for each in layers)
    (path,) = save_inspection(replace(result, layers=bare), tmp_path)
    assert path == tmp_path / "drift.png"
    assert is_drawn(path)


@pytest.mark.parametrize("classes", [3, 40])
def test_a_map_is_drawn_for_few_and_many_classes(tmp_path: Path, classes: int) -> None:
    labels = np.arange(80) % classes
    points = np.random.default_rng(0).normal(size=(80, 2))
    neighbourhood = Neighbourhood(None, wilson(40, 80), 5, 50, None, points, labels)
    names = tuple(f"class {HOSTILE} {label}" for label in range(classes))
    ids = tuple(map(str, range(80)))
    result = FeaturesResult(
        title="net", model="net", source="data", ids=ids, images=80, classes=names, neighbourhood=neighbourhood
    )
    (path,) = save_inspection(result, tmp_path)
    assert is_drawn(path)


def test_each_image_is_beside_its_heatmap(tmp_path: Path) -> None:
    heat = torch.zeros(32, 32)
    heat[:16] = 1
    picture = torch.full((3, 32, 32), 128, dtype=torch.uint8)
    heatmap = Heatmap("cat.png", "cat", 0.9, None, picture, heat)
    result = CamResult(title="net", model="net", images=1, heatmaps=(heatmap,), layer="layer4", grid=(4, 4))
    (path,) = save_inspection(result, tmp_path)
    with Image.open(path) as sheet:
        pixels = np.asarray(sheet.convert("RGB")).astype(int)
    half = pixels.shape[1] // 2
    grey = abs(pixels[:, :, 0] - pixels[:, :, 2])
    # The image is grey; its heatmap is coloured where the heat is high.
    assert grey[6:250, 10 : half - 10].max() <= 2
    assert grey[10:120, half + 10 : -10].mean() > 40
    assert save_inspection(replace(result, heatmaps=()), tmp_path) == []

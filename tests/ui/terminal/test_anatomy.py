from dataclasses import replace
from io import StringIO

import numpy as np
import pytest
import torch
from rich.console import Console

from tl_cli.api.inspection_results import (
    BlockMaps,
    CamResult,
    DriftResult,
    FeaturesResult,
    Heatmap,
    ResidualsResult,
    TreeResult,
)
from tl_cli.contract import Preprocessing
from tl_cli.evaluation.intervals import wilson
from tl_cli.inspection.drift import LayerDrift
from tl_cli.inspection.features import Neighbourhood
from tl_cli.inspection.residual_effects import Effect, ResidualReport, Strength
from tl_cli.inspection.residuals import Residual
from tl_cli.inspection.summary import summarize
from tl_cli.ui.terminal import anatomy
from tl_cli.ui.terminal.console import THEME

HOSTILE = "[/]\x1b[31m\u202eevil" + "x" * 300


def console(width: int, *, colour: bool = False, encoding: str = "utf-8") -> tuple[Console, StringIO]:
    class Stream(StringIO):
        @property
        def encoding(self) -> str:  # type: ignore[override]
            return encoding

    out = Stream()
    system = "truecolor" if colour else None
    return Console(file=out, width=width, theme=THEME, color_system=system, force_terminal=colour, highlight=False), out


def report_of(names: tuple[str, ...] = ("one", "two"), *, labelled: bool = True) -> ResidualReport:
    residuals = tuple(
        Residual(name, "", ("conv", "bn"), "identity", index, True, (2, 8, 4, 4)) for index, name in enumerate(names)
    )
    strengths = tuple(Strength(10.0 + index, 5.0, 0.5 / (index + 1), -0.1, 0.2) for index in range(len(names)))
    known = (0.4, 1.5, 0.001) if labelled else (None, None, None)
    effects = tuple((Effect(0.0, 0.5, 0.3, *known), Effect(0.5, 0.9, 0.1, *known)) for _ in names)
    return ResidualReport(residuals, strengths, effects, 0.9 if labelled else None, 0.3 if labelled else None, 64)


def residuals(report: ResidualReport, before: ResidualReport | None = None) -> ResidualsResult:
    return ResidualsResult(
        title=f"net {HOSTILE}", model="net", source="data", report=report, before=before, against="pretrained"
    )


def fits(out: StringIO, width: int) -> str:
    text = out.getvalue()
    assert all(len(line) <= width for line in text.splitlines()), max(text.splitlines(), key=len)
    return text


@pytest.mark.parametrize("width", [40, 64, 80, 120, 200])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("labelled", [True, False])
def test_residuals_fit_the_terminal(width: int, encoding: str, labelled: bool) -> None:
    screen, out = console(width, encoding=encoding)
    residuals_found = report_of(("layer1.0", HOSTILE), labelled=labelled)
    anatomy.print_residuals(screen, residuals(residuals_found, residuals_found if width > 64 else None))
    text = fits(out, width)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "layer1.0" in text
    assert ("-50.0" in text) == labelled
    assert ("50%" in text) != labelled
    if encoding == "ascii":
        text.encode("ascii")
    if width >= 120:
        assert "before" in text
        assert "|x|" in text


def test_differences_that_are_not_significant_are_marked() -> None:
    residuals_found = report_of()
    effects = tuple(tuple(replace(each, p_value=0.5) for each in row) for row in residuals_found.effects)
    screen, out = console(100)
    anatomy.print_residuals(screen, residuals(replace(residuals_found, effects=effects)))
    assert "~-50.0" in out.getvalue()
    assert "no significant change in accuracy" in " ".join(out.getvalue().split())


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_the_tree_fits_and_no_number_is_cut(width: int, encoding: str) -> None:
    root = summarize("vit_b_32", 10, 224)
    screen, out = console(width, encoding=encoding)
    result = TreeResult(
        title="vit",
        model="vit_b_32",
        num_classes=10,
        head=("heads.head",),
        preprocessing=Preprocessing(resize=256, crop=224),
        root=root,
        notes=("a line",),
    )
    anatomy.print_tree(screen, result, 4)
    text = fits(out, width)
    lines = text.splitlines()
    total = next(line for line in lines if line.startswith("VisionTransformer"))
    assert (f"{root.parameters:,}" if width >= 60 else "87.5M") in total
    rows = [line for line in lines if "ln_1" in line]
    assert len(rows) == 12
    assert all(("1,536" if width >= 60 else "1.54k") in line for line in rows)
    if encoding == "ascii":
        text.encode("ascii")


@pytest.mark.parametrize("width", [40, 80, 200])
def test_drift_fits_the_terminal_and_names_the_changed_layers(width: int) -> None:
    layers = [
        LayerDrift("stem", 100, 0.0, None, 1.0, False), LayerDrift(HOSTILE, 200, 0.25, 0.1, 0.5, False),
        LayerDrift("blown", 10, 123.0, None, -0.1, False), LayerDrift("head", 5, None, None, None, True),
    ]  # fmt: skip
    screen, out = console(width)
    result = DriftResult(title="net", model="net", against="pretrained", source="data", images=4, layers=tuple(layers))
    anatomy.print_drift(screen, result)
    text = fits(out, width)
    assert "25.00%" in text
    assert "123x" in text
    assert "1 layer has not moved at all" in " ".join(text.split())
    assert "\x1b" not in text
    screen, out = console(width)
    anatomy.print_drift(screen, replace(result, layers=()))
    anatomy.print_drift(screen, replace(result, layers=tuple(replace(each, moved=0.0) for each in layers)))
    assert "has not moved at all" in " ".join(out.getvalue().split())


@pytest.mark.parametrize("width", [40, 80])
@pytest.mark.parametrize("count", [1, 3, 200])
def test_a_map_of_features_fits_with_all_its_classes_named(width: int, count: int) -> None:
    labels = np.arange(count) % 90
    points = np.random.default_rng(0).normal(size=(count, 2)) if count > 1 else np.zeros((1, 2))
    neighbourhood = Neighbourhood(wilson(0, count), wilson(count, count), 5, 50, 0.5, points, labels)
    classes = [f"class {label}" for label in range(89)] + [HOSTILE]
    screen, out = console(width)
    ids = tuple(str(index) for index in range(count))
    result = FeaturesResult(
        title="net",
        model="net",
        source="data",
        ids=ids,
        images=count,
        classes=tuple(classes),
        neighbourhood=neighbourhood,
    )
    anatomy.print_features(screen, result)
    text = fits(out, width)
    assert "a class 0" in text
    assert "5-NN" in text
    assert "\x1b" not in text


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("count", [1, 4, 7])
@pytest.mark.parametrize("colour", [True, False])
def test_heatmaps_are_shown_over_images_or_as_characters(width: int, count: int, colour: bool) -> None:
    heatmaps = tuple(
        Heatmap(f"{number}.png", f"a{number}", 0.9, HOSTILE[:30], torch.randint(0, 255, (3, 32, 32)).byte(), heat)
        for number, heat in enumerate(torch.rand(count, 32, 32))
    )
    screen, out = console(width, colour=colour)
    result = CamResult(title="net", model="net", images=9, heatmaps=heatmaps, layer="layer4", grid=(4, 4))
    anatomy.print_heatmaps(screen, result)
    text = out.getvalue()
    assert ("\x1b[38;2;" in text) == colour
    assert all(f"a{number}" in text for number in range(count))
    assert "Grad-CAM at layer4" in text
    assert "\u202e" not in text
    if not colour:
        fits(out, width)


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_maps_of_a_block_are_shown(width: int) -> None:
    residual = report_of().residuals[0]
    picture = torch.zeros(3, 32, 32, dtype=torch.uint8)
    maps = tuple(torch.rand(5, 6, 6) * scale for scale in (1.0, 0.2, 1.1))
    for colour in (True, False):
        screen, out = console(width, colour=colour)
        anatomy.print_block_maps(screen, BlockMaps(residual, picture, maps))
        assert all(title in out.getvalue() for title in ("the picture", "F(x)", "x + F(x)"))
    zeros = (torch.zeros(5, 6, 6),) * 3
    anatomy.print_block_maps(console(width)[0], BlockMaps(residual, picture, zeros))


def test_results_without_findings_are_explained() -> None:
    screen, out = console(80)
    anatomy.print_inspection(screen, ResidualsResult(title="net", model="net"))
    anatomy.print_inspection(screen, CamResult(title="net", model="net", images=1234))
    assert "no residual connections" in out.getvalue()
    assert "no mistakes among 1,234 images" in out.getvalue()


def test_an_image_without_evidence_is_captioned_so() -> None:
    picture = torch.zeros(3, 8, 8, dtype=torch.uint8)
    heatmap = Heatmap("folder/cat.png", "cat", 0.5, None, picture, torch.zeros(8, 8))
    assert heatmap.caption == "cat.png\n50% cat\nno positive evidence"
    assert replace(heatmap, true="dog", heat=torch.ones(8, 8)).caption == "50% cat\nis dog"

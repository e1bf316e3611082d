from dataclasses import replace
from io import StringIO

import numpy as np
import pytest
import torch
from rich.console import Console

from tl_cli.contract import Preprocessing
from tl_cli.evaluation.intervals import wilson
from tl_cli.inspection.dissection import Anatomy, Effect, Strength
from tl_cli.inspection.drift import LayerDrift
from tl_cli.inspection.features import Neighbourhood
from tl_cli.inspection.residuals import Residual
from tl_cli.inspection.summary import summarize
from tl_cli.ui.terminal import anatomy as shown
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


def anatomy(names: tuple[str, ...] = ("one", "two"), *, judged: bool = True) -> Anatomy:
    residuals = tuple(
        Residual(name, "", ("conv", "bn"), "identity", place, True, (2, 8, 4, 4)) for place, name in enumerate(names)
    )
    strengths = tuple(Strength(10.0 + place, 5.0, 0.5 / (place + 1), -0.1, 0.2) for place in range(len(names)))
    known = (0.4, 1.5, 0.001) if judged else (None, None, None)
    effects = tuple((Effect(0.0, 0.5, 0.3, *known), Effect(0.5, 0.9, 0.1, *known)) for _ in names)
    return Anatomy(residuals, strengths, effects, 0.9 if judged else None, 0.3 if judged else None, 64)


def fits(out: StringIO, width: int) -> str:
    text = out.getvalue()
    assert all(len(line) <= width for line in text.splitlines()), max(text.splitlines(), key=len)
    return text


@pytest.mark.parametrize("width", [40, 64, 80, 120, 200])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("judged", [True, False])
def test_residuals_fit_the_terminal(width: int, encoding: str, judged: bool) -> None:
    screen, out = console(width, encoding=encoding)
    found = anatomy(("layer1.0", HOSTILE), judged=judged)
    shown.print_residuals(screen, f"net {HOSTILE}", "data", found, found if width > 64 else None, against="pretrained")
    text = fits(out, width)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "layer1.0" in text
    assert ("-50.0" in text) == judged
    assert ("50%" in text) != judged
    if encoding == "ascii":
        text.encode("ascii")
    if width >= 120:
        assert "before" in text
        assert "|x|" in text


def test_what_may_be_chance_is_marked() -> None:
    found = anatomy()
    effects = tuple(tuple(replace(each, p_value=0.5) for each in row) for row in found.effects)
    screen, out = console(100)
    shown.print_residuals(screen, "net", "data", replace(found, effects=effects), None)
    assert "~-50.0" in out.getvalue()
    assert "no more than by chance" in " ".join(out.getvalue().split())


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_the_tree_fits_and_is_never_cut_in_its_numbers(width: int, encoding: str) -> None:
    root = summarize("vit_b_32", 10, 224)
    screen, out = console(width, encoding=encoding)
    shown.print_tree(screen, "vit", ["a line"], root, 4, Preprocessing(resize=256, crop=224))
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
def test_drift_fits_and_says_what_moved(width: int) -> None:
    layers = [
        LayerDrift("stem", 100, 0.0, None, 1.0, False), LayerDrift(HOSTILE, 200, 0.25, 0.1, 0.5, False),
        LayerDrift("blown", 10, 123.0, None, -0.1, False), LayerDrift("head", 5, None, None, None, True),
    ]  # fmt: skip
    screen, out = console(width)
    shown.print_drift(screen, "net", "data", layers)
    text = fits(out, width)
    assert "25.00%" in text
    assert "123x" in text
    assert "1 layer has not moved at all" in " ".join(text.split())
    assert "\x1b" not in text
    screen, out = console(width)
    shown.print_drift(screen, "net", "data", [])
    shown.print_drift(screen, "net", "data", [replace(each, moved=0.0) for each in layers])
    assert "has not moved at all" in " ".join(out.getvalue().split())


@pytest.mark.parametrize("width", [40, 80])
@pytest.mark.parametrize("count", [1, 3, 200])
def test_a_map_of_features_fits_with_all_its_classes_named(width: int, count: int) -> None:
    labels = np.arange(count) % 90
    places = np.random.default_rng(0).normal(size=(count, 2)) if count > 1 else np.zeros((1, 2))
    found = Neighbourhood(wilson(0, count), wilson(count, count), 5, 50, 0.5, places, labels)
    classes = [f"class {label}" for label in range(89)] + [HOSTILE]
    screen, out = console(width)
    shown.print_neighbourhood(screen, "net", "data", found, classes)
    text = fits(out, width)
    assert "a class 0" in text
    assert "5-NN" in text
    assert "\x1b" not in text


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("count", [1, 4, 7])
@pytest.mark.parametrize("colour", [True, False])
def test_heat_is_shown_over_pictures_or_in_shades(width: int, count: int, colour: bool) -> None:
    pictures = [torch.randint(0, 255, (3, 32, 32), dtype=torch.uint8) for _ in range(count)]
    heats = [torch.rand(32, 32) for _ in range(count)]
    screen, out = console(width, colour=colour)
    shown.print_heat(
        screen, pictures, heats, [f"90% a{number}\nis {HOSTILE[:30]}" for number in range(count)], "layer4"
    )
    text = out.getvalue()
    assert ("\x1b[38;2;" in text) == colour
    assert all(f"a{number}" in text for number in range(count))
    assert "Grad-CAM at layer4" in text
    assert "\u202e" not in text
    if not colour:
        fits(out, width)


def test_heat_over_a_picture_is_bright_where_it_is_hot() -> None:
    picture = torch.full((3, 8, 8), 128, dtype=torch.uint8)
    heat = torch.zeros(8, 8)
    heat[:4] = 1
    over = shown.overlaid(picture, heat).float()
    assert over.dtype == torch.float32
    assert over[:, :4].mean() > 1.4 * over[:, 4:].mean()


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_parts_of_a_block_stand_beside_each_other(width: int) -> None:
    residual = anatomy().residuals[0]
    energies = [torch.rand(6, 6) * scale for scale in (1.0, 0.2, 1.1)]
    for colour in (True, False):
        screen, out = console(width, colour=colour)
        shown.print_parts(screen, residual, torch.zeros(3, 32, 32, dtype=torch.uint8), energies)
        assert all(title in out.getvalue() for title in ("the picture", "F(x)", "x + F(x)"))
    zeros = [torch.zeros(6, 6)] * 3
    shown.print_parts(console(width)[0], residual, torch.zeros(3, 32, 32, dtype=torch.uint8), zeros)

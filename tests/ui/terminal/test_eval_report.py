"""The printed report of an evaluation, at every width and on terminals without colours."""

import pytest
import torch
from rich.cells import cell_len

from tests.support.evaluations import evaluation
from tests.support.screens import HOSTILE, make_screen, printed
from tl_cli.contract import Calibration, Split
from tl_cli.data.images import PackedImages
from tl_cli.data.packed_names import Names
from tl_cli.evaluation.calibration import Bin, Reliability
from tl_cli.evaluation.logits import LabelledLogits
from tl_cli.evaluation.measure import Measured
from tl_cli.evaluation.report import make_report
from tl_cli.ui.terminal.eval_report import print_evaluation, reliability_table

SPLIT = Split(count=1, digest="d")


def measured(classes: int, count: int = 300) -> tuple[Measured, list[str]]:
    generator = torch.Generator().manual_seed(classes)
    labels = torch.randint(0, classes, (count,), generator=generator)
    logits = torch.randn(count, classes, generator=generator)
    logits[torch.arange(count), labels] += 2
    pixels = torch.randint(0, 256, (count, 3, 20, 30), generator=generator).to(torch.uint8)
    images = PackedImages(Names.of(f"{HOSTILE}/{n}.png" for n in range(count)), labels.numpy(), pixels)
    names = [HOSTILE, *(f"class number {n}" for n in range(1, classes))]
    return Measured(
        LabelledLogits(logits, labels), images, "/data", "test", SPLIT, True, False, None, (), "", ()
    ), names


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("classes", [2, 10, 60, 300])
@pytest.mark.parametrize("colour", [False, True])
def test_an_evaluation_fits_the_terminal(width: int, classes: int, colour: bool) -> None:
    evaluated, names = measured(classes)
    calibration = Calibration(temperature=1.3, images=30, loss=1.0, held_out_loss=0.9, note="")
    on = make_screen(width, colour=colour)
    print_evaluation(
        on, evaluation(evaluated, make_report(evaluated.labelled, calibration), HOSTILE, names), pictures=6
    )
    text = printed(on)
    assert "top-1" in text
    assert ("top-5" in text) == (classes > 5)
    if not colour:
        assert max(map(len, text.splitlines())) <= width
        assert "\x1b" not in text
    assert "\x1b[31mb" not in text
    assert "\u202e" not in text
    assert ("▄" in text or "▀" in text) == colour


@pytest.mark.parametrize("width", [40, 80])
def test_wide_letters_and_markup_in_names_hide_no_number(width: int) -> None:
    evaluated, _ = measured(6)
    on = make_screen(width)
    names = ["[/red]", "[bold]cat", "\u65e5\u672c\u8a9e" * 4, "\u732b", "a|b", "x" * 50]
    report = make_report(evaluated.labelled, Calibration())
    print_evaluation(on, evaluation(evaluated, report, "model", names), pictures=2)
    text = printed(on)
    assert max(map(cell_len, text.splitlines())) <= width
    assert "[/red]" in text
    if width == 80:
        for number in report.scores.confusion.diagonal():
            assert str(number) in text


def test_an_evaluation_is_printed_in_ascii_on_an_ascii_terminal() -> None:
    evaluated, names = measured(12)
    on = make_screen(80, encoding="ascii")
    report = make_report(evaluated.labelled, Calibration())
    print_evaluation(on, evaluation(evaluated, report, "model", [f"c{n}" for n in range(12)]), pictures=3)
    assert "worst mistakes" in printed(on)


def test_a_model_without_mistakes_shows_none() -> None:
    evaluated, names = measured(3, 30)
    right = LabelledLogits(
        torch.nn.functional.one_hot(evaluated.labelled.labels, 3).float() * 9, evaluated.labelled.labels
    )
    on = make_screen(80)
    print_evaluation(on, evaluation(evaluated, make_report(right, Calibration()), "model", names), pictures=8)
    text = printed(on)
    assert "worst mistakes" not in text
    assert "most confused" not in text


def test_the_mark_of_the_confidence_is_beside_the_bar_where_the_model_is_overconfident() -> None:
    # 36 columns are for numbers, so a bar of accuracy 1 has 50 characters.
    bins = (Bin(0.8, 0.9, 10, 0.8, 5), Bin(0.2, 0.3, 10, 0.2, 6))
    on = make_screen(86)
    on.print(reliability_table(Reliability(0.3, 0.1, bins), on))
    over, under = (line[len("confidence  accuracy  images  ") :].rstrip() for line in printed(on).splitlines()[1:])
    assert over == "█" * 25 + " " * 15 + "┃"
    assert under == "█" * 10 + "┃" + "█" * 20

import pytest

from tests.support.screens import make_screen, printed
from tl_cli.evaluation.classification import ClassScore
from tl_cli.evaluation.intervals import wilson
from tl_cli.inspection.freeze_plan import Part
from tl_cli.training.phases import Phase
from tl_cli.ui.terminal.tables import class_table, format_accuracy, freeze_table

PARTS = [Part("features", False, 1000, (0, 1000, 1000), 4, (0, 4, 4)), Part("fc", True, 10, (10, 10, 10), 0, (0, 0, 0))]
PHASES = [
    Phase("head", 1, 2, 1e-3, 0.0, "frozen"),
    Phase("fine-tune", 3, 3, 1e-3, 1e-4, "train", 1, 2),
    Phase("fine-tune", 4, 9, 5e-4, 5e-5, "train", 2, 2),
]


def test_an_accuracy_is_shown_with_its_interval() -> None:
    # Wilson (1927) by hand, with z = 1.959964: 0.879542 - 0.020083 to 0.879542 + 0.020083.
    assert format_accuracy(wilson(881, 1000)) == "88.10% (85.95-89.96%)"


@pytest.mark.parametrize("width", [40, 80, 130])
def test_a_freeze_plan_fits_and_shows_each_phase(width: int) -> None:
    screen = make_screen(width)
    screen.print(freeze_table(PARTS, PHASES, width))
    text = printed(screen)
    assert max(map(len, text.splitlines())) <= width
    assert "fc (head)" in text
    if width == 130:
        assert " ".join(text.split()) == (
            "part parameters epochs 1-2 epoch 3 epochs 4-9 "
            "features 1,000 frozen; 4 BatchNorm fixed lr 0.0001; 4 BatchNorm update lr 5e-05; 4 BatchNorm update "
            "fc (head) 10 lr 0.001 lr 0.001 lr 0.0005 in all 1,010 10 train 1,010 train 1,010 train"
        )
    else:
        assert "statistics of 4 BatchNorm layers: update from epoch 3" in " ".join(text.split())
        assert "epoch 3: 1,010 train" in text


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_the_weakest_classes_come_first_and_absent_ones_are_left_out(width: int) -> None:
    recalls = [wilson(9, 10), wilson(1, 10), None, *[wilson(10, 10)] * 12]
    scores = [ClassScore(10, 10, each, each, 0.5) for each in recalls]
    screen = make_screen(width)
    screen.print(class_table(scores, ["good", "weak", "absent", *(f"c{n}" for n in range(12))], screen))
    lines = printed(screen).splitlines()
    assert max(map(len, lines)) <= width
    assert [line.split()[0] for line in lines[1:4]] == ["weak", "good", "c0"]
    assert "and 4 better ones" in " ".join(lines)
    assert "absent" not in "\n".join(lines)
    assert lines[2].count("█") == pytest.approx(9 * lines[1].count("█"), abs=5)
    assert ("95% interval" in lines[0]) == (width >= 80)

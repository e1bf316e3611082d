"""What an evaluation and a comparison print, at every width and on poor terminals."""

import io

import numpy as np
import pytest
import torch
from rich.cells import cell_len
from rich.console import Console

from tl_cli.api.evaluation_run import Evaluation
from tl_cli.api.prediction import Prediction, PredictionStream
from tl_cli.contract import Calibration, DataSpec, ModelCard, Preprocessing, Split, WeightsTag
from tl_cli.data.images import PackedImages
from tl_cli.data.packed_names import Names
from tl_cli.evaluation.logits import LabelledLogits, SavedLogits
from tl_cli.evaluation.measure import Measured
from tl_cli.evaluation.ranking import Contender, Cost, Training, compare_all
from tl_cli.evaluation.report import EvaluationReport, make_report
from tl_cli.training.history import EpochEnded, History
from tl_cli.ui.terminal.comparison_tables import as_csv, markdown, print_comparison, save_pictures
from tl_cli.ui.terminal.console import THEME, shortened
from tl_cli.ui.terminal.eval_report import print_evaluation
from tl_cli.ui.terminal.pictures import thumbnail
from tl_cli.ui.terminal.prediction_lines import Lines

HOSTILE = "[red]\x1b[31mb\u202ed"
SPLIT = Split(count=1, digest="d")


def console(width: int, *, colour: bool = False, encoding: str = "utf-8") -> Console:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict", newline="")
    return Console(
        theme=THEME, width=width, file=file, force_terminal=colour, color_system="truecolor" if colour else None,
        highlight=False,
    )  # fmt: skip


def printed(on: Console) -> str:
    on.file.flush()
    return on.file.buffer.getvalue().decode(on.file.encoding)  # type: ignore[attr-defined]


def measured(classes: int, count: int = 300) -> tuple[Measured, list[str]]:
    generator = torch.Generator().manual_seed(classes)
    labels = torch.randint(0, classes, (count,), generator=generator)
    logits = torch.randn(count, classes, generator=generator)
    logits[torch.arange(count), labels] += 2
    pixels = torch.randint(0, 256, (count, 3, 20, 30), generator=generator).to(torch.uint8)
    images = PackedImages(Names.of(f"{HOSTILE}/{n}.png" for n in range(count)), labels.numpy(), pixels)
    names = [HOSTILE, *(f"class number {n}" for n in range(1, classes))]
    return Measured(LabelledLogits(logits, labels), images, "/data", "test", SPLIT, True, False, None, (), ()), names


def evaluation(found: Measured, report: EvaluationReport, name: str, classes: list[str]) -> Evaluation:
    card = ModelCard(
        architecture="resnet18", head=("fc",), classes=classes, preprocessing=Preprocessing(resize=32, crop=32),
        weights=WeightsTag(name="none"), data=DataSpec(source="/data", layout="classes"), recipe="default", epoch=1,
    )  # fmt: skip
    return Evaluation(name, card, found, report, None)


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("classes", [2, 10, 60, 300])
@pytest.mark.parametrize("colour", [False, True])
def test_an_evaluation_fits_the_terminal(width: int, classes: int, colour: bool) -> None:
    found, names = measured(classes)
    calibration = Calibration(temperature=1.3, images=30, loss=1.0, held_out_loss=0.9, note="")
    on = console(width, colour=colour)
    print_evaluation(on, evaluation(found, make_report(found.labelled, calibration), HOSTILE, names), pictures=6)
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
def test_wide_letters_and_markup_in_names_leave_every_number(width: int) -> None:
    found, _ = measured(6)
    on = console(width)
    names = ["[/red]", "[bold]cat", "\u65e5\u672c\u8a9e" * 4, "\u732b", "a|b", "x" * 50]
    report = make_report(found.labelled, Calibration())
    print_evaluation(on, evaluation(found, report, "model", names), pictures=2)
    text = printed(on)
    assert max(map(cell_len, text.splitlines())) <= width
    assert "[/red]" in text
    if width == 80:
        for number in report.scores.confusion.diagonal():
            assert str(number) in text


def test_an_evaluation_is_printed_in_ascii_where_nothing_else_can_be() -> None:
    found, names = measured(12)
    on = console(80, encoding="ascii")
    report = make_report(found.labelled, Calibration())
    print_evaluation(on, evaluation(found, report, "model", [f"c{n}" for n in range(12)]), pictures=3)
    assert "worst mistakes" in printed(on)


def test_a_model_without_mistakes_has_none_to_show() -> None:
    found, names = measured(3, 30)
    right = LabelledLogits(torch.nn.functional.one_hot(found.labelled.labels, 3).float() * 9, found.labelled.labels)
    on = console(80)
    print_evaluation(on, evaluation(found, make_report(right, Calibration()), "model", names), pictures=8)
    text = printed(on)
    assert "worst mistakes" not in text
    assert "most confused" not in text


@pytest.mark.parametrize("size", [(1, 500), (500, 1), (7, 7), (2000, 1500)])
def test_a_thumbnail_keeps_the_shape_and_stays_small(size: tuple[int, int]) -> None:
    on = console(80, colour=True)
    on.print(thumbnail(torch.zeros(3, *size, dtype=torch.uint8), 18))
    rows = printed(on).rstrip("\n").split("\n")
    assert 1 <= len(rows) <= 10


def test_a_name_is_shortened_in_its_middle() -> None:
    assert shortened("short", 10) == "short"
    assert shortened("/home/someone/flowers/first/best", 20) == "/home/som...rst/best"
    assert [cell_len(shortened("\u732b" * 30, room)) <= room for room in range(3, 30)] == [True] * 27


def a_comparison(models: int = 3, seeds: int = 1):
    random = np.random.default_rng(0)
    contenders, curves = [], []
    for number in range(models):
        trainings = []
        for seed in range(seeds):
            right = random.random(200) < 0.6 + 0.1 * number
            labels = torch.zeros(200, dtype=torch.int64)
            logits = torch.nn.functional.one_hot(torch.from_numpy(~right).long(), 2).float()
            ids = tuple(map(str, range(200)))
            trainings.append(
                Training(f"run{seed}", SavedLogits(LabelledLogits(logits, labels), ids, ("a", "b")), 0.9, 60.0)
            )
        cost = Cost(10**6 * (number + 1), None if number == 1 else 10**8, 32, 4 * 10**6, 100.0 * (number + 1))
        contenders.append(Contender(f"{HOSTILE}{number}", tuple(trainings), cost))
        epochs = [EpochEnded(e, e * 10, val_accuracy=0.2 * e, val_loss=1 / e) for e in (1, 2, 3)]
        curves.append([History("run", epochs=epochs)] * seeds)
    return compare_all(contenders), curves


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("seeds", [1, 3])
def test_a_comparison_fits_the_terminal(width: int, seeds: int) -> None:
    on = console(width)
    print_comparison(on, *a_comparison(seeds=seeds))
    text = printed(on)
    assert max(map(len, text.splitlines())) <= width
    for said in ("MACs", "significant differences", "validation accuracy by epoch"):
        assert said in text
    assert "\x1b" not in text
    # Sentences are long, and said to their end.
    assert "".join(text.split()).count("for3pairs)") == 3


def test_a_comparison_as_text_and_pictures(tmp_path) -> None:
    comparison, curves = a_comparison(9)
    assert "\x1b" not in markdown(comparison)
    table = markdown(comparison).splitlines()
    assert [len({line.count("|") for line in part}) for part in (table[:11], table[12:23])] == [1, 1]
    assert len(as_csv(comparison).splitlines()) == 10
    for path in save_pictures(comparison, curves, tmp_path):
        assert path.stat().st_size > 10_000
    assert len(save_pictures(comparison, [[]] * 9, tmp_path)) == 1


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_a_prediction_is_one_line_that_fits(width: int) -> None:
    on = console(width)
    classes = (HOSTILE, "a class of a rather long name indeed", "c")
    stream = PredictionStream("model", False, classes, 1, None, None, iter(()))
    path = "/a/very/long/path/" * 9 + "photo.jpg"
    Lines(on, stream, 3, show=True)(Prediction(path, classes, torch.tensor([0.1, 0.7, 0.2])))
    (line,) = printed(on).splitlines()
    assert len(line) <= max(width, 42)
    assert "70.0%" in line
    if width >= 40:
        assert "o.jpg" in line

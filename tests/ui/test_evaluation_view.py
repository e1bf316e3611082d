import csv
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.support.evaluations import evaluation_of
from tl_cli.api.evaluation_run import Evaluation
from tl_cli.ui import evaluation_view
from tl_cli.ui.evaluation_view import EvaluationView

# Rows are true classes: three of four cats and one of two dogs are predicted correctly.
LABELS = torch.tensor([0, 0, 0, 0, 1, 1])
LOGITS = torch.tensor([[2.0, 0], [2, 0], [2, 0], [0, 2], [0, 2], [2, 0]])


@pytest.fixture
def evaluation() -> Evaluation:
    return evaluation_of(LOGITS, LABELS, ["cat", "dog"])


def test_json_is_all_that_is_printed_to_stdout(evaluation: Evaluation, capsys: pytest.CaptureFixture[str]) -> None:
    view = EvaluationView("json", pictures=2, quiet=False)
    with view:
        view.progress("evaluating", 3, 6)
        view.show(evaluation)
    view.finish(evaluation)
    data = json.loads(capsys.readouterr().out)
    assert data["accuracy"] == pytest.approx(4 / 6)
    assert data["confusion"] == [[3, 1], [1, 1]]


def test_csv_has_a_row_for_each_class(evaluation: Evaluation, capsys: pytest.CaptureFixture[str]) -> None:
    view = EvaluationView("csv", pictures=0, quiet=True)
    view.show(evaluation)
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [(row["class"], row["images"], row["predicted"], float(row["recall"])) for row in rows] == [
        ("cat", "4", "4", 0.75),
        ("dog", "2", "2", 0.5),
    ]


def test_the_table_and_figures_are_written_to_a_folder(evaluation: Evaluation, tmp_path: Path) -> None:
    files = EvaluationView("report", pictures=2, quiet=True).draw(evaluation, tmp_path)
    assert [path.name for path in files] == ["classes.csv", "confusion.png", "reliability.png", "mistakes.png"]
    for path in files[1:]:
        with Image.open(path) as picture:
            assert min(picture.size) > 100


def test_a_closed_stdout_is_reported_after_the_results_are_recorded(
    evaluation: Evaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*arguments: object, **named: object) -> None:
        raise BrokenPipeError

    view = EvaluationView("report", pictures=0, quiet=True)
    monkeypatch.setattr(evaluation_view, "print_evaluation", gone)
    view.show(evaluation)
    with pytest.raises(BrokenPipeError):
        view.finish(evaluation)

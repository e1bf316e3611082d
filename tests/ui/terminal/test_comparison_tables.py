import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.contenders import contender, some_right
from tests.support.screens import HOSTILE, make_screen, printed
from tl_cli.api.comparison_run import CompareResult
from tl_cli.evaluation.logits import LabelledLogits, SavedLogits
from tl_cli.evaluation.ranking import Contender, Cost, Training, compare_all
from tl_cli.training.history import EpochEnded, History
from tl_cli.ui.terminal.comparison_tables import ComparisonReport, as_csv, markdown, print_comparison, save_pictures
from tl_cli.ui.terminal.console import make_console


class ClosedPipe:
    """A stdout whose reader has closed the pipe."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        raise BrokenPipeError

    def flush(self) -> None:
        raise BrokenPipeError

    def isatty(self) -> bool:
        return False


@pytest.fixture
def result() -> CompareResult:
    models = [contender("a", some_right(0.9)), contender("b", some_right(0.6, seed=1))]
    return CompareResult(compare_all(models, "digits, test"), ((), ()), failed=("c",), run_id="0123456789ab")


@pytest.mark.parametrize("form", ["table", "markdown", "csv", "json"])
def test_a_result_is_recorded_if_stdout_is_closed(
    form, result: CompareResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", ClosedPipe())
    with ComparisonReport(make_console(), make_console(stderr=True), form, None) as shown:
        report = shown.compared(result)
        assert report.note.startswith("| model |")
        assert {path.name for path in report.files} >= {"comparison.md", "comparison.csv", "comparison.json"}
        assert all(path.stat().st_size for path in report.files)
    with pytest.raises(BrokenPipeError):
        shown.finish(result, "")


@pytest.mark.slow
def test_files_are_written_once_to_the_requested_folder(result: CompareResult, tmp_path: Path, capsys) -> None:
    with ComparisonReport(make_console(), make_console(stderr=True), "csv", tmp_path) as shown:
        report = shown.compared(result)
    assert {path.parent for path in report.files} == {tmp_path}
    shown.finish(result, " --tracking-uri x")
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 3
    assert "tl compare 01234567 --tracking-uri x" in captured.err
    assert "not in the comparison: c" in captured.err


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
    on = make_screen(width)
    print_comparison(on, *a_comparison(seeds=seeds))
    text = printed(on)
    assert max(map(len, text.splitlines())) <= width
    for expected in ("MACs", "significant differences", "validation accuracy by epoch"):
        assert expected in text
    assert "\x1b" not in text
    # Sentences are printed whole, however long.
    assert "".join(text.split()).count("for3pairs)") == 3


def test_a_comparison_as_text_and_figures(tmp_path: Path) -> None:
    comparison, curves = a_comparison(9)
    assert "\x1b" not in markdown(comparison)
    table = markdown(comparison).splitlines()
    assert [len({line.count("|") for line in part}) for part in (table[:11], table[12:23])] == [1, 1]
    assert len(as_csv(comparison).splitlines()) == 10
    for path in save_pictures(comparison, curves, tmp_path):
        assert path.stat().st_size > 10_000
    assert len(save_pictures(comparison, [[]] * 9, tmp_path)) == 1

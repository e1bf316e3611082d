import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.contenders import contender, some_right
from tl_cli.api.comparison_run import CompareResult
from tl_cli.evaluation.ranking import compare_all
from tl_cli.ui.terminal.comparison_tables import ComparisonReport
from tl_cli.ui.terminal.console import make_console


class ClosedPipe:
    """A stdout whose reader is gone."""

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
def test_a_result_is_recorded_although_the_reader_of_stdout_is_gone(
    form, result: CompareResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", ClosedPipe())
    with closing(ComparisonReport(make_console(), make_console(stderr=True), form, None)) as shown:
        report = shown.compared(result)
        assert report.note.startswith("| model |")
        assert {path.name for path in report.files} >= {"comparison.md", "comparison.csv", "comparison.json"}
        assert all(path.stat().st_size for path in report.files)
    with pytest.raises(BrokenPipeError):
        shown.finish(result, "")


def test_files_are_written_once_where_the_person_wants_them(result: CompareResult, tmp_path: Path, capsys) -> None:
    with closing(ComparisonReport(make_console(), make_console(stderr=True), "csv", tmp_path)) as shown:
        report = shown.compared(result)
    assert {path.parent for path in report.files} == {tmp_path}
    shown.finish(result, " --tracking-uri x")
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 3
    assert "tl compare 01234567 --tracking-uri x" in printed.err
    assert "not in the comparison: c" in printed.err

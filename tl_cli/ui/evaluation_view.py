"""Presents an evaluation: printed in a terminal or for programs, and as files of tables and pictures."""

from pathlib import Path
from typing import Literal

from tl_cli.api.evaluation_run import Evaluation
from tl_cli.io.atomic import write_text
from tl_cli.text import csv_text, json_text
from tl_cli.ui.figures.curve_figures import save_confusion, save_contact_sheet, save_reliability, try_to_draw
from tl_cli.ui.terminal.console import make_console, try_to_show
from tl_cli.ui.terminal.eval_report import print_evaluation
from tl_cli.ui.terminal.observer import TerminalObserver


class EvaluationView(TerminalObserver):
    """Draws progress as long as it is open, then shows the results.

    Args:
        form: what is printed to stdout; for programs nothing else is.
        pictures: number of the worst mistakes to show.
    """

    def __init__(self, form: Literal["report", "json", "csv"], *, pictures: int, quiet: bool) -> None:
        super().__init__(make_console(quiet=quiet, stderr=form != "report"))
        self._form = form
        self._pictures = pictures
        self._quiet = quiet
        self._broken_pipe: BrokenPipeError | None = None

    def show(self, evaluation: Evaluation) -> None:
        """Print the results; if the pipe of stdout is closed, ``finish`` raises the error, after they are recorded."""
        # A bar that is being drawn redirects stdout.
        self.close()
        self._broken_pipe = try_to_show(lambda: self._print(evaluation))

    def draw(self, evaluation: Evaluation, folder: Path) -> list[Path]:
        """Write the table of classes and pictures to a folder; return the files."""
        table = folder / "classes.csv"
        write_text(table, _csv(evaluation))
        return [table, *try_to_draw(lambda: _save_pictures(evaluation, folder))]

    def finish(self, evaluation: Evaluation) -> None:
        """Name the files that were written.

        Raises:
            BrokenPipeError: the pipe of stdout is closed.
        """
        if self._broken_pipe:
            raise self._broken_pipe
        if self._form == "report":
            console = make_console(quiet=self._quiet)
            for path in evaluation.files:
                console.print(str(path), markup=False, soft_wrap=True, style="dim")

    def _print(self, evaluation: Evaluation) -> None:
        if self._form == "json":
            print(json_text(evaluation.to_dict()), flush=True)
        elif self._form == "csv":
            print(_csv(evaluation), end="", flush=True)
        else:
            print_evaluation(make_console(quiet=self._quiet), evaluation, pictures=self._pictures)


def _csv(evaluation: Evaluation) -> str:
    rows = evaluation.class_rows()
    return csv_text([list(rows[0]), *(list(row.values()) for row in rows)])


def _save_pictures(evaluation: Evaluation, folder: Path) -> list[Path]:
    measured, report, classes = evaluation.measured, evaluation.report, evaluation.card.classes
    title = f"{Path(measured.source).name}, {measured.part}"
    paths = [folder / "confusion.png", folder / "reliability.png"]
    save_confusion(report.scores.confusion, classes, title, paths[0])
    save_reliability(report.reliability, report.uncalibrated, title, paths[1])
    if report.mistakes:
        paths.append(folder / "mistakes.png")
        captions = [
            f"{each.probability:.0%} {classes[each.predicted]}\nis {classes[each.true]}" for each in report.mistakes
        ]
        pictures = (measured.images.load(each.index, 256) for each in report.mistakes)
        save_contact_sheet(pictures, captions, paths[-1], side=128)
    return paths

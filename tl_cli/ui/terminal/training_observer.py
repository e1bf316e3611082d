"""A training in a terminal: its plan, the live screen, pictures for the record."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from torch import Tensor

from tl_cli.api.training_run import DryRun, TrainObserver, TrainResult
from tl_cli.errors import Interrupted
from tl_cli.io.download import Progress
from tl_cli.training import events
from tl_cli.training.history import History
from tl_cli.training.plan import Plan
from tl_cli.ui.figures.curve_figures import save_contact_sheet, save_curves, try_to_draw
from tl_cli.ui.panels import PanelOptions
from tl_cli.ui.terminal import tables
from tl_cli.ui.terminal.console import Console, plain, print_note
from tl_cli.ui.terminal.observer import TerminalObserver, drawn_progress
from tl_cli.ui.terminal.progress import Title, open_screen
from tl_cli.ui.terminal.train_report import print_dry_run, print_next, print_outcome, print_plan


class TrainingScreen(TerminalObserver, TrainObserver):
    """Prints the plan, draws progress and curves, and writes the pictures of a run."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._console = console

    def note(self, message: str) -> None:
        """Print information to stderr."""
        print_note(message)

    def preparation(self) -> AbstractContextManager[Progress]:
        """Return a progress bar for downloads and decoding."""
        return drawn_progress(self._console)

    def planned(self, plan: Plan) -> None:
        """Print the plan."""
        print_plan(self._console, plan)

    def training(self, run_name: str, plan: Plan, history: History) -> AbstractContextManager[events.Observer]:
        """Return the live screen, or plain lines where the terminal cannot show one."""
        return open_screen(self._console, Title(run_name, plan.machine.describe(), plan.config.epochs), history)

    def draw_batch(self, images: Tensor, labels: Sequence[str], path: Path, warn: Callable[[str], None]) -> list[Path]:
        """Write a contact sheet of augmented training images."""

        def save() -> list[Path]:
            save_contact_sheet(images, labels, path)
            return [path]

        return try_to_draw(save, warn)

    def draw_curves(self, history: History, folder: Path, warn: Callable[[str], None]) -> list[Path]:
        """Write the curves of the run."""
        return try_to_draw(lambda: save_curves([history], PanelOptions(), folder), warn)


def print_result(console: Console, result: TrainResult | DryRun) -> None:
    """Print the results of a training and the commands to try next, or what a training would do."""
    if isinstance(result, DryRun):
        _print_dry_run(console, result)
        return
    name = result.run_id[:8]
    done = f"run {name} is recorded"
    if not result.is_recorded:
        done = f"run {name} is not recorded; its model is in {result.folder}"
    try:
        print_outcome(console, result.plan, result.history, result.outcome)
        print_next(console, done, result.next_commands)
    except Interrupted:
        if result.is_recorded:
            print_note(f"run {name} is complete and recorded, with its model; see: {result.next_commands[0]}")
        raise


def _print_dry_run(console: Console, result: DryRun) -> None:
    for each in (result.to_fetch.weights, result.to_fetch.data):
        if each is not None:
            console.print(plain(f"note: a run will fetch {each}", "yellow", limit=2000))
    if result.plan is None or result.estimate is None:
        console.print(tables.settings_table(result.resolved))
        console.print("dry run: nothing was fetched, trained or recorded; no estimate without the images", style="dim")
        return
    print_dry_run(console, result.plan, result.estimate)

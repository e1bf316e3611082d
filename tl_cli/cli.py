"""The Typer app, and the one place where an error or a signal becomes a message and an exit code."""

import os
import sys
from typing import Annotated, NoReturn

import typer

from tl_cli import interrupts
from tl_cli.commands import compare as compare_command
from tl_cli.commands import data as data_command
from tl_cli.commands import eval as eval_command
from tl_cli.commands import export as export_command
from tl_cli.commands import inspect as inspect_command
from tl_cli.commands import models as models_command
from tl_cli.commands import plot as plot_command
from tl_cli.commands import predict as predict_command
from tl_cli.commands import runs as runs_command
from tl_cli.commands import train as train_command
from tl_cli.errors import Interrupted, TlError

app = typer.Typer(
    name="tl",
    help="Fine-tune pretrained image classifiers from a terminal: freeze, unfreeze, watch, record, judge.",
    epilog="First try:  tl train efficientnet_lite0 --data digits --freeze-epochs 5",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("train", epilog=train_command.EXAMPLES)(train_command.train)
app.command("eval", epilog=eval_command.EXAMPLES)(eval_command.evaluate)
app.command("predict", epilog=predict_command.EXAMPLES)(predict_command.predict)
app.command("compare", epilog=compare_command.EXAMPLES, context_settings={"ignore_unknown_options": True})(
    compare_command.compare
)
app.command("export", epilog=export_command.EXAMPLES)(export_command.export)
app.command("plot", epilog=plot_command.EXAMPLES)(plot_command.plot)
app.add_typer(runs_command.app, name="runs")
app.add_typer(models_command.app, name="models")
app.add_typer(data_command.app, name="data")
app.command(
    "inspect",
    epilog=inspect_command.EXAMPLES,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)(inspect_command.inspect)


def _print_version(wanted: bool) -> None:
    if wanted:
        from tl_cli.contract import tl_version

        typer.echo(f"tl {tl_version()}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    # Options of tl itself; each command does its own work.
    return None


def main() -> NoReturn:
    """Run the command line and exit: 0 done, 1 failed, 2 bad usage or input, 128 + signal when stopped."""
    interrupts.listen()
    try:
        try:
            app()
        finally:
            # What was asked for is done, or has failed; the rest is Python's own clearing up.
            interrupts.ignore()
    except TlError as error:
        _fail(str(error), error.exit_code)
    except Interrupted as stopped:
        _fail(f"stopped by {stopped}", stopped.exit_code)
    except BrokenPipeError:
        # The reader of a pipe has gone (tl ... | head): nobody is left to be told.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        _fail(
            "out of memory; try a smaller --batch-size (with --accumulate the step stays as large), a smaller "
            "--input-size, or fewer --workers",
            1,
        )
    sys.exit(0)


def _is_out_of_memory(error: Exception) -> bool:
    said = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in said or "can't allocate memory" in said


def _fail(message: str, code: int) -> NoReturn:
    from tl_cli.ui.console import print_error

    print_error(message)
    sys.exit(code)

"""The Typer app, and the one place where an error or a signal becomes a message and an exit code."""

import errno
import os
import sys
from typing import Annotated, Any, NoReturn, TextIO

import typer

from tl_cli import interrupts
from tl_cli.cli.groups import COMMANDS, load
from tl_cli.cli.typed import TopLevel
from tl_cli.errors import Interrupted, TlError
from tl_cli.shortage import find_shortage

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)

app = typer.Typer(
    name="tl",
    cls=TopLevel,
    help="Fine-tune pretrained image classifiers from a terminal: freeze, unfreeze, watch, record, evaluate.",
    epilog="First try:  tl train efficientnet_lite0 --data digits --freeze-epochs 5",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(is_given: bool) -> None:
    if is_given:
        from importlib.metadata import version  # slow to import

        typer.echo(f"tl {version('tl-train')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    # Only declares the options of tl itself.
    return None


def main() -> NoReturn:
    """Run the command line and exit: 0 done, 1 failed, 2 bad usage or input, 128 + signal when stopped."""
    interrupts.listen()
    # A Jupyter kernel passes its own backend to child processes, and matplotlib fails on an unknown name.
    os.environ["MPLBACKEND"] = "Agg"
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by the parent process
            setattr(sys, name, open(os.devnull, mode))  # noqa: PTH123, SIM115 (until the process ends)
    try:
        try:
            app(prog_name="tl")
        except SystemExit:
            sys.stdout.flush()
            raise
        finally:
            # The command has finished or failed; only Python's shutdown is left.
            interrupts.ignore()
    except Interrupted as stopped:
        _stop(stopped)
    except Exception as error:
        suppressed = interrupts.raised()
        if suppressed is not None:
            _stop(suppressed)
        try:
            _report(error)
        except MemoryError:  # too little is left for the message
            os.write(2, b"error: out of memory\n")
            sys.exit(1)
    sys.exit(0)


def _stop(stopped: Interrupted) -> NoReturn:
    """Print that the command was stopped, and exit."""
    from tl_cli.ui.terminal.console import print_note

    print_note(f"stopped ({stopped})")
    _leave(stopped.exit_code)


def _report(error: Exception) -> NoReturn:
    """Print an error that the user can fix, and exit; raise any other error, which is a bug."""
    shortage = find_shortage(error)
    if shortage is not None:
        _fail(f"{shortage}; {shortage.advice(_options())}", shortage.exit_code)
    if isinstance(error, TlError):
        _fail(str(error), error.exit_code)
    if isinstance(error, BrokenPipeError):
        # The pipe's reader has exited (tl ... | head).
        _discard(sys.stdout)
        sys.exit(1)
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        if error.filename is not None:
            _fail(f"{error.filename}: {error.strerror}", 1)
        _discard(sys.stdout)
        _fail(f"cannot write the output: {error.strerror}", 1)
    raise error


def _discard(stream: TextIO) -> None:
    # Its buffered output would fail again when Python exits.
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _options() -> set[str]:
    """Return the options of the command that was typed."""
    words = iter(sys.argv[1:])
    command: Any = next((load(word) for word in words if word in COMMANDS), typer.main.get_command(app))
    for word in words:
        command = getattr(command, "commands", {}).get(word, command)
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}


def _fail(message: str, code: int) -> NoReturn:
    from tl_cli.ui.terminal.console import print_error

    print_error(message)
    _leave(code)


def _leave(code: int) -> NoReturn:
    """Exit with this code, even if nothing can be written: the terminal is closed, or the disk is full."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            _discard(stream)
    sys.exit(code)

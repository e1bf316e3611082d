"""``tl plot``: the curves of runs, in the terminal, as pictures, or followed while they grow."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tl_cli.cli.params import Plain, TrackingUri, complete_run

if TYPE_CHECKING:
    from tl_cli.tracking.facts import RunFacts
    from tl_cli.tracking.recorded import Run, RunReader
    from tl_cli.tracking.store import Store
    from tl_cli.training.history import History
    from tl_cli.ui.panels import Wanted
    from tl_cli.ui.terminal.console import Console

EXAMPLES = """Examples:

tl plot --terminal

tl plot --terminal best 3f2a91c0 --x time

tl plot --follow

tl plot --terminal --metric 'val/*' --last 10

tl plot latest --output curves.pdf"""

_POLL_S = 2.0
_DRAWN, _WHERE = "What is drawn", "Where"


def plot(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN",
            help="Ids or their beginnings, names, latest, best; a comparison stands for its trainings. "
            "Several are drawn over each other. Default: the latest; with --follow the one that is training.",
            autocompletion=complete_run,
        ),
    ] = None,
    terminal: Annotated[
        bool, typer.Option("--terminal", "-t", help="Draw in the terminal instead of files.", rich_help_panel=_WHERE)
    ] = False,
    follow: Annotated[
        bool,
        typer.Option(
            "--follow", "-f", rich_help_panel=_WHERE,
            help="Follow a run in the terminal until it ends; without RUN, wait for one that trains.",
        ),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="PATH", rich_help_panel=_WHERE,
            help="A folder for PNG files, or one file .png, .svg or .pdf for all panels. By default this folder.",
        ),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="A recorded metric, or a pattern such as 'val/*'; may be repeated.",
            rich_help_panel=_DRAWN,
        ),
    ] = None,
    x: Annotated[
        Literal["step", "epoch", "time"] | None,
        typer.Option("--x", help="The x axis of every panel.", rich_help_panel=_DRAWN),
    ] = None,
    smooth: Annotated[
        float | None,
        typer.Option(
            min=0, max=0.9999, metavar="WEIGHT", rich_help_panel=_DRAWN,
            help="Moving average: 0 for none, towards 1 for a longer one (span 2 / (1 - WEIGHT) - 1 points). "
            "Default: span 1/50 of the points.",
        ),
    ] = None,
    log: Annotated[
        bool,
        typer.Option("--log", help="Losses and learning rates on a logarithmic axis.", rich_help_panel=_DRAWN),
    ] = False,
    last: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", rich_help_panel=_DRAWN,
            help="Only the last N epochs; steps with --x step, minutes with --x time.",
        ),
    ] = None,
    tracking_uri: TrackingUri = None,
    plain: Plain = False,
) -> None:  # fmt: skip
    """Draw the curves of runs: loss by iteration; accuracy, loss and learning rate by epoch."""
    if output is not None and (terminal or follow):
        raise typer.BadParameter("the terminal or a file, one of them", param_hint="--output")
    if output is not None:
        _check_ending(output)
    from tl_cli.errors import UsageError
    from tl_cli.tracking.reader import matching_metrics
    from tl_cli.tracking.sqlite_reader import open_to_read
    from tl_cli.ui.panels import Wanted
    from tl_cli.ui.terminal.console import make_console

    wanted = Wanted((), x, smooth, log, last)
    console = make_console(plain=plain)
    if follow:
        from tl_cli.tracking.store import open_store  # imports MLflow, which drawing once does without

        followed = open_store(tracking_uri)
        training = _find(followed, list(dict.fromkeys(runs))) if runs else _training(followed, console)
        _follow(followed, training, wanted, tuple(metric or ()), console)
        return
    store = open_to_read(tracking_uri)
    found = _find(store, list(dict.fromkeys(runs or ["latest"])))
    wanted = replace(wanted, metrics=tuple(matching_metrics(found, metric or ())))
    shown = _read(store, found, wanted)
    if terminal:
        _print(console, shown, wanted)
        return
    if not any(history.losses or history.epochs or history.others for _, history in shown):
        bad = [f"; {key} is not finite" for _, history in shown for key in history.not_finite]
        raise UsageError(f"the run {shown[0][1].name} has recorded no curves yet{''.join(bad[:1])}")
    for path in _save(shown, wanted, output or Path()):
        console.print(str(path), markup=False, soft_wrap=True)


def _check_ending(output: Path) -> None:
    from tl_cli.ui.panels import FORMATS

    if output.suffix and output.suffix.lower() not in FORMATS and not output.is_dir():
        raise typer.BadParameter(
            f"{output} ends in none of {', '.join(FORMATS)}; a folder for PNG files may be named without a point",
            param_hint="--output",
        )


def _find(store: "RunReader", names: Sequence[str]) -> "list[Run]":
    """Return the runs that are meant, each once; a comparison stands for its trainings."""
    from tl_cli.tracking.recorded import children_of, is_parent

    found: dict[str, Run] = {}
    for name in names:
        run = store.find(name)
        for each in (children_of(store.runs(), run.info.run_id) if is_parent(run) else []) or [run]:
            found.setdefault(each.info.run_id, each)
    return list(found.values())


def _training(store: "Store", console: "Console") -> "list[Run]":
    """Return the run that trains now, of several the one that was started or resumed last; wait until there is one."""
    from tl_cli.tracking.listing import status_of
    from tl_cli.tracking.recorded import is_parent, started_or_resumed

    has_said = False
    while True:
        recorded = store.runs(matching="attributes.status = 'RUNNING'")
        running = [run for run in recorded if not is_parent(run) and status_of(run) == "running"]
        if running:
            return [max(running, key=started_or_resumed)]
        if not has_said:
            console.print("no run is training yet; waiting for one (Ctrl-C to stop, tl plot --terminal for the latest)")
            has_said = True
        time.sleep(_POLL_S)


def _read(store: "RunReader", runs: "Sequence[Run]", wanted: "Wanted") -> "list[tuple[RunFacts, History]]":
    from tl_cli.tracking.listing import facts_of
    from tl_cli.tracking.reader import read_history

    facts = facts_of(store, runs)
    histories = [read_history(store, run, wanted.metrics) for run in runs]
    if len(runs) > 1:
        # Two runs of one name would have one legend.
        names = [history.name for history in histories]
        for each, history in zip(facts, histories, strict=True):
            if names.count(history.name) > 1:
                history.name = f"{history.name} ({each.short_id})"
    return list(zip(facts, histories, strict=True))


def _print(console: "Console", shown: "Sequence[tuple[RunFacts, History]]", wanted: "Wanted") -> None:
    from tl_cli.ui.terminal.curve_view import print_curves

    print_curves(console, shown, wanted)


def _save(shown: "Sequence[tuple[RunFacts, History]]", wanted: "Wanted", output: Path) -> list[Path]:
    from tl_cli.ui.figures.curve_figures import save_figures, save_panels
    from tl_cli.ui.panels import panels

    histories = [history for _, history in shown]
    if not output.suffix or output.is_dir():
        prefix = f"{shown[0][0].short_id}-"
        if len(shown) > 1:
            # Others of the same number have other pictures.
            which = hashlib.sha256("".join(facts.run_id for facts, _ in shown).encode()).hexdigest()[:6]
            prefix = f"{len(shown)}-runs-{which}-"
        return save_figures(histories, wanted, output, prefix)
    save_panels(panels(histories, wanted), output, histories[0].name if len(shown) == 1 else f"{len(shown)} runs")
    return [output]


def _follow(
    store: "Store", runs: "Sequence[Run]", wanted: "Wanted", metrics: Sequence[str], console: "Console"
) -> None:
    """Show the runs until none goes on any more; then print their curves and how they ended.

    Args:
        metrics: names and patterns; what they mean may come while the run goes on.

    Raises:
        typer.Exit: a person left; the runs go on.
        TrackingError: a run was removed meanwhile.
    """
    import signal

    from tl_cli.errors import Interrupted, RunNotFoundError, TrackingError
    from tl_cli.tracking.reader import matching_metrics
    from tl_cli.ui.terminal.console import plain
    from tl_cli.ui.terminal.curve_view import open_follower

    shown: list[tuple[RunFacts, History]] = []
    try:
        with open_follower(console) as screen:
            while not shown or any(facts.status == "running" for facts, _ in shown):
                began = time.monotonic()
                try:
                    runs = store.again(runs)
                    wanted = replace(wanted, metrics=tuple(matching_metrics(runs, metrics, strict=False)) or ())
                    shown = _read(store, runs, wanted)
                    screen.show(shown, wanted)
                except RunNotFoundError as error:
                    raise TrackingError(str(error)) from error
                except TrackingError as error:
                    if not shown:
                        raise
                    screen.show(shown, wanted, f"{error}; trying again")
                if any(facts.status == "running" for facts, _ in shown):
                    # A long history takes long to read: half of the time at most.
                    time.sleep(max(_POLL_S, time.monotonic() - began))
    except Interrupted as stopped:
        if stopped.signum != signal.SIGINT:
            raise
        names = " ".join(facts.short_id for facts, _ in shown)
        console.print(plain(f"left; the run goes on. Look again: tl plot --follow {names}"), soft_wrap=True)
        raise typer.Exit(stopped.exit_code) from None
    _print(console, shown, wanted)
    for facts, _ in shown:
        name = f"{facts.name} " if len(shown) > 1 else "the run "
        console.print(plain(f"{name}{_ENDS.get(facts.status, facts.status)}"), soft_wrap=True)


_ENDS = {
    "finished": "is complete",
    "failed": "has failed",
    "killed": "was stopped; tl train --resume goes on with it",
    "dead": "is dead: its process is gone; tl train --resume goes on with it, tl runs close records its end",
    "silent": "has not been heard of for minutes; its machine may have lost the server",
}

"""``tl plot``: the curves of a run, in the terminal or as pictures."""

from pathlib import Path
from typing import Annotated

import typer

from tl_cli.commands.options import TrackingUri

EXAMPLES = """Examples:

tl plot --terminal

tl plot --terminal 3f2a91c0

tl plot 3f2a91c0 --output curves/"""


def plot(
    run: Annotated[str, typer.Argument(metavar="[RUN]", help="Id or its beginning, name, or latest.")] = "latest",
    terminal: Annotated[bool, typer.Option("--terminal", "-t", help="Draw in the terminal instead of files.")] = False,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for the PNG files.")] = Path(),
    tracking_uri: TrackingUri = None,
) -> None:
    """Draw a run's curves: loss by iteration; accuracy, loss and learning rate by epoch."""
    from tl_cli.errors import UsageError
    from tl_cli.tracking.history import read_history
    from tl_cli.tracking.store import open_store, short_id
    from tl_cli.ui.console import make_console
    from tl_cli.ui.pictures import save_epoch_curves, save_loss_curve
    from tl_cli.ui.summary import print_history

    store = open_store(tracking_uri)
    found = store.find(run)
    history = read_history(store, found)
    console = make_console()
    if terminal:
        print_history(console, history)
        return
    if not history.losses and not history.epochs:
        raise UsageError(f"the run {history.name} has recorded no curves yet")
    for name, save in (("loss_by_step", save_loss_curve), ("accuracy_and_loss_by_epoch", save_epoch_curves)):
        path = output / f"{short_id(found)}-{name}.png"
        save(history, path)
        console.print(str(path), markup=False, soft_wrap=True)

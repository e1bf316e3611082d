"""``tl export``: writes a recorded model as a file for other programs."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from tl_cli.cli.params import AsJson, DataDir, Quiet, RunName, TrackingUri

EXAMPLES = """Examples:

tl export latest

tl export best --format pt2 --output flowers.pt2

tl export 3f2a91c0 --format folder --output flowers"""

_FORMAT_HELP = "ONNX, a torch.export program, or the saved-model folder."
_OUTPUT_HELP = "Default: the architecture's name in this folder."
Format = Annotated[Literal["onnx", "pt2", "folder"], typer.Option("--format", help=_FORMAT_HELP)]
Output = Annotated[Path | None, typer.Option(metavar="PATH", help=_OUTPUT_HELP, show_default=False)]
Force = Annotated[bool, typer.Option("--force", help="Overwrite existing files.")]

app = typer.Typer(add_completion=False)


@app.command(epilog=EXAMPLES)
def export(
    run: RunName = "latest",
    form: Format = "onnx",
    output: Output = None,
    force: Force = False,
    data_dir: DataDir = None,
    tracking_uri: TrackingUri = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write a model as a file, and check that its logits match, on real images if available."""
    from tl_cli.api import export_run as api
    from tl_cli.ui.terminal.console import make_console
    from tl_cli.ui.terminal.export_report import print_exported
    from tl_cli.ui.terminal.observer import TerminalObserver

    request = api.ExportRequest(run, form, output, force, str(data_dir) if data_dir else None, tracking_uri)
    with TerminalObserver(make_console(quiet=quiet, stderr=as_json)) as observer:
        exported = api.export(request, observer)
    print_exported(exported, make_console(quiet=quiet), as_json=as_json)

"""``tl export``: writes a recorded model as a file for other programs."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from tl_cli.cli.params import DataDir, Quiet, RunName, TrackingUri

EXAMPLES = """Examples:

tl export latest

tl export best --format pt2 --output flowers.pt2

tl export 3f2a91c0 --format folder --output flowers"""


def export(
    run: RunName = "latest",
    form: Annotated[
        Literal["onnx", "pt2", "folder"],
        typer.Option("--format", help="ONNX, a torch.export program, or the saved-model folder."),
    ] = "onnx",
    output: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Default: the architecture's name in this folder.", show_default=False),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite existing files.")] = False,
    data_dir: DataDir = None,
    tracking_uri: TrackingUri = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    quiet: Quiet = False,
) -> None:
    """Write a model as a file, and check that its logits match, on real images if available."""
    from tl_cli.api.export_run import ExportRequest
    from tl_cli.api.export_run import export as export_model
    from tl_cli.ui.terminal.console import make_console
    from tl_cli.ui.terminal.export_report import print_exported
    from tl_cli.ui.terminal.observer import TerminalObserver

    with TerminalObserver(make_console(quiet=quiet, stderr=as_json)) as observer:
        exported = export_model(
            ExportRequest(run, form, output, force, str(data_dir) if data_dir else None, tracking_uri), observer
        )
    print_exported(exported, make_console(quiet=quiet), as_json=as_json)

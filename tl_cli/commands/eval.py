"""``tl eval``: how good a recorded model is, on the images that it has not learned from."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tl_cli.commands.options import DataDir, Device, Quiet, TrackingUri, Workers

if TYPE_CHECKING:
    from tl_cli.evaluation.metrics import Report

EXAMPLES = """Examples:

tl eval latest

tl eval 3f2a91c0 --split val --json

tl eval mlruns/1/3f2a91c0.../state/best"""


def evaluate(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="Id or its beginning, name, latest, or a saved-model folder.")
    ],
    split: Annotated[Literal["test", "val", "train"], typer.Option(help="Which images.")] = "test",
    data: Annotated[
        str | None, typer.Option(metavar="DIR", help="Where the same images are now, if they have moved.")
    ] = None,
    data_dir: DataDir = None,
    batch_size: Annotated[int | None, typer.Option(help="Images at once.", min=1)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
    device: Device = None,
    workers: Workers = None,
    tracking_uri: TrackingUri = None,
    quiet: Quiet = False,
) -> None:
    """Measure a model on its own test images: top-1 with its interval, loss, confusion matrix."""
    from tl_cli.models import zoo
    from tl_cli.training.evaluate import evaluate_model
    from tl_cli.ui import tables
    from tl_cli.ui.console import make_console, plain, print_warning
    from tl_cli.ui.progress import FileProgress

    console = make_console(quiet=quiet)
    folder = _model_folder(run, tracking_uri)
    classifier, card = zoo.restore(folder)
    with FileProgress(console) as progress:
        measured = evaluate_model(
            classifier,
            card,
            part=split,
            source=data,
            data_dir=str(data_dir) if data_dir else None,
            device=device or "auto",
            batch_size=batch_size,
            workers=workers,
            progress=progress,
        )
    if measured.changed:
        print_warning(f"the images of {', '.join(measured.changed)} are not those that the model was trained with")
    if as_json:
        typer.echo(_json(measured.report, card.classes, split))
        return
    report = measured.report
    console.print(plain(f"{card.architecture} on {card.data.source}, {split}", "bold"))
    console.print(
        f"top-1     {tables.format_accuracy(report.accuracy)}, 95% interval, {report.accuracy.count:,} images"
    )
    console.print(f"loss      {report.loss:.4f}")
    console.print()
    console.print(tables.confusion_table(report, card.classes, console))
    console.print()
    console.print(tables.class_table(report, card.classes, console))


def _model_folder(run: str, tracking_uri: str | None) -> Path:
    folder = Path(run).expanduser()
    if (folder / "model.json").exists():
        return folder
    from tl_cli.tracking.store import open_store

    store = open_store(tracking_uri)
    return store.model_folder(store.find(run))


def _json(report: "Report", classes: tuple[str, ...], split: str) -> str:
    import json

    return json.dumps(
        {
            "split": split,
            "images": report.accuracy.count,
            "accuracy": report.accuracy.value,
            "accuracy_low": report.accuracy.low,
            "accuracy_high": report.accuracy.high,
            "loss": report.loss,
            "classes": list(classes),
            "confusion": report.confusion.tolist(),
        }
    )

"""``tl eval``: how good a recorded model is, on the images that it has not learned from."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tl_cli.cli.params import (
    DataDir,
    Device,
    LabelColumn,
    MaxPixels,
    PathColumn,
    Quiet,
    RunName,
    SplitColumn,
    TrackingUri,
    Workers,
    complete_data,
    refuse_silence,
)

if TYPE_CHECKING:
    from tl_cli.api.model_lookup import Target
    from tl_cli.evaluation.measure import Measured, OwnAccuracy
    from tl_cli.evaluation.report import Judgement

EXAMPLES = """Examples:

tl eval

tl eval best --data ~/new-photos

tl eval 3f2a91c0 --split val --json

tl eval mlruns/1/3f2a91c0.../state/best --output report"""

_OUTPUT = "Output"


def evaluate(
    context: typer.Context,
    run: RunName = "latest",
    split: Annotated[
        Literal["test", "val", "train", "all"] | None,
        typer.Option(
            help="Which images; default is test, val of data without test images, all of a folder that is not split.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|PATH",
            autocompletion=complete_data,
            help="Other images, matched by the names of their classes; or where its own are now.",
        ),
    ] = None,
    path_column: PathColumn = None,
    label_column: LabelColumn = None,
    split_column: SplitColumn = None,
    data_dir: DataDir = None,
    on_bad_image: Annotated[
        Literal["error", "skip"] | None,
        typer.Option(
            help="error, or skip: leave out files that cannot be decoded. Default: as in training.",
            show_default=False,
        ),
    ] = None,
    max_pixels: MaxPixels = None,
    batch_size: Annotated[int | None, typer.Option(help="Images at once.", min=1)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.", rich_help_panel=_OUTPUT)] = False,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Print the table of classes as CSV.", rich_help_panel=_OUTPUT)
    ] = False,
    pictures: Annotated[int, typer.Option(help="Worst mistakes to show.", min=0, max=24, rich_help_panel=_OUTPUT)] = 8,
    output: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write report, predictions and pictures there too.", rich_help_panel=_OUTPUT),
    ] = None,
    log: Annotated[
        bool, typer.Option("--log/--no-log", help="Keep the results with the run or model.", rich_help_panel=_OUTPUT)
    ] = True,
    device: Device = None,
    workers: Workers = None,
    tracking_uri: TrackingUri = None,
    quiet: Quiet = False,
) -> None:
    """Measure a model on its own test images, or on others: figures with intervals, calibration, mistakes."""
    if as_json and as_csv:
        raise typer.BadParameter("give one of --json and --csv", param_hint="--csv")
    refuse_silence(quiet and not (as_json or as_csv or output or log), "--output DIR")
    from tl_cli.api.model_lookup import find_model, has_former_calibration
    from tl_cli.contract import Columns
    from tl_cli.evaluation.measure import Judge, OwnAccuracy
    from tl_cli.evaluation.report import judge
    from tl_cli.models.zoo import registry
    from tl_cli.ui.terminal.console import make_console, print_warning, try_to_show
    from tl_cli.ui.terminal.eval_report import print_judgement
    from tl_cli.ui.terminal.progress import FileProgress

    console = make_console(quiet=quiet)
    target = find_model(run, tracking_uri, print_warning)
    context.with_resource(target.in_use())
    classifier, card = registry.restore(target.folder)
    # What is printed for programs is nothing else.
    with FileProgress(make_console(quiet=quiet, stderr=as_json or as_csv)) as progress:
        examiner = Judge(
            classifier,
            card,
            source=data,
            data_dir=str(data_dir) if data_dir else None,
            columns=Columns(path=path_column, label=label_column, split=split_column),
            device=device or "auto",
            batch_size=batch_size,
            workers=workers,
            on_bad_image=on_bad_image or card.data.on_bad_image,
            max_pixels=max_pixels,
            progress=progress,
        )
        measured = examiner.measure(split)
    judgement = judge(measured.answers, card.calibration)
    own = None
    if not measured.is_own or measured.is_changed:
        own = OwnAccuracy.of(card, target.run.data.metrics if target.run else {})
    _warn(measured)
    if not card.calibration.images and has_former_calibration(target):
        print_warning("calibration.json of an earlier version is ignored; tl train now fits the temperature")

    def show() -> None:
        if as_json:
            typer.echo(_json(measured, judgement, card.classes, own))
        elif as_csv:
            typer.echo(_csv(judgement, card.classes), nl=False)
        else:
            title = f"{card.architecture}, {target.name}"
            print_judgement(console, title, measured, judgement, card.classes, pictures=pictures, own=own)

    reader_is_gone = try_to_show(show)
    written = _keep(target, measured, judgement, card.classes, output=output, log=log)
    if reader_is_gone:
        raise reader_is_gone
    for path in written:
        if not (as_json or as_csv):
            console.print(str(path), markup=False, soft_wrap=True, style="dim")


def _warn(measured: "Measured") -> None:
    from tl_cli.errors import some
    from tl_cli.ui.terminal.console import print_warning

    for note in measured.notes:
        print_warning(note)
    if measured.is_changed:
        print_warning(f"the {measured.part} images are not those that the model was trained with")
    if measured.is_own and measured.part == "val":
        print_warning("validation chose the epoch of this model, so these figures are a little too good")
    if measured.is_own and measured.part == "train":
        print_warning("these images were trained on: the figures say how much was learned by heart, not how good it is")
    if measured.trained_on:
        known, count = measured.trained_on, measured.split.count
        print_warning(f"{known:,} of these {count:,} images were trained on: the figures flatter the model")
    if not measured.is_own and measured.trained_on is None:
        print_warning("the training images are not at hand: nothing says whether some of these were among them")
    if measured.missing:
        print_warning(
            f"{measured.source} has no images of {some(measured.missing, 8)}; "
            "the means over classes are over the others"
        )


def _keep(
    target: "Target",
    measured: "Measured",
    judgement: "Judgement",
    classes: tuple[str, ...],
    *,
    output: Path | None,
    log: bool,
) -> list[Path]:
    """Write what was found where it is wanted; return the files that a person asked for."""
    from tl_cli.errors import StorageError, TrackingError
    from tl_cli.evaluation.logits import save_answers
    from tl_cli.evaluation.report import headline
    from tl_cli.tracking.evaluations import (
        EVALUATIONS,
        TEST_LOGITS,
        evaluation_name,
        is_first_test,
        log_evaluation,
        log_first_test,
    )
    from tl_cli.tracking.journal import alone_with

    name = evaluation_name(measured)
    store, run = target.store, target.run
    written: list[Path] = []
    if output is not None:
        written = _write(output, measured, judgement, classes)
    if log and store is not None and run is not None:
        folder = store.state_folder(run) / EVALUATIONS
        try:
            # One at a time: another tl eval may be writing the same files, and may have recorded the same numbers.
            with alone_with(folder):
                (run,) = store.again([run])
                kept = _write(folder / name, measured, judgement, classes)
                log_evaluation(store, run, measured, headline(judgement), kept)
                if is_first_test(run, measured):
                    # Where tl compare finds what a run logs at its end.
                    logits = store.state_folder(run) / TEST_LOGITS
                    save_answers(logits, measured.answers, measured.images.ids, classes)
                    log_first_test(store, run, judgement.report.accuracy.value, logits)
        except (StorageError, TrackingError) as error:
            raise type(error)(f"the results are not kept with the run: {error}; --no-log does not try to") from error
    return written


def _write(folder: Path, measured: "Measured", judgement: "Judgement", classes: tuple[str, ...]) -> list[Path]:
    from tl_cli.evaluation.logits import save_answers
    from tl_cli.io.download import write_text
    from tl_cli.ui.figures.curve_figures import drawn

    title = f"{Path(measured.source).name}, {measured.part}"
    report, table, logits = folder / "report.json", folder / "classes.csv", folder / "logits.npz"
    write_text(report, _json(measured, judgement, classes) + "\n")
    write_text(table, _csv(judgement, classes))
    save_answers(logits, measured.answers, measured.images.ids, classes)
    return [report, table, logits, *drawn(lambda: _draw(folder, title, measured, judgement, classes))]


def _draw(
    folder: Path, title: str, measured: "Measured", judgement: "Judgement", classes: tuple[str, ...]
) -> list[Path]:
    from tl_cli.ui.figures.curve_figures import save_confusion, save_contact_sheet, save_reliability

    paths = [folder / "confusion.png", folder / "reliability.png"]
    save_confusion(judgement.report.confusion, classes, title, paths[0])
    save_reliability(judgement.reliability, judgement.uncalibrated, title, paths[1])
    if judgement.mistakes:
        paths.append(folder / "mistakes.png")
        captions = [
            f"{each.probability:.0%} {classes[each.answered]}\nis {classes[each.true]}" for each in judgement.mistakes
        ]
        pictures = (measured.images.load(each.index, 256) for each in judgement.mistakes)
        save_contact_sheet(pictures, captions, paths[-1], side=128)
    return paths


def _json(
    measured: "Measured", judgement: "Judgement", classes: tuple[str, ...], own: "OwnAccuracy | None" = None
) -> str:
    from tl_cli.evaluation.report import as_data
    from tl_cli.text import json_text

    about: dict[str, object] = {"data": measured.source, "split": measured.part, "digest": measured.split.digest,
             "missing": list(measured.missing), "notes": list(measured.notes)}  # fmt: skip
    if own is not None:
        about["own"] = {"split": own.part, "accuracy": own.value, "images": own.images}
    return json_text({**about, **as_data(judgement, classes, measured.images.ids.tolist())})


def _csv(judgement: "Judgement", classes: tuple[str, ...]) -> str:
    from tl_cli.evaluation.report import class_rows
    from tl_cli.text import csv_text

    rows = class_rows(judgement, classes)
    return csv_text([list(rows[0]), *(list(row.values()) for row in rows)])

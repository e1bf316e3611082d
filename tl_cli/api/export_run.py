"""Writes a saved model as a file for other programs, and checks its logits."""

import html
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from tl_cli.api.model_lookup import find_to_read
from tl_cli.api.observer import Observer
from tl_cli.contract import ModelCard
from tl_cli.data.dataset import is_local, open_for_evaluation
from tl_cli.data.preprocess import decoded_side, normalise, prepare
from tl_cli.errors import DataError, DownloadError, TlError, UsageError
from tl_cli.models.bundle import CARD_FILE, copy, read_card
from tl_cli.models.classifier import Classifier
from tl_cli.models.export import TOLERANCE, run_onnx, run_pt2, write_onnx, write_pt2
from tl_cli.models.zoo import registry
from tl_cli.text import plain_data

Format = Literal["onnx", "pt2", "folder"]
_NUM_CHECKED = 16


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """Which model to export, and how.

    Attributes:
        model: a run or a saved-model folder.
        format: ``onnx``, ``pt2`` (a torch.export program) or ``folder`` (the saved model itself).
        output: the file or folder; None: the architecture's name in the current folder.
        force: overwrite what exists.
        data_dir: where downloaded data sets are stored, for images to check with; None: as in training.
        tracking_uri: MLflow's store; None is the default one.
    """

    model: str = "latest"
    format: Format = "onnx"
    output: Path | None = None
    force: bool = False
    data_dir: str | None = None
    tracking_uri: str | None = None


@dataclass(frozen=True, slots=True)
class Check:
    """The comparison of an exported file with the model in PyTorch.

    Attributes:
        images: number of images compared.
        are_real: whether they are images of the model's data; otherwise they are random noise.
        difference: the largest absolute difference of the logits.
    """

    images: int
    are_real: bool
    difference: float


@dataclass(frozen=True, slots=True)
class Exported:
    """An exported model.

    Attributes:
        model: name of the run, or the folder.
        format: as requested.
        path: what was written.
        bytes: size of the file; None for a folder.
        input_size: side of the input in pixels: the file takes (batch, 3, side, side) float32, RGB, 0 to 255.
        classes: names, in the order of the logits (batch, num_classes) float32.
        temperature: the probabilities are softmax(logits / temperature).
        check: the comparison with the model; None for a folder.
    """

    model: str
    format: Format
    path: Path
    bytes: int | None
    input_size: int
    classes: tuple[str, ...]
    temperature: float
    check: Check | None

    def to_dict(self) -> dict[str, object]:
        """Return what ``tl export --json`` prints."""
        return plain_data(self)

    def _repr_html_(self) -> str:
        return f"<code>{html.escape(str(self.path))}</code>: {html.escape(self.model)} as {self.format}"


def export(request: ExportRequest, observer: Observer | None = None) -> Exported:
    """Write a saved model as a file, and check it against the model, on images of its data if they are available.

    Raises:
        RunNotFoundError: there is no such model.
        UsageError: the file exists, or a package is not installed.
        TlError: torch cannot export this network, or the file's logits differ from the model's.
        StorageError: the file cannot be written.
        TrackingError: the store cannot be used.
        WeightsError: the saved model is damaged.
    """
    observer = observer or Observer()
    target = find_to_read(request.model, request.tracking_uri, observer.warn)
    path = _output_path(request, read_card(target.folder).architecture.replace("/", "_"))
    classifier, card = registry.restore(target.folder)
    check = size = None
    if request.format == "folder":
        copy(target.folder, path)
    else:
        check = _write(classifier, card, path, request, observer)
        size = path.stat().st_size
    side, temperature = card.preprocessing.crop, card.calibration.temperature
    return Exported(target.name, request.format, path, size, side, card.classes, temperature, check)


def _write(classifier: Classifier, card: ModelCard, path: Path, request: ExportRequest, observer: Observer) -> Check:
    """Write a file, and compare its logits with those that ``tl eval`` computes."""
    images, are_real = _check_inputs(card, request.data_dir, observer)
    with torch.inference_mode():
        expected: np.ndarray = classifier.logits(normalise(images, classifier.preprocessing)).numpy()
    write, run = (write_onnx, run_onnx) if request.format == "onnx" else (write_pt2, run_pt2)
    differences: list[float] = []
    write(classifier, card, path, lambda written: differences.append(_compare(run, written, images, expected)))
    return Check(len(images), are_real, differences[0])


def _output_path(request: ExportRequest, name: str) -> Path:
    """Return the file or folder to write.

    Raises:
        UsageError: it exists, and overwriting is not requested.
    """
    is_folder = request.format == "folder"
    path = (request.output or Path(name if is_folder else f"{name}.{request.format}")).expanduser()
    if not is_folder and path.is_dir():
        raise UsageError(f"{path} is a folder; give the name of a file, such as {path / name}.{request.format}")
    written = path / CARD_FILE if is_folder else path
    if written.exists() and not request.force:
        raise UsageError(f"{written} exists already; give --force to overwrite it, or another --output")
    return path


def _check_inputs(card: ModelCard, data_dir: str | None, observer: Observer) -> tuple[Tensor, bool]:
    """Return at most 16 inputs (N, 3, crop, crop) uint8 for the check, and whether they are images of the data."""
    how = card.preprocessing
    try:
        if not is_local(card.data, data_dir):
            raise DataError("the images are not available")
        spec, progress, pixel_range = card.data, observer.progress, how.pixel_range
        data = open_for_evaluation(
            spec, spec.source, data_dir=data_dir, pixel_range=pixel_range, progress=progress
        ).data
        images = next((data.parts[name] for name in ("test", "val", "train") if name in data.parts), None)
        if images is None:
            raise DataError("none of the images can be read")
        indices = range(0, len(images), max(1, len(images) // _NUM_CHECKED))[:_NUM_CHECKED]
        return torch.stack([prepare(images.open(index, decoded_side(how)), how) for index in indices]), True
    except (DataError, DownloadError):
        shape, generator = (_NUM_CHECKED, 3, how.crop, how.crop), torch.Generator().manual_seed(0)
        return torch.randint(0, 256, shape, generator=generator).to(torch.uint8), False


def _compare(run: Callable[[Path, np.ndarray], np.ndarray], path: Path, images: Tensor, expected: np.ndarray) -> float:
    """Return the largest difference of the file's logits from the model's: all images in one batch, and one alone.

    Raises:
        TlError: it is larger than rounding explains.
    """
    inputs = images.numpy().astype(np.float32)
    logits = np.concatenate([run(path, inputs), run(path, inputs[:1])])
    difference = float(np.abs(logits - np.concatenate([expected, expected[:1]])).max())
    # Large logits are rounded in larger steps.
    if not difference <= TOLERANCE * max(1.0, float(np.abs(expected).max())):
        raise TlError(f"the exported file's logits differ from the model's by {difference:.2g}; the file is not kept")
    return difference

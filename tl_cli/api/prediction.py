"""Predicts the classes of images without labels, one after another, in memory that does not grow with their number."""

import io
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tl_cli.api.model_lookup import Target, find_model_folder, find_to_read
from tl_cli.api.observer import Observer
from tl_cli.choices import DeviceName, Precision, TtaName
from tl_cli.compute.device import Autocasting, inference_machine, worker_count
from tl_cli.contract import PixelRange, Preprocessing
from tl_cli.data.batches import Batch
from tl_cli.data.decode import MAY_BE_DEEP, read_storage
from tl_cli.data.image_paths import STDIN, is_there, list_pictures
from tl_cli.data.preprocess import normalise, read_input
from tl_cli.errors import DataError, RunNotFoundError, UsageError
from tl_cli.evaluation.logits import mirror_doubt, view_logits, with_views
from tl_cli.evaluation.predicting import NOT_FINITE, Predictor
from tl_cli.evaluation.task import TASKS
from tl_cli.habits import WEIGHTS_ENDINGS, kept_run
from tl_cli.models.bundle import read_card
from tl_cli.text import html_table

_MAX_BATCH = 64
# What Pillow writes as PNG without loss.
_PNG_MODES = ("1", "L", "LA", "P", "I", "I;16", "RGB", "RGBA")

Picture = str | Path | Image.Image | np.ndarray
# The name of an image with its input, (3, crop, crop) uint8, or the reason why there is none.
_Decoded = tuple[str, Tensor | DataError]


@dataclass(frozen=True, slots=True)
class Prediction:
    """The prediction of a model for one image.

    Attributes:
        path: the file as given; ``image 1`` and so on for an image in memory.
        classes: names of all classes, in the order of the probabilities.
        probabilities: (num_classes,) float32; None if the image cannot be decoded or the model returned NaN.
        error: why there are no probabilities, otherwise empty.
    """

    path: str
    classes: tuple[str, ...]
    probabilities: Tensor | None
    error: str = ""

    @property
    def label(self) -> str:
        """The most likely class."""
        return self.top(1)[0][0]

    @property
    def probability(self) -> float:
        """The probability of the most likely class, from 0 to 1."""
        return self.top(1)[0][1]

    def top(self, count: int) -> list[tuple[str, float]]:
        """Return the most likely classes with their probabilities, in descending order.

        Raises:
            DataError: there are no probabilities.
        """
        if self.probabilities is None:
            raise DataError(self.error)
        values, indices = self.probabilities.topk(min(count, len(self.classes)))
        return [(self.classes[index], value) for index, value in zip(indices.tolist(), values.tolist(), strict=True)]

    @property
    def problem(self) -> str:
        """Why there are no probabilities, with the name of the image."""
        return self.error if self.path in self.error else f"{self.path}: {self.error}"

    def to_dict(self, top: int = 3) -> dict[str, object]:
        """Return what ``tl predict --json`` prints for the image."""
        best = [{"class": name, "probability": round(probability, 6)} for name, probability in self.top(top)]
        return {"path": self.path, "predictions": best}

    def _repr_html_(self) -> str:
        return html_table((self.path, ""), [(name, f"{probability:.1%}") for name, probability in self.top(3)])


@dataclass(frozen=True, slots=True)
class PredictRequest:
    """Which images to predict, and how.

    Attributes:
        images: files, folders, patterns, or ``-`` for the names in ``lines``.
        model: a run or a saved-model folder; None: the first of ``images`` if a run has that name, else the latest run.
        lines: names of files, one per line, for ``-``.
        calibrated: divide the logits by the model's temperature.
        batch_size: images per batch; None chooses.
        tta: ``flip`` averages the logits of each image and its mirror image, for twice the time; None: as in training.
        precision: of the computation; models are tested in fp32.
        max_pixels: maximum number of pixels decoded per image; None is the model's limit.
        device: where to compute.
        workers: number of threads that decode images; None chooses.
        tracking_uri: MLflow's store; None is the default one.
    """

    images: Sequence[str]
    model: str | None = None
    lines: Iterable[str] = ()
    calibrated: bool = True
    batch_size: int | None = None
    tta: TtaName | None = None
    precision: Precision = "fp32"
    max_pixels: int | None = None
    device: DeviceName = "auto"
    workers: int | None = None
    tracking_uri: str | None = None


@dataclass(frozen=True, slots=True)
class PredictionStream:
    """Predictions that are computed while they are read, once, in the order of the images.

    Attributes:
        model: name of the model.
        is_latest: whether no model was named, so that it is that of the latest run.
        classes: names, in the order of the probabilities.
        total: number of images; None if their names come from ``lines``.
        pixel_range: numbers that become black and white in images with more than 8 bits per channel.
        max_pixels: maximum number of pixels decoded per image; None is the usual limit.
        predictions: one per image; an image that cannot be decoded has an error and does not stop the others.
    """

    model: str
    is_latest: bool
    classes: tuple[str, ...]
    total: int | None
    pixel_range: PixelRange | None
    max_pixels: int | None
    predictions: Iterator[Prediction]

    def __iter__(self) -> Iterator[Prediction]:
        """Iterate over the predictions."""
        return self.predictions


def predict(request: PredictRequest, observer: Observer | None = None) -> PredictionStream:
    """Return the predictions of a saved model for images, computed as they are read.

    Raises:
        RunNotFoundError: there is no such run, and no such image.
        UsageError: no images are named, or the device is not available.
        WeightsError: the saved model is damaged.
        TrackingError: the store cannot be used.
    """
    observer = observer or Observer()
    target, paths, is_latest = _model_and_paths(request, observer)
    predictor = _predictor(target, request)
    if request.tta == "flip" and (doubt := mirror_doubt(read_card(target.folder))):
        observer.warn(doubt)
    # The names on stdin can be read only once, and there may be any number of them.
    total = None if STDIN in paths else sum(1 for _ in list_pictures(paths, ()))
    images, how = list_pictures(paths, request.lines), predictor.classifier.preprocessing
    predictions = predict_images(
        predictor,
        images,
        device=request.device,
        batch_size=request.batch_size,
        tta=request.tta,
        precision=request.precision,
        workers=request.workers,
    )
    predictions = _observed(predictions, predictor, total, observer)
    limit = predictor.max_pixels
    return PredictionStream(target.name, is_latest, predictor.classes, total, how.pixel_range, limit, predictions)


def _predictor(target: Target, request: PredictRequest) -> Predictor:
    predictor = Predictor.load(target.folder)
    if request.max_pixels:
        predictor = replace(predictor, max_pixels=request.max_pixels)
    if not request.calibrated:
        predictor = replace(predictor, classifier=replace(predictor.classifier, temperature=1.0))
    return predictor


def _observed(
    predictions: Iterator[Prediction], predictor: Predictor, total: int | None, observer: Observer
) -> Iterator[Prediction]:
    """Yield predictions while reporting progress, and warn of images that may be scaled wrongly."""
    has_range = predictor.classifier.preprocessing.pixel_range is not None
    done = unscaled = 0
    for done, prediction in enumerate(predictions, 1):
        if prediction.probabilities is not None and not has_range:
            unscaled += _is_deep(prediction.path, predictor.max_pixels)
        yield prediction
        observer.progress("predicting", done, total)
    if unscaled:
        observer.warn(
            f"{unscaled:,} of {done:,} pictures have more than 8 bits per channel, unlike the model's training images: "
            "0 is taken for black and 65535 for white"
        )
    if not done:
        raise UsageError("the list on stdin is empty")


def _is_deep(path: str, max_pixels: int | None) -> bool:
    """Return whether the file of an image has more than 8 bits per channel."""
    with suppress(OSError):
        return os.path.splitext(path)[1].lower() in MAY_BE_DEEP and read_storage(path, max_pixels).is_deep
    return False


def _model_and_paths(request: PredictRequest, observer: Observer) -> tuple[Target, Sequence[str], bool]:
    """Return the model, the images, and whether the model is that of the latest run because none was named.

    Raises:
        RunNotFoundError: the first name is neither a run nor an image.
        UsageError: only a run is named.
    """
    if request.model is not None:
        return find_to_read(request.model, request.tracking_uri, observer.warn), request.images, False
    first, others, is_here = request.images[0], request.images[1:], is_there(request.images[0])
    is_picture = is_here and find_model_folder(first) is None and Path(first).suffix.lower() not in WEIGHTS_ENDINGS
    run_name = first if is_here else kept_run(first) or first
    target = None
    # best.pt, a checkpoint in other tools, means a run here; without other names, no image was given.
    if others or not (is_picture or run_name != first):
        try:
            target = find_to_read(first, request.tracking_uri, observer.warn)
        except RunNotFoundError as error:
            if not is_picture:
                also = "" if others else "\nthere is no picture or folder of that name either"
                raise RunNotFoundError(f"{error}{also}") from error
    if target is not None and others:
        return target, others, False
    if run_name != first:
        raise UsageError(
            f"there is no file {first} here. What other tools store in such a file is a run here; give pictures after "
            f"it: tl predict {run_name} photo.jpg"
        )
    if target is not None:
        raise UsageError(f"no pictures are named; give them after the run: tl predict {run_name} photo.jpg")
    return find_to_read("latest", request.tracking_uri, observer.warn), request.images, True


def predict_images(
    predictor: Predictor,
    images: Iterable[Picture],
    *,
    device: DeviceName = "auto",
    batch_size: int | None = None,
    tta: TtaName | None = None,
    precision: Precision = "fp32",
    workers: int | None = None,
) -> Iterator[Prediction]:
    """Yield a prediction for each image, in order. An image that cannot be decoded does not stop the others.

    Args:
        images: as ``read_picture`` takes them.
        batch_size: images per batch; None chooses.
        tta: ``flip`` averages the logits of each image and its mirror image; None: as in training.
        precision: of the computation.
        workers: number of threads that decode images; None chooses.

    Raises:
        UsageError: the device is not available.
    """
    classifier, how = predictor.classifier, predictor.classifier.preprocessing
    machine = inference_machine(device, precision)
    machine.place(classifier.model)
    size = batch_size or min(_MAX_BATCH, machine.eval_batch(how.crop))
    groups = _decoded(images, how, size, max(1, worker_count(workers)), predictor.max_pixels)
    in_flight: deque[list[_Decoded]] = deque()  # the images of each batch that is being computed

    def batches() -> Iterator[Batch]:
        for group in groups:
            in_flight.append(group)
            # A group without any readable image is sent as one black image, so that the order stays the same.
            placeholder = torch.zeros(3, how.crop, how.crop, dtype=torch.uint8)
            inputs = [image for _, image in group if isinstance(image, Tensor)] or [placeholder]
            # There are no labels.
            yield Batch(normalise(torch.stack(inputs).to(machine.device), how), torch.full((len(inputs),), -1))

    network, task = Autocasting(classifier.model, machine), TASKS[classifier.task]
    tta = tta or classifier.tta
    for _, views in view_logits(network, with_views(batches(), tta), at_once=machine.at_once, tta=tta):
        logits = torch.stack(views).float().mean(0)
        probabilities = task.probabilities(logits, classifier.temperature).cpu()
        yield from _predictions(in_flight.popleft(), probabilities, predictor.classes)


def _predictions(group: Sequence[_Decoded], probabilities: Tensor, classes: tuple[str, ...]) -> Iterator[Prediction]:
    """Yield a prediction for each image of a batch; only those that were decoded have a row of probabilities."""
    rows = iter(probabilities)
    for name, image in group:
        if isinstance(image, DataError):
            yield Prediction(name, classes, None, str(image))
            continue
        row = next(rows)
        is_finite = bool(row.isfinite().all())
        yield Prediction(name, classes, row if is_finite else None, "" if is_finite else NOT_FINITE)


def read_picture(picture: Picture, preprocessing: Preprocessing, max_pixels: int | None = None) -> Tensor:
    """Return the input of a network before normalisation, (3, crop, crop) uint8.

    Args:
        picture: a file; a Pillow image; or an array of uint8, (H, W) grey, (H, W, 3) RGB or (H, W, 4) RGBA.

    Raises:
        DataError: there is no such file, or it cannot be decoded; or the array has another type or shape.
    """
    if isinstance(picture, np.ndarray):
        picture = _from_array(picture)
    if isinstance(picture, Image.Image):
        return read_input(_png(picture), preprocessing, max_pixels)
    # os.path accepts any name: one that is too long for the system, or in a folder that may not be entered.
    if not os.path.isfile(picture):  # noqa: PTH113
        problem = "is a folder without pictures" if os.path.isdir(picture) else "there is no such file"  # noqa: PTH112
        raise DataError(f"{picture}: {problem}")
    return read_input(Path(picture), preprocessing, max_pixels)


def _from_array(pixels: np.ndarray) -> Image.Image:
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))):
        raise DataError(
            f"an image is an array of uint8, (H, W), (H, W, 3) or (H, W, 4), not {pixels.dtype} {pixels.shape}"
        )
    return Image.fromarray(pixels)


def _png(image: Image.Image) -> bytes:
    """Return an image in memory as a PNG file, so that it is decoded like any file: turned by EXIF, on white, RGB."""
    if image.mode == "F":
        raise DataError("an image of floating-point pixels has no agreed range; convert it to 8 or 16 bits")
    file = io.BytesIO()
    exif = image.getexif()
    (image if image.mode in _PNG_MODES else image.convert("RGB")).save(file, "PNG", compress_level=0, exif=exif)
    return file.getvalue()


def _decoded(
    images: Iterable[Picture], how: Preprocessing, size: int, workers: int, max_pixels: int | None
) -> Iterator[list[_Decoded]]:
    """Yield groups of ``size`` images with their names, as ``read_picture`` returns them, or with the error."""

    def load(picture: Picture) -> Tensor | DataError:
        try:
            return read_picture(picture, how, max_pixels)
        except DataError as error:
            return error

    remaining = enumerate(images, 1)
    waiting: deque[tuple[str, Future[Tensor | DataError]]] = deque()
    # OpenMP's number of threads is set per thread.
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            while True:
                # At most two batches ahead of what is computed.
                for number, picture in islice(remaining, 2 * size - len(waiting)):
                    name = str(picture) if isinstance(picture, str | Path) else f"image {number}"
                    waiting.append((name, pool.submit(load, picture)))
                if not waiting:
                    return
                group = [waiting.popleft() for _ in range(min(size, len(waiting)))]
                yield [(name, future.result()) for name, future in group]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

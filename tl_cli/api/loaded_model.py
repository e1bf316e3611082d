"""A saved model in memory, for predictions in Python."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import overload

import numpy as np
from PIL import Image

from tl_cli.api.model_lookup import find_to_read
from tl_cli.api.observer import Observer
from tl_cli.api.prediction import Picture, Prediction, predict_images
from tl_cli.choices import DeviceName, TtaName
from tl_cli.errors import DataError
from tl_cli.evaluation.predicting import Predictor
from tl_cli.text import html_table

_SHOWN_ROWS = 50


@dataclass(frozen=True, slots=True)
class Predictions(Sequence[Prediction]):
    """The predictions for several images, in their order.

    Attributes:
        classes: names, in the order of the probabilities.
        items: one per image.
    """

    classes: tuple[str, ...]
    items: tuple[Prediction, ...]

    @property
    def labels(self) -> list[str]:
        """The most likely class per image."""
        return [each.label for each in self.items]

    @property
    def probabilities(self) -> np.ndarray:
        """All probabilities, (N, num_classes) float32; each row sums to 1."""
        rows = [each.probabilities.numpy() for each in self.items if each.probabilities is not None]
        return np.stack(rows) if rows else np.zeros((0, len(self.classes)), np.float32)

    def to_dict(self, top: int = 3) -> dict[str, object]:
        """Return the classes, and per image what ``tl predict --json`` prints."""
        return {"classes": list(self.classes), "images": [each.to_dict(top) for each in self.items]}

    def _repr_html_(self) -> str:
        rows = [(each.path, each.label, f"{each.probability:.1%}") for each in self.items[:_SHOWN_ROWS]]
        more = len(self.items) - len(rows)
        return html_table(("image", "class", "probability"), rows) + (f"and {more:,} more" if more else "")

    def __len__(self) -> int:
        return len(self.items)

    @overload
    def __getitem__(self, index: int) -> Prediction: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Prediction]: ...
    def __getitem__(self, index: int | slice) -> Prediction | Sequence[Prediction]:
        return self.items[index]


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A saved model that is ready to predict.

    Attributes:
        name: of its run, or its folder.
        predictor: the network with its classes and preprocessing.
        device: where it computes.
    """

    name: str
    predictor: Predictor
    device: DeviceName = "auto"

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the probabilities."""
        return self.predictor.classes

    @overload
    def predict(  # type: ignore[overload-overlap]  # a str is a sequence too
        self, images: str | Path | Image.Image, *, batch_size: int | None = None, tta: TtaName | None = None
    ) -> Prediction: ...
    @overload
    def predict(
        self, images: Sequence[Picture], *, batch_size: int | None = None, tta: TtaName | None = None
    ) -> Predictions: ...
    @overload
    def predict(
        self, images: np.ndarray, *, batch_size: int | None = None, tta: TtaName | None = None
    ) -> Prediction | Predictions: ...
    def predict(
        self, images: Picture | Sequence[Picture], *, batch_size: int | None = None, tta: TtaName | None = None
    ) -> Prediction | Predictions:
        """Return the label and the probabilities of one image, or of each of several images.

        Args:
            images: a path, a Pillow image, an array of uint8 ((H, W) grey, (H, W, 3) RGB or (H, W, 4) RGBA, 0 to 255);
                or a sequence of these, or an array (N, H, W, 3). Images may be of any size: they are resized, cropped
                and normalised as in training.
            batch_size: images per batch; None chooses.
            tta: ``flip`` averages the logits of each image and its mirror image; None: as in training.

        Returns:
            A ``Prediction`` for one image, ``Predictions`` for several.

        Raises:
            DataError: an image cannot be decoded, or an array has another type or shape.
            UsageError: the device is not available.
        """
        is_single = isinstance(images, str | Path | Image.Image) or (isinstance(images, np.ndarray) and images.ndim < 4)
        given: list[Picture] = [images] if is_single else list(images)  # type: ignore[list-item, arg-type]
        folders = [each for each in given if isinstance(each, str | Path) and Path(each).is_dir()]
        if folders:
            raise DataError(
                f"{folders[0]} is a folder; give its files, such as list(Path({str(folders[0])!r}).iterdir())"
            )
        predictions = tuple(predict_images(self.predictor, given, device=self.device, batch_size=batch_size, tta=tta))
        failed = [each.problem for each in predictions if each.probabilities is None]
        if failed:
            raise DataError(f"{len(failed):,} of {len(predictions):,} images have no prediction: {'; '.join(failed)}")
        return predictions[0] if is_single else Predictions(self.classes, predictions)

    def _repr_html_(self) -> str:
        side = self.predictor.classifier.preprocessing.crop
        about = f"{self.predictor.classifier.name}, {len(self.classes)} classes, input {side} x {side} px"
        return f"<b>{html.escape(self.name)}</b><br>{html.escape(about)}"


def load(
    run: str | PathLike[str] = "latest",
    *,
    device: DeviceName = "auto",
    tracking_uri: str | None = None,
    observer: Observer | None = None,
) -> LoadedModel:
    """Return the model of a run or of a saved-model folder.

    Args:
        run: id or its beginning, name, ``latest``, ``best``, ``runs:/...``, ``models:/...``, or a saved-model folder.
        device: where to compute; ``auto`` is a GPU if there is one.
        tracking_uri: MLflow's store; None is the default one.
        observer: receives warnings.

    Raises:
        RunNotFoundError: no run or several runs match the name, or the run has no model.
        WeightsError: the saved model is damaged.
        TrackingError: the store cannot be used.
    """
    target = find_to_read(fspath(run), tracking_uri, (observer or Observer()).warn)
    return LoadedModel(target.name, Predictor.load(target.folder), device)

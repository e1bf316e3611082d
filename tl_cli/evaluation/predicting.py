"""Predicts class probabilities with a saved model, for encoded images. A served model runs this module.

Models in MLflow stores import it by its name, those of earlier versions too.
"""

import base64
import math
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote_to_bytes

import torch
from torch import Tensor

from tl_cli.data.decode import picture_size
from tl_cli.data.preprocess import normalise, read_input
from tl_cli.errors import DataError, UsageError
from tl_cli.evaluation.task import TASKS
from tl_cli.models.classifier import Classifier
from tl_cli.models.zoo import registry

_BATCH = 64
_EXPECTED = "expected an image file as base64, as a data URL or as bytes"
NOT_FINITE = "the model returned NaN or infinity for this picture; its weights may be damaged"


@dataclass(frozen=True, slots=True)
class Predictor:
    """A classifier with its class names.

    Attributes:
        classifier: in eval mode.
        classes: names, in the order of the logits.
        max_pixels: maximum number of pixels decoded per image; None is the usual limit.
    """

    classifier: Classifier
    classes: tuple[str, ...]
    max_pixels: int | None = None

    @classmethod
    def load(cls, folder: Path) -> "Predictor":
        """Return the predictor of a saved-model folder.

        Raises:
            WeightsError: the folder is not a saved model, or is damaged.
        """
        classifier, card = registry.restore(folder)
        return cls(classifier, card.classes, card.data.max_pixels)

    def predict(self, pictures: Sequence[object]) -> tuple[Tensor, list[str]]:
        """Return probabilities, (N, num_classes) float32, and one error per picture: empty if it has probabilities.

        A picture that cannot be decoded does not stop the others: its row is NaN, and its error begins with its number,
        counted from 1.

        Args:
            pictures: encoded images: bytes, their base64 (URL-safe too) with or without line breaks, or data URLs.
        """
        rows = torch.full((len(pictures), len(self.classes)), math.nan)
        errors = [""] * len(pictures)
        for start in range(0, len(pictures), _BATCH):
            images: dict[int, Tensor] = {}
            for index in range(start, min(start + _BATCH, len(pictures))):
                try:
                    picture = encoded(pictures[index])
                    images[index] = read_input(picture, self.classifier.preprocessing, self.max_pixels)
                except DataError as error:
                    errors[index] = str(error)
            if images:
                rows[list(images)] = self._probabilities(torch.stack(list(images.values())))
        for index in torch.nonzero(rows.isnan().any(1)).flatten().tolist():
            errors[index] = f"row {index + 1} of {len(pictures)}: {errors[index] or NOT_FINITE}"
        return rows, errors

    def _probabilities(self, images: Tensor) -> Tensor:
        with torch.inference_mode():
            logits = self.classifier.logits(normalise(images, self.classifier.preprocessing))
        return TASKS[self.classifier.task].probabilities(logits.float(), self.classifier.temperature)


def encoded(picture: object) -> bytes:
    """Return the bytes of an image file, from bytes, base64 or a data URL.

    Raises:
        DataError: it is none of these.
    """
    if isinstance(picture, bytes | bytearray | memoryview):
        return bytes(picture)
    if picture is None:
        raise DataError(f"{_EXPECTED}, found null")
    if not isinstance(picture, str):
        raise DataError(f"{_EXPECTED}, found {type(picture).__name__} {str(picture)[:40]!r}")
    text = picture.strip()
    if not text:
        raise DataError(f"{_EXPECTED}, found an empty text")
    if text[:5].lower() == "data:":
        header, comma, text = text.partition(",")
        if not comma:
            raise DataError("a data URL has a comma before its contents: data:image/png;base64,...")
        contents = unquote_to_bytes(text)
        if not header.rstrip().lower().endswith(";base64"):
            return contents
        text = contents.decode("ascii", "replace")
    # In the URL-safe alphabet - and _ stand for + and /, and the padding is often left out.
    text = "".join(text.split()).replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(text if "=" in text else text + "=" * (-len(text) % 4), validate=True)
    except ValueError as error:
        odd = re.search("[^A-Za-z0-9+/=]", text)
        reason = f"it has the character {odd[0]!r}" if odd else "its length or its padding is wrong; is it complete?"
        raise DataError(f"{_EXPECTED}; this is not base64: {reason}") from error


def limit_pixels(pictures: Sequence[object], limit: int) -> None:
    """Refuse pictures that have more pixels than ``limit`` together; only their headers are read.

    Args:
        pictures: as for ``Predictor.predict``; those that it cannot decode count as no pixels.

    Raises:
        UsageError: they have more pixels.
    """
    total = 0
    for picture in pictures:
        with suppress(DataError):
            total += math.prod(picture_size(encoded(picture)))
    if total > limit:
        raise UsageError(f"the {len(pictures)} images of this request have {total:,} pixels, the limit is {limit:,}")
